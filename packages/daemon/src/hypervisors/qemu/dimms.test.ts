import assert from 'node:assert/strict'
import { test } from 'node:test'
import { assertSane, type Dimm, planDimms } from './dimms.ts'

const MB = 2 ** 20
const dimm = (slot: number, megabytes: number): Dimm => ({ slot, address: 2 ** 32 + slot * 2 ** 30, bytes: megabytes * MB })
const plan = (dimms: readonly Dimm[], megabytes: number) => {
  const { more, gone, slot } = planDimms(dimms, megabytes * MB)
  return [more / MB, gone.map((one) => one.slot), slot]
}

test('the oldest pieces stay, what is missing comes as one, and the newest goes first', () => {
  assert.deepEqual(plan([], 256), [256, [], 0])
  assert.deepEqual(plan([dimm(0, 256)], 512), [256, [], 1])
  assert.deepEqual(plan([dimm(0, 256), dimm(1, 256)], 0), [0, [1, 0], 2])
  assert.deepEqual(plan([dimm(0, 256), dimm(2, 256)], 384), [128, [2], 1])
  assert.deepEqual(plan([dimm(1, 512)], 512), [0, [], 0])
  assert.deepEqual(
    plan(
      Array.from({ length: 8 }, (_, slot) => dimm(slot, 128)),
      2048,
    ),
    [1024, [], undefined],
  )
})

test('what cannot be right is believed of no one', () => {
  assertSane([dimm(0, 128), dimm(7, 1024)])
  const wrong = [
    [dimm(8, 128)],
    [dimm(0, 100)],
    [dimm(0, 0)],
    [dimm(0, 128), dimm(0, 128)],
    [{ ...dimm(0, 128), address: -1 }],
    [{ ...dimm(0, 128), slot: 0.5 }],
    [{ ...dimm(0, 128), bytes: Number.NaN }],
    Array.from({ length: 5 }, (_, slot) => dimm(slot, 8192)),
  ]
  for (const dimms of wrong) assert.throws(() => assertSane(dimms), { code: 'snapshot_unusable' }, JSON.stringify(dimms))
})
