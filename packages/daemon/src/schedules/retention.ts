/**
 * Pure: which of a schedule's snapshots go. Two questions, asked one after the other. By count and age, which are expired? And of
 * those, which may really be deleted, given what is known of the others?
 *
 *     made, newest first     e   d   c   b   a
 *     expired (count 2)              ×   ×   ×
 *     found, newest first    ✗   ?   ✓            ✗ damaged   ? could not be found out   ✓ whole, so proved
 *     deleted                            ×   ×    c is the newest that is sure to bring the instance back
 *
 * A proof is a snapshot whose files were all read and found as they were written. What is older than a proved one may go; else only what
 * is damaged and so can bring nothing back.
 */
import type { Retention } from '../store/snapshot-schedules.ts'

export interface MadeSnapshot {
  readonly id: string
  readonly createdAtMs: number
}

export type Finding = 'whole' | 'damaged' | 'unknown'

/**
 * Those that are too many or too old. `made` is in the order of making, newest first: times may have been written by a clock that was
 * wrong. While the instance lives its newest is never expired, however short the age.
 */
export function expiredOf<Made extends MadeSnapshot>(
  made: readonly Made[],
  { maxCount, maxAgeMs }: Retention,
  { nowMs, lives }: { nowMs: number; lives: boolean },
): Made[] {
  const isTooMany = (index: number): boolean => maxCount > 0 && index >= maxCount
  const isTooOld = ({ createdAtMs }: Made): boolean => maxAgeMs !== undefined && nowMs - createdAtMs > maxAgeMs
  return made.filter((one, index) => !(lives && index === 0) && (isTooMany(index) || isTooOld(one)))
}

/** Of the expired, those that can be deleted and leave what is sure to bring the instance back; all, when all were to go. */
export function deletableOf<Made extends MadeSnapshot>(
  made: readonly Made[],
  expired: readonly Made[],
  findings: ReadonlyMap<string, Finding>,
): Made[] {
  if (expired.length === made.length) return [...expired]
  const proved = made.findIndex(({ id }) => findings.get(id) === 'whole')
  const behindProof = new Set(proved === -1 ? [] : made.slice(proved + 1).map(({ id }) => id))
  return expired.filter(({ id }) => behindProof.has(id) || findings.get(id) === 'damaged')
}
