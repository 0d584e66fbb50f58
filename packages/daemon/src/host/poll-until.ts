import { setTimeout as sleep } from 'node:timers/promises'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'

export interface PollOptions {
  /** First pause between two looks. */
  readonly everyMs?: number
  /** The pause grows up to this. */
  readonly upToMs?: number
  /** For tests. */
  readonly pause?: (ms: number, signal: AbortSignal) => Promise<unknown>
}

/**
 * Looks again and again until `look` gives something truthy, and returns that. Where an event can be had, take the event.
 * Ends with `timed_out` naming `what` when the step's signal does.
 */
export async function pollUntil<T>(
  what: string,
  look: () => T | Promise<T>,
  step: Pick<Step, 'signal'>,
  options: PollOptions = {},
): Promise<NonNullable<T>> {
  const { everyMs = 5, upToMs = 100, pause = (ms, signal) => sleep(ms, undefined, { signal }) } = options
  for (let ms = everyMs; ; ms = Math.min(ms * 1.5, upToMs)) {
    const found = await look()
    if (found) return found
    if (step.signal.aborted) throw gaveUp(what, step.signal.reason)
    try {
      await pause(ms, step.signal)
    } catch (cause) {
      throw gaveUp(what, step.signal.reason ?? cause)
    }
  }
}

const gaveUp = (what: string, cause: unknown): AppError => new AppError('timed_out', `Gave up waiting for ${what}`, { cause })
