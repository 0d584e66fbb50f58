/** What a restart policy has done to an instance: the attempt is on record before it begins, so that each counts, however it ends. */
import type { InstanceWork } from '../instance-work.ts'
import { HELD, restarted, restartOutlook, withAttempt } from '../restart-policy.ts'
import { type Admit, start } from './start.ts'
import { stop } from './stop.ts'

export interface WantedRestart {
  /** Since when its health check says that it is not well; undefined once it does not. Asked when it comes to it. */
  unhealthySinceMs(): number | undefined
}

/** Running and not well → Stopped, and owed a start. Nothing, when it is well again or someone wants something else of it. */
export async function stopToRestart(work: InstanceWork, { unhealthySinceMs }: WantedRestart): Promise<void> {
  const since = unhealthySinceMs()
  if (since === undefined || restartOutlook(work.instance, { nowMs: Date.now(), unhealthySinceMs: since }).kind !== 'due') return
  await stop(work, { restarts: withAttempt(work.instance, { nowMs: Date.now(), owed: 'start', lastReason: 'health_check_failed' }) })
}

/** Stopped → Initializing. Nothing, when nothing is due any more. */
export async function startByPolicy(work: InstanceWork, admit: Admit): Promise<void> {
  if (restartOutlook(work.instance, { nowMs: Date.now() }).kind !== 'due') return
  await work.step('attempt', 10_000)
  const restarts = withAttempt(work.instance, { nowMs: Date.now(), owed: 'retry' })
  work.change({ restarts })
  work.log.info({ attempt: restarts.attempts, reason: restarts.lastReason ?? 'exit' }, 'its restart policy starts it')
  await start(work, {}, admit, { restarts: restarted(restarts) })
}

/** Whoever stops it means it, also where it was Stopped already. */
export function hold(work: InstanceWork): void {
  const { state, restarts } = work.instance
  // A start that came behind the stop has ended it.
  if (state === 'Stopped' && restarts?.isHeld !== true) work.change({ restarts: HELD })
}
