/** Getting an image into the daemon, with its progress shown. */
import type { Image, ImageProgress, RegistryCredentials } from '@dormouse/api/images.ts'
import type { Daemon } from './daemon.ts'
import { Failure } from './failure.ts'
import { humanBytes } from './output/format.ts'
import { type ProgressState, showProgress } from './output/progress.ts'

export interface PullOptions {
  readonly platform?: string
  readonly tags?: Record<string, string>
  readonly credentials?: RegistryCredentials
  /** Told each step in place of the line on the terminal. */
  readonly onProgress?: (progress: ImageProgress) => void
  readonly quiet?: boolean
  readonly signal?: AbortSignal
}

/** Asks the daemon to pull, and follows until the image is ready; throws what it failed with. */
export async function pullImage(daemon: Daemon, name: string, options: PullOptions = {}): Promise<Image> {
  const { signal } = options
  const image = await daemon.call('pullImage', {
    body: {
      name,
      ...(options.platform !== undefined && { platform: options.platform }),
      ...(options.tags !== undefined && { tags: options.tags }),
      ...(options.credentials !== undefined && { credentials: options.credentials }),
    },
    signal,
  })
  return image.status === 'ready' ? image : followPull(daemon, image, options)
}

/** Follows a pull that is under way, whoever began it. */
export async function followPull(daemon: Daemon, image: Image, options: PullOptions = {}): Promise<Image> {
  const { signal, onProgress } = options
  using progress = onProgress === undefined && !options.quiet ? showProgress(image.name) : undefined
  for await (const step of daemon.stream('getImageProgress', { params: { name: image.name }, signal })) {
    onProgress?.(step)
    if (step.status !== 'ready' && step.status !== 'failed') progress?.update(stateOf(step))
  }
  const pulled = await daemon.call('getImage', { params: { name: image.name }, signal })
  if (pulled.status === 'failed') throw new Failure(`${pulled.name} could not be pulled: ${pulled.error ?? 'the daemon does not say why'}`)
  if (pulled.status !== 'ready')
    throw new Failure(`The pull of ${pulled.name} is not over, but its progress ended`, { hint: 'Ask again: dormouse image ls' })
  progress?.finish(`${pulled.name}: ready${pulled.size_bytes ? ` (${humanBytes(pulled.size_bytes)})` : ''}`)
  return pulled
}

export type PullPolicy = 'missing' | 'always' | 'never'

/** The image, ready to run: pulled when it is not there, as `policy` allows. */
export async function ensureImage(daemon: Daemon, name: string, policy: PullPolicy, options: PullOptions = {}): Promise<Image> {
  if (policy === 'always') return pullImage(daemon, name, options)
  const image = await daemon.call('getImage', { params: { name }, signal: options.signal }).catch((error: unknown) => {
    if (isNotFound(error)) return undefined
    throw error
  })
  if (image?.status === 'ready' && fits(image, options.platform)) return image
  if (policy === 'never') {
    throw new Failure(`The image ${name} is not here`, {
      code: 'not_found',
      hint: `Pull it: dormouse image pull ${name}; or leave out --pull never`,
    })
  }
  if (image !== undefined && image.status !== 'failed' && fits(image, options.platform)) return followPull(daemon, image, options)
  return pullImage(daemon, name, options)
}

const fits = (image: Image, platform: string | undefined): boolean =>
  platform === undefined || image.platform === undefined || image.platform === platform

const isNotFound = (error: unknown): boolean => error instanceof Error && 'code' in error && error.code === 'not_found'

const stateOf = (progress: ImageProgress): ProgressState => ({
  step: progress.status,
  ...(progress.done_bytes !== undefined && { doneBytes: progress.done_bytes }),
  ...(progress.total_bytes !== undefined && { totalBytes: progress.total_bytes }),
})
