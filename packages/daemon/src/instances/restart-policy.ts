/**
 * What a restart policy makes of an instance as it is now. Pure: it is looked at anew with every change, and again by the worker before
 * anything is done. Nothing waits for it in memory alone, so that a daemon which dies forgets none of it.
 *
 *     ended by itself, or unhealthy ── backoff ──► attempt on record ─► (stop) ─► start ─► runs for stable_after: counted anew
 *                                        ▲                                 │
 *                                        └──────────── failed ◄────────────┘   max_attempts in a row: blocked
 */
import { durationsAt, type Instance, type RestartHistory } from './instance.ts'

export type RestartOutlook =
  /** Nothing will be done by itself. */
  | { readonly kind: 'none' }
  /** It would be restarted, but for this. */
  | { readonly kind: 'blocked'; readonly reason: 'manual_stop' | 'max_attempts_exceeded' }
  /** At that moment; one that has passed is now. */
  | { readonly kind: 'due'; readonly atMs: number; readonly backoffMs: number }

/** Of whoever was stopped by someone. */
export const HELD: RestartHistory = { attempts: 0, isHeld: true }

export interface RestartFacts {
  readonly nowMs: number
  /** Since when its health check says that it is not well. */
  readonly unhealthySinceMs?: number
}

export function restartOutlook(instance: Instance, { nowMs, unhealthySinceMs }: RestartFacts): RestartOutlook {
  const { restartPolicy, restarts, state, operation, expiresAtMs, stoppedAtMs = 0 } = instance
  if (restartPolicy === undefined || restartPolicy.policy === 'never') return { kind: 'none' }
  if (restarts?.isHeld) return { kind: 'blocked', reason: 'manual_stop' }
  // What is about to be deleted is left alone, as is what someone is working on.
  if (operation !== undefined || (expiresAtMs !== undefined && expiresAtMs <= nowMs)) return { kind: 'none' }
  const isDown = state === 'Stopped' && (restarts?.owed !== undefined || hasFailed(instance, restartPolicy.policy))
  const isUnwell = state === 'Running' && unhealthySinceMs !== undefined
  if (!isDown && !isUnwell) return { kind: 'none' }
  const { backoffMs, maxAttempts } = restartPolicy
  // It was stopped as the first half of an attempt.
  if (isDown && restarts?.owed === 'start') return { kind: 'due', atMs: nowMs, backoffMs }
  if (maxAttempts > 0 && attemptsAt(instance, nowMs) >= maxAttempts) return { kind: 'blocked', reason: 'max_attempts_exceeded' }
  const since = isUnwell ? unhealthySinceMs : restarts?.owed === 'retry' ? 0 : stoppedAtMs
  return { kind: 'due', atMs: Math.max(since, restarts?.lastAttemptAtMs ?? 0) + backoffMs, backoffMs }
}

/** Attempts in a row: none once it has been Running for long enough since the last one, naps left out. */
export function attemptsAt({ restartPolicy, restarts, phases }: Instance, nowMs: number): number {
  if (restarts === undefined || restartPolicy === undefined) return restarts?.attempts ?? 0
  const ranMs = (durationsAt(phases, nowMs).running ?? 0) - (restarts.ranMs ?? 0)
  return ranMs > 0 && ranMs >= restartPolicy.stableAfterMs ? 0 : restarts.attempts
}

/** With the next attempt begun. One whose first half was a stop has been counted. */
export function withAttempt(instance: Instance, { nowMs, owed, lastReason }: Attempt): RestartHistory {
  const { restarts, phases } = instance
  if (restarts?.owed === 'start' && owed === 'retry') return { ...restarts, owed }
  return {
    attempts: attemptsAt(instance, nowMs) + 1,
    lastAttemptAtMs: nowMs,
    ranMs: durationsAt(phases, nowMs).running ?? 0,
    owed,
    ...(lastReason === undefined ? {} : { lastReason }),
  }
}

interface Attempt extends Pick<RestartHistory, 'lastReason'> {
  readonly nowMs: number
  readonly owed: NonNullable<RestartHistory['owed']>
}

/** Its VM runs again. */
export function restarted({ owed: _owed, ...restarts }: RestartHistory): RestartHistory {
  return restarts
}

/** Another policy counts anew. What someone stopped stays so, and what is half done is finished. */
export function underNewPolicy(restarts: RestartHistory | undefined): RestartHistory | undefined {
  if (restarts?.isHeld) return HELD
  return restarts?.owed === undefined ? undefined : { attempts: 0, owed: restarts.owed }
}

/** No code is a failure: no one saw how it ended, or its VM was lost. One that has never ended has not failed. */
const hasFailed = ({ exitCode, exitMessage }: Instance, policy: 'always' | 'on_failure'): boolean =>
  exitMessage !== undefined && (policy === 'always' || exitCode !== 0)
