import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { deletableOf, expiredOf, type Finding, type MadeSnapshot } from './retention.ts'

const HOUR = 3_600_000
/** Newest first, an hour apart, the newest just made. */
const hourly = (count: number): MadeSnapshot[] => Array.from({ length: count }, (_, n) => ({ id: `s${n}`, createdAtMs: -n * HOUR }))
const ids = (list: readonly MadeSnapshot[]): string[] => list.map(({ id }) => id)
const living = { nowMs: 0, lives: true }

test('the newest are kept by count, and none is too many when the count is 0', () => {
  assert.deepEqual(ids(expiredOf(hourly(5), { maxCount: 3 }, living)), ['s3', 's4'])
  assert.deepEqual(expiredOf(hourly(3), { maxCount: 3 }, living), [])
  assert.deepEqual(expiredOf(hourly(5), { maxCount: 0, maxAgeMs: 10 * HOUR }, living), [])
})

test('what is older than the age goes; count and age are joined', () => {
  assert.deepEqual(ids(expiredOf(hourly(5), { maxCount: 0, maxAgeMs: 2 * HOUR }, living)), ['s3', 's4'])
  assert.deepEqual(ids(expiredOf(hourly(5), { maxCount: 2, maxAgeMs: 3 * HOUR }, living)), ['s2', 's3', 's4'])
  assert.deepEqual(ids(expiredOf(hourly(5), { maxCount: 4, maxAgeMs: HOUR }, living)), ['s2', 's3', 's4'])
})

test('while the instance lives its newest is kept, however short the age; afterwards age takes all', () => {
  assert.deepEqual(ids(expiredOf(hourly(2), { maxCount: 0, maxAgeMs: 1 }, { nowMs: HOUR, lives: true })), ['s1'])
  assert.deepEqual(ids(expiredOf(hourly(2), { maxCount: 0, maxAgeMs: 1 }, { nowMs: HOUR, lives: false })), ['s0', 's1'])
})

test('what was made under a clock that was wrong is still in the order of making', () => {
  const made = [
    { id: 'after', createdAtMs: 0 },
    { id: 'of-the-future', createdAtMs: 1000 * HOUR },
    { id: 'before', createdAtMs: -HOUR },
  ]
  assert.deepEqual(ids(expiredOf(made, { maxCount: 1 }, living)), ['of-the-future', 'before'])
})

test('only behind a proof is an older one deleted for a newer one', () => {
  const made = hourly(4)
  const expired = expiredOf(made, { maxCount: 1 }, living)
  const deletable = (findings: Record<string, Finding>) => ids(deletableOf(made, expired, new Map(Object.entries(findings))))
  assert.deepEqual(deletable({ s0: 'whole' }), ['s1', 's2', 's3'])
  assert.deepEqual(deletable({}), [])
  assert.deepEqual(deletable({ s0: 'unknown', s1: 'whole' }), ['s2', 's3'])
  assert.deepEqual(deletable({ s0: 'damaged', s1: 'damaged', s2: 'whole' }), ['s1', 's3'])
  assert.deepEqual(deletable({ s0: 'damaged', s1: 'unknown', s2: 'damaged', s3: 'unknown' }), ['s2'])
})

const history = fc.record({
  /** Newest first: its age at the next one's making, and whether it would bring the instance back. */
  made: fc.array(fc.record({ gapMs: fc.integer({ min: -HOUR, max: 3 * HOUR }), canRestore: fc.boolean(), canBeRead: fc.boolean() }), {
    maxLength: 12,
  }),
  maxCount: fc.nat({ max: 6 }),
  maxAgeMs: fc.option(fc.integer({ min: 1, max: 12 * HOUR }), { nil: undefined }),
  lives: fc.boolean(),
})

/** As the clean-up looks: newest first, until one is whole. */
function look(made: readonly (MadeSnapshot & { canRestore: boolean; canBeRead: boolean })[]): Map<string, Finding> {
  const findings = new Map<string, Finding>()
  for (const { id, canRestore, canBeRead } of made) {
    findings.set(id, canBeRead ? (canRestore ? 'whole' : 'damaged') : 'unknown')
    if (findings.get(id) === 'whole') break
  }
  return findings
}

test('whatever was made and whatever is damaged, the last one that brings the instance back is not deleted for a newer one', () => {
  fc.assert(
    fc.property(history, ({ made: gaps, maxCount, maxAgeMs, lives }) => {
      let ageMs = 0
      const made = gaps.map((one, n) => {
        ageMs += one.gapMs
        return { ...one, id: `s${n}`, createdAtMs: -ageMs }
      })
      const expired = expiredOf(made, { maxCount, maxAgeMs }, { nowMs: 0, lives })
      const gone = new Set(deletableOf(made, expired, look(made)))
      const left = made.filter((one) => !gone.has(one))

      for (const one of gone) assert.ok(expired.includes(one))
      if (made.length > 0 && (lives || maxAgeMs === undefined)) assert.ok(left.length > 0)
      if (lives && made[0]) assert.ok(left.includes(made[0]))
      if (left.length > 0 && made.some(({ canRestore }) => canRestore)) assert.ok(left.some(({ canRestore }) => canRestore))
      // Where nothing is amiss, what has expired goes; all but the proof, where a clock has made the newest look older than others.
      const isWhole = made.every(({ canRestore, canBeRead }) => canRestore && canBeRead)
      if (isWhole) for (const one of expired) assert.ok(gone.has(one) || one === made[0])
      // What is left is not judged otherwise the next time.
      const again = expiredOf(left, { maxCount, maxAgeMs }, { nowMs: 0, lives })
      if (again.length < left.length) assert.deepEqual(deletableOf(left, again, look(left)), [])
    }),
    { numRuns: 2000 },
  )
})
