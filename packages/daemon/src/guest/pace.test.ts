import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Pace } from './pace.ts'

test('a guest that does what guests do is never made to wait', () => {
  let now = 0
  const pace = new Pace(() => now)
  for (; now < 10_000; now += 1) assert.equal(pace.spend(20), 0)
})

test('a flood is taken at a bounded pace, however long it lasts', () => {
  let now = 0
  let units = 0
  const pace = new Pace(() => now)
  while (now < 60_000) {
    units += 6000
    now += Math.max(1, pace.spend(6000))
  }
  assert.ok(units <= 61 * 25_000 + 6000, `${units}`)
})
