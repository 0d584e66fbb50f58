import { setTimeout as delay } from 'node:timers/promises'
import { AppError } from '@dormouse/api/errors.ts'

export interface PushRetryPolicy {
  readonly maxTries: number
  readonly firstDelayMs: number
  readonly maxDelayMs: number
  /** A Retry-After beyond this ends the push. */
  readonly maxRetryAfterS: number
}

const PUSH_RETRY: PushRetryPolicy = { maxTries: 6, firstDelayMs: 500, maxDelayMs: 15_000, maxRetryAfterS: 60 }

/** Does `work` again while the registry is only busy or out of reach, after the time that it asks for. `isGettingOn` starts the count again. */
export async function retrying<T>(
  work: () => Promise<T>,
  { signal, policy = PUSH_RETRY, isGettingOn }: { signal: AbortSignal; policy?: PushRetryPolicy; isGettingOn?: () => boolean },
): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await work()
    } catch (error) {
      signal.throwIfAborted()
      if (!(error instanceof AppError) || (error.code !== 'registry_unavailable' && error.code !== 'rate_limited')) throw error
      const wishS = error.retryAfterSeconds ?? 0
      if (isGettingOn?.()) tries = 1
      if (tries >= policy.maxTries || wishS > policy.maxRetryAfterS) throw error
      const backoff = Math.min(policy.firstDelayMs * 2 ** (tries - 1), policy.maxDelayMs)
      await delay(Math.max(wishS * 1000, backoff * (0.5 + Math.random() / 2)), undefined, { signal })
    }
  }
}
