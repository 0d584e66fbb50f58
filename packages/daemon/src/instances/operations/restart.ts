/** What a restart policy has done to an instance: an attempt is on record with its intent, so that each counts, however it ends. */
import type { InstanceWork } from '../instance-work.ts'
import { HELD, restartOutlook, withAttempt } from '../restart-policy.ts'
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
  const attempt = withAttempt(work.instance, { nowMs: Date.now(), owed: 'retry' })
  work.log.info({ attempt: attempt.attempts, reason: attempt.lastReason ?? 'exit' }, 'its restart policy starts it')
  try {
    await start(work, {}, admit, { attempt })
  } catch (error) {
    // What was not admitted, and so never came to be on record, was an attempt all the same.
    if (work.instance.restarts !== attempt && !work.isEnding) work.change({ restarts: attempt })
    throw error
  }
}

/** Whoever stops it means it, also where it was Stopped already. */
export function hold(work: InstanceWork): void {
  const { state, restarts } = work.instance
  // A start that came behind the stop has ended it.
  if (state === 'Stopped' && restarts?.isHeld !== true) work.change({ restarts: HELD })
}
