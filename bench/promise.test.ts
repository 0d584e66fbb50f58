import assert from 'node:assert/strict'
import { test } from 'node:test'
import { atLeastTimesFaster, atMost, atMostAboveAnchor, outcomeOf, percentileOf } from './promise.ts'

test('the median of an even number of figures lies between the middle two', () => {
  assert.equal(percentileOf([4, 1, 3, 2], 50), 2.5)
  assert.equal(percentileOf([5], 99), 5)
})

test('a promise against an anchor is judged by the medians and says the ratio', () => {
  const outcome = outcomeOf({ id: 'x', what: '', unit: 'ms', target: atLeastTimesFaster(6), ours: [10, 90, 11], anchor: [60, 66, 70] })
  assert.deepEqual([outcome.ours, outcome.anchor, outcome.ratio, outcome.met, outcome.runs], [11, 66, 6, true, 3])
})

test('an absolute promise has no anchor and no ratio', () => {
  const outcome = outcomeOf({ id: 'x', what: '', unit: 'MiB', target: atMost(150, 'MiB'), ours: [151] })
  assert.deepEqual([outcome.anchor, outcome.ratio, outcome.met], [null, null, false])
})

test('a promise of cost looks at the difference', () => {
  const target = atMostAboveAnchor(5, 'ms')
  assert.equal(target.holds(104, 100), true)
  assert.equal(target.holds(106, 100), false)
})
