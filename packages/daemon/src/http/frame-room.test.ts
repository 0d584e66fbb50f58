import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FrameRoom } from './frame-room.ts'

test('room is one for all sockets, and a part of it for those of one instance', () => {
  const room = new FrameRoom({ inAll: 100, inOne: 60 })
  const [a, again, b] = [room.shareOf('a'), room.shareOf('a'), room.shareOf('b')]
  assert.ok(a.hold(50))
  assert.equal(again.hold(11), false)
  assert.ok(again.hold(10))
  assert.equal(b.hold(41), false)
  assert.ok(b.hold(40))
  // What is refused changes nothing, and less is never refused.
  assert.equal(a.hold(51), false)
  assert.ok(a.hold(20))
  assert.ok(again.hold(40))
  for (const share of [a, again, b]) assert.ok(share.hold(0))
  assert.ok(b.hold(60))
})
