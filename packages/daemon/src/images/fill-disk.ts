/**
 * An archive into the empty filesystem of a disk, as it arrives: nothing of it is held, and nothing is laid out on the host. It is read by
 * the same rules as a layer of an image, in a process of its own, and written by another that may do nothing but that.
 */
import { Readable } from 'node:stream'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'
import { runJob } from './conversion.ts'
import { withIdleLimit } from './idle-limit.ts'
import { DEFAULT_LIMITS } from './limits.ts'

export interface FillDisk {
  /** An ext4 with nothing in it, the user's own. */
  readonly file: string
  readonly maxBytes: number
  /** dormouse-fill. */
  readonly program: string
  readonly user?: { readonly uid: number; readonly gid: number } | undefined
}

const IDLE_LIMIT_MS = 60_000

/** How many entries there were. Throws `invalid_archive` or `archive_too_large`; the file is of no use then. */
export async function fillDisk(
  { file, maxBytes, program, user }: FillDisk,
  source: AsyncIterable<Uint8Array>,
  step: Pick<Step, 'signal'>,
): Promise<number> {
  const input = Readable.from(withIdleLimit(source, IDLE_LIMIT_MS), { objectMode: false })
  const limits = { ...DEFAULT_LIMITS, maxImageBytes: maxBytes }
  try {
    const { entries } = await runJob({ kind: 'fill', file, program, user, limits }, { signal: step.signal, input })
    return entries
  } catch (error) {
    throw aboutArchive(error)
  }
}

const CODES: Partial<Record<ErrorCode, ErrorCode>> = { invalid_image: 'invalid_archive', image_too_large: 'archive_too_large' }

/** The words of an image's reader, for someone who sent an archive. */
function aboutArchive(error: unknown): unknown {
  const code = error instanceof AppError ? CODES[error.code] : undefined
  if (!(error instanceof AppError) || code === undefined) return error
  const message = error.message
    .replace(/\b([Aa]|[Tt]he) layer\b/g, (_, article: string) => (article[0] === article[0]?.toUpperCase() ? 'The archive' : 'the archive'))
    .replace("The image's files", 'The files of the archive')
    .replace(/root of the image/g, 'root of the volume')
    .replace(/\b(in a layer)\b/g, 'in an archive')
  return new AppError(code, message, { cause: error.cause, ...(error.detail === undefined ? {} : { detail: error.detail }) })
}
