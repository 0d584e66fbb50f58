import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { anchoredRun, firstRunAt, runAfter } from './next-run.ts'

const MINUTE = 60_000
const HOUR = 60 * MINUTE

const id = fc.string({ minLength: 24, maxLength: 24, unit: fc.constantFrom(...'abcdefghijklmnopqrstuvwxyz0123456789') })
const interval = fc.integer({ min: MINUTE, max: 400 * 24 * HOUR })
const time = fc.integer({ min: 0, max: Date.parse('2100-01-01') })

test('the first run is an interval away and a little more: less than a tenth of it, and less than five minutes', () => {
  fc.assert(
    fc.property(id, interval, time, (instance, every, now) => {
      const jitter = firstRunAt(instance, every, now) - now - every
      assert.ok(jitter >= 0 && jitter < Math.min(every / 10, 5 * MINUTE))
      assert.equal(firstRunAt(instance, every, now), now + every + jitter)
    }),
  )
})

test('the jitter is FNV-1a of the id, so that it is the same wherever it is reckoned', () => {
  // FNV-1a 64 of 'a' is 0xaf63dc4c8601ec8c; of nothing, its offset basis.
  assert.equal(firstRunAt('a', HOUR, 0) - HOUR, Number(0xaf63dc4c8601ec8cn % 300_000n))
  assert.equal(firstRunAt('', 10 * MINUTE, 0) - 10 * MINUTE, Number(0xcbf29ce484222325n % 60_000n))
})

test('schedules that are set in one moment do not run in one moment', () => {
  const runs = new Set(Array.from({ length: 100 }, (_, n) => Math.floor(firstRunAt(`instance-${n}`, HOUR, 0) / 1000)))
  assert.ok(runs.size > 70, `${runs.size} different seconds of 300`)
})

test('after a run the next one is the first whole interval that lies ahead', () => {
  assert.equal(runAfter(HOUR, HOUR, HOUR), 2 * HOUR)
  assert.equal(runAfter(HOUR, HOUR, HOUR + 1), 2 * HOUR)
  assert.equal(runAfter(HOUR, HOUR, 2 * HOUR), 3 * HOUR)
  assert.equal(runAfter(HOUR, HOUR, 100 * HOUR + 1), 101 * HOUR)
  fc.assert(
    fc.property(interval, time, fc.nat(), (every, due, late) => {
      const next = runAfter(due, every, due + late)
      assert.ok(next > due + late && next <= due + late + every)
      assert.equal((next - due) % every, 0)
    }),
  )
})

test('however the clock jumps, a jump ahead is one run, and no wait is longer than an interval and its jitter', () => {
  const jump = fc.oneof(fc.integer({ min: 0, max: 2 * HOUR }), fc.integer({ min: -(10 ** 11), max: 10 ** 11 }))
  fc.assert(
    fc.property(id, fc.integer({ min: MINUTE, max: 2 * HOUR }), fc.array(jump), (instance, every, jumps) => {
      let now = Date.parse('2026-01-01')
      let next = firstRunAt(instance, every, now)
      const longest = next - now
      for (const ms of jumps) {
        now += ms
        next = anchoredRun(instance, every, next, now)
        if (next <= now) next = runAfter(next, every, now)
        assert.ok(next > now && next - now <= longest)
      }
    }),
  )
})

test('a clock that is set back a little moves nothing', () => {
  const next = firstRunAt('a', HOUR, 10 * HOUR)
  assert.equal(anchoredRun('a', HOUR, next, 10 * HOUR + MINUTE), next)
  assert.equal(anchoredRun('a', HOUR, next, 9 * HOUR), firstRunAt('a', HOUR, 9 * HOUR))
})
