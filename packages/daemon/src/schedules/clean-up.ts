import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { InstanceId } from '../instances/instance.ts'
import type { Step } from '../lib/step.ts'
import type { Retention } from '../store/snapshot-schedules.ts'
import { deletableOf, expiredOf, type Finding } from './retention.ts'
import type { NamedSnapshot, ScheduledSnapshots } from './scheduled-snapshots.ts'

export interface CleanedUp {
  /** So many are there now. */
  readonly left: number
  /** What did not go as it should, in words. */
  readonly troubles: readonly string[]
  /** Some that are expired could not be judged or deleted: the next time may do better. */
  readonly isUnfinished: boolean
}

/** Deletes the scheduled snapshots that are too many or too old, behind a proof. Reads nothing while there is nothing to delete. */
export async function cleanUp(
  snapshots: ScheduledSnapshots,
  id: InstanceId,
  retention: Retention,
  { nowMs, lives, step }: { nowMs: number; lives: boolean; step: Step },
): Promise<CleanedUp> {
  const made = snapshots.listScheduled(id)
  const expired = expiredOf(made, retention, { nowMs, lives })
  if (expired.length === 0) return { left: made.length, troubles: [], isUnfinished: false }

  const { findings, troubles } = expired.length === made.length ? NOTHING_ASKED : await prove(snapshots, made, step)
  const failures: string[] = []
  let deleted = 0
  // Oldest first: whatever ends this midway leaves the newest.
  for (const one of deletableOf(made, expired, findings).toReversed()) {
    step.signal.throwIfAborted()
    try {
      await snapshots.delete(one.id)
      deleted++
      step.log.info({ instance: id, snapshot: one.id, name: one.name }, 'expired snapshot deleted')
    } catch (error) {
      if (errorCodeOf(error) === 'not_found') deleted++
      else failures.push(`The snapshot ${nameOf(one)} has expired and could not be deleted: ${wordsOf(error, step)}`)
    }
  }
  return {
    left: made.length - deleted,
    troubles: [...troubles, ...failures],
    isUnfinished: failures.length > 0 || [...findings.values()].includes('unknown'),
  }
}

interface Proof {
  readonly findings: ReadonlyMap<string, Finding>
  readonly troubles: readonly string[]
}
const NOTHING_ASKED: Proof = { findings: new Map(), troubles: [] }

/** A terabyte from a slow disk; what takes longer hangs. */
const VERIFY_LIMIT_MS = 3 * 3_600_000

/** Looks at one after the other, newest first, until one is whole. */
async function prove(snapshots: ScheduledSnapshots, made: readonly NamedSnapshot[], step: Step): Promise<Proof> {
  const findings = new Map<string, Finding>()
  const troubles: string[] = []
  for (const one of made) {
    let finding: Finding
    try {
      finding = await snapshots.verify(one.id, { ...step, signal: AbortSignal.any([step.signal, AbortSignal.timeout(VERIFY_LIMIT_MS)]) })
      if (finding === 'damaged') troubles.push(`The snapshot ${nameOf(one)} is damaged`)
    } catch (error) {
      step.signal.throwIfAborted()
      // Deleted while it was read, or before: it is no one's last hope.
      if (errorCodeOf(error) === 'not_found') continue
      finding = 'unknown'
      troubles.push(`The snapshot ${nameOf(one)} could not be verified: ${wordsOf(error, step)}`)
    }
    findings.set(one.id, finding)
    if (finding === 'whole') return { findings, troubles }
  }
  return { findings, troubles: [...troubles, 'None could be proved to be whole, so no older one is deleted in favour of a newer'] }
}

/** An error as `last_error` tells it: our own words, and for any other that the log has it. */
export function wordsOf(error: unknown, { log }: Pick<Step, 'log'>): string {
  if (!(error instanceof AppError)) {
    log.error({ error }, 'a snapshot schedule met a fault')
    return 'something went wrong inside the daemon, whose log has the reason'
  }
  return error.cause instanceof AppError ? `${error.message}: ${error.cause.message}` : error.message
}

const nameOf = ({ name, id }: NamedSnapshot): string => name ?? id
