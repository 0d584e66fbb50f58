import assert from 'node:assert/strict'
import { test } from 'node:test'
import { RefusedCallers } from './refused-callers.ts'

test('twenty at once and one in three seconds, for each address', () => {
  let now = 0
  const refused = new RefusedCallers(() => now)
  const waits = (address: string): boolean => refused.note(address).retryAfterSeconds !== undefined
  for (let n = 0; n < 20; n++) assert.equal(waits('192.0.2.1'), false)
  assert.equal(waits('192.0.2.1'), true)
  assert.equal(waits('192.0.2.2'), false)
  now += 3000
  assert.deepEqual([waits('192.0.2.1'), waits('192.0.2.1')], [false, true])
  // A clock that goes back fills nothing up and breaks nothing.
  now -= 1_000_000
  assert.equal(waits('192.0.2.1'), true)
})

test('a /64 of IPv6 is one address, however it is written', () => {
  const refused = new RefusedCallers(() => 0)
  for (let n = 0; n < 20; n++) refused.note(`2001:db8:0:1::${n.toString(16)}`)
  assert.notEqual(refused.note('2001:db8::1:ffff:0:0:1').retryAfterSeconds, undefined)
  assert.equal(refused.note('2001:db8:0:2::1').retryAfterSeconds, undefined)
  for (let n = 0; n < 20; n++) refused.note('::ffff:192.0.2.9')
  assert.notEqual(refused.note('192.0.2.9').retryAfterSeconds, undefined)
})

test('all addresses together cannot have more than a bounded number written down', () => {
  const refused = new RefusedCallers(() => 0)
  let written = 0
  for (let n = 0; n < 30_000; n++) if (refused.note(`10.0.${n >> 8}.${n & 255}`).isToBeWrittenDown) written++
  assert.equal(written, 200)
})
