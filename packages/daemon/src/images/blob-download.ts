import { setTimeout as delay } from 'node:timers/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { BlobDraft } from './blob-store.ts'
import type { Descriptor } from './manifest.ts'
import type { RegistryClient } from './registry-client.ts'
import { invalidImage } from './tar-entry.ts'

export interface RetryPolicy {
  /** Tries in a row that brought nothing. One that brought a byte starts the count again. */
  readonly maxTries: number
  /** Tries in all: a server that gives one byte at a time is no registry. */
  readonly maxTriesInAll: number
  readonly firstDelayMs: number
  readonly maxDelayMs: number
  /** A Retry-After beyond this ends the pull with `rate_limited`. */
  readonly maxRetryAfterS: number
}

const DEFAULT_RETRY: RetryPolicy = { maxTries: 5, maxTriesInAll: 100, firstDelayMs: 500, maxDelayMs: 15_000, maxRetryAfterS: 60 }

/**
 * Fills `draft` with a blob. A connection that is cut is taken up where the hash stands, not from the start. Throws `invalid_image`
 * at once when more arrives than was declared, or when a whole answer is too short: trying again would not help.
 */
export async function downloadBlob(
  client: Pick<RegistryClient, 'blob'>,
  blob: Descriptor,
  draft: BlobDraft,
  options: { signal: AbortSignal; onBytes: (total: number) => void; retry?: RetryPolicy },
): Promise<void> {
  const { signal, onBytes, retry = DEFAULT_RETRY } = options
  let failures = 0
  for (let tries = 1; draft.size < blob.size || (tries === 1 && blob.size === 0); tries++) {
    const before = draft.size
    try {
      await downloadOnce(client, blob, draft, { signal, onBytes })
      if (draft.size === blob.size) return
    } catch (error) {
      if (signal.aborted) throw signal.reason
      if (!isWorthAnother(error, retry) || tries >= retry.maxTriesInAll) throw error
      failures = draft.size > before ? 1 : failures + 1
      if (failures >= retry.maxTries) throw error
      const wish = error instanceof AppError && error.retryAfterSeconds !== undefined ? error.retryAfterSeconds * 1000 : 0
      const backoff = Math.min(retry.firstDelayMs * 2 ** (failures - 1), retry.maxDelayMs)
      await delay(Math.max(wish, backoff * (0.5 + Math.random() / 2)), undefined, { signal })
    }
  }
}

async function downloadOnce(
  client: Pick<RegistryClient, 'blob'>,
  blob: Descriptor,
  draft: BlobDraft,
  { signal, onBytes }: { signal: AbortSignal; onBytes: (total: number) => void },
): Promise<void> {
  const offset = draft.size
  const response = await client.blob(blob.digest, offset, signal)
  // A registry that knows no ranges sends all again.
  let skip = response.statusCode === 206 ? 0 : offset
  const declared = Number(response.headers['content-length'])
  const end = response.statusCode === 206 ? offset + declared : declared
  try {
    if (response.statusCode === 206 && !startsAt(response.headers['content-range'], offset)) {
      throw invalidImage(`The registry sent another part of the blob ${blob.digest} than was asked for`)
    }
    if (Number.isFinite(declared) && end !== blob.size) {
      throw invalidImage(`The registry sends ${end} bytes for the blob ${blob.digest} where ${blob.size} were declared`)
    }
    for await (const chunk of response.body as AsyncIterable<Buffer>) {
      const fresh = skip >= chunk.length ? chunk.subarray(chunk.length) : chunk.subarray(skip)
      skip = Math.max(0, skip - chunk.length)
      if (fresh.length === 0) continue
      if (draft.size + fresh.length > blob.size) {
        throw invalidImage(`The registry sends more than ${blob.size} bytes for the blob ${blob.digest}`)
      }
      await draft.write(fresh)
      onBytes(draft.size)
    }
  } catch (error) {
    response.body.destroy()
    // An `error` listener must be there: the destroyed body may still report the cut.
    response.body.on('error', () => undefined)
    if (error instanceof AppError || signal.aborted) throw error
    throw new AppError('registry_unavailable', `The download of ${blob.digest} broke off: ${(error as Error).message}`, { cause: error })
  }
  if (draft.size < blob.size) throw invalidImage(`The blob ${blob.digest} is cut short: ${draft.size} of ${blob.size} bytes`)
}

const startsAt = (header: string | string[] | undefined, offset: number): boolean =>
  typeof header === 'string' && header.startsWith(`bytes ${offset}-`)

function isWorthAnother(error: unknown, retry: RetryPolicy): boolean {
  switch (errorCodeOf(error)) {
    case 'registry_unavailable':
      return true
    case 'rate_limited':
      return (error as AppError).retryAfterSeconds === undefined || ((error as AppError).retryAfterSeconds ?? 0) <= retry.maxRetryAfterS
    default:
      return false
  }
}
