import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import { checkedConfig, type FoundImage } from './archive-image.ts'
import type { Origin } from './conversion-job.ts'
import type { Credentials } from './keychain.ts'
import type { ImageLimits } from './limits.ts'
import { parseManifest, platformNotAvailable, selectPlatform } from './manifest.ts'
import { fitOf, formatPlatform, type Platform } from './platform.ts'
import { formatReference, type Reference } from './reference.ts'
import { RegistryClient } from './registry-client.ts'
import type { NetworkPolicy } from './registry-network.ts'
import { invalidImage } from './tar-entry.ts'

export interface ResolvedImage extends FoundImage {
  readonly origin: Origin
  readonly platform: Platform
}

const MAX_INDEX_DEPTH = 2

/** Asks the registry (a mirror first, where one is configured) what `reference` is for `platform`: manifest and configuration, verified. */
export async function resolveImage(
  reference: Reference,
  platform: Platform,
  options: {
    credentials: Credentials | undefined
    policy: NetworkPolicy
    mirrors: Readonly<Record<string, string>>
    limits: ImageLimits
    signal: AbortSignal
  },
): Promise<ResolvedImage> {
  const mirror = options.mirrors[reference.registry]
  const hosts = [...(mirror === undefined ? [] : [mirror]), apiHostOf(reference.registry)]
  let failure: unknown
  for (const host of hosts) {
    const origin = { registry: reference.registry, host, repository: reference.repository }
    // A mirror is another party: it does not get what was given for the registry.
    const credentials = host === mirror ? undefined : options.credentials
    try {
      return { ...(await resolveAt(origin, reference, platform, { ...options, credentials })), origin }
    } catch (error) {
      options.signal.throwIfAborted()
      if (errorCodeOf(error) === undefined) throw error
      failure = error
    }
  }
  throw failure
}

/** Docker's registry answers under another name than its images are known by. */
export const apiHostOf = (registry: string): string => (registry === 'docker.io' ? 'registry-1.docker.io' : registry)

async function resolveAt(
  origin: Origin,
  reference: Reference,
  platform: Platform,
  {
    credentials,
    policy,
    limits,
    signal,
  }: { credentials: Credentials | undefined; policy: NetworkPolicy; limits: ImageLimits; signal: AbortSignal },
): Promise<FoundImage & { platform: Platform }> {
  await using client = new RegistryClient({ ...origin, credentials, policy, maxDocumentBytes: limits.maxDocumentBytes })
  const name = formatReference(reference)
  let document = await client.manifest(reference.digest ?? reference.tag ?? 'latest', signal)
  let parsed = parseManifest(document.bytes, document.mediaType, limits)
  for (let depth = 0; parsed.kind === 'index'; depth++) {
    if (depth >= MAX_INDEX_DEPTH) throw invalidImage(`The image ${name} has indexes within indexes`)
    const entry = selectPlatform(parsed, platform, name)
    document = await client.manifest(entry.digest, signal)
    parsed = parseManifest(document.bytes, document.mediaType ?? entry.mediaType, limits)
  }
  const config = await client.document(parsed.config.digest, parsed.config.size, signal)
  const found = { digest: document.digest, manifest: document.bytes, config, layers: parsed.layers }
  return { ...found, platform: platformOf(found, platform, name) }
}

/** The platform that the configuration names; throws when it is another than `wanted`. One that names none is taken at its word. */
export function platformOf(found: FoundImage, wanted: Platform, name: string): Platform {
  const { platform } = checkedConfig(found)
  if (platform && fitOf(platform, wanted) === 0) throw platformNotAvailable(name, wanted, [formatPlatform(platform)])
  return wanted
}

export const notFound = (name: string): AppError =>
  new AppError('not_found', `There is no image ${name}`, { hint: `Get it with: dormouse image pull ${name}` })
