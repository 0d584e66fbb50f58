/** Pure: when a schedule's turn comes. Times are the wall clock's, which may jump either way between two looks. */

/** Schedules that were set in one go shall not all run in one go: each is late by a part of its interval, at most by this. */
const JITTER_MAX_MS = 300_000

/** Of a schedule that begins now, or begins anew. */
export const firstRunAt = (instanceId: string, intervalMs: number, nowMs: number): number =>
  nowMs + intervalMs + jitterOf(instanceId, intervalMs)

/** Of a run that is due: the first whole interval that lies ahead. What was missed is not made up for. */
export const runAfter = (dueAtMs: number, intervalMs: number, nowMs: number): number =>
  dueAtMs + intervalMs * Math.max(1, Math.floor((nowMs - dueAtMs) / intervalMs) + 1)

/** The next run as it is planned, or a new first one where the clock was set back so far that it would wait for longer than that. */
export function anchoredRun(instanceId: string, intervalMs: number, nextRunAtMs: number, nowMs: number): number {
  return Math.min(nextRunAtMs, firstRunAt(instanceId, intervalMs, nowMs))
}

/** The same for one instance every time, and less than a tenth of the interval. */
function jitterOf(instanceId: string, intervalMs: number): number {
  const limit = Math.floor(Math.min(intervalMs / 10, JITTER_MAX_MS))
  return limit < 1 ? 0 : Number(fnv1a64(instanceId) % BigInt(limit))
}

function fnv1a64(text: string): bigint {
  let hash = 0xcbf29ce484222325n
  for (const byte of Buffer.from(text)) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n)
  return hash
}
