import assert from 'node:assert/strict'
import { EventEmitter } from 'node:events'
import { type TestContext, test } from 'node:test'
import type { WebSocket } from '@fastify/websocket'
import { WebSocketPeer } from './web-socket-peer.ts'

/** A socket whose other side does as the test tells it. */
class FakeSocket extends EventEmitter {
  readonly OPEN = 1
  readyState = 1
  bufferedAmount = 0
  pings = 0
  isPaused = false
  readonly pongs: Buffer[] = []
  readonly #unread: (() => void)[] = []

  ping(): void {
    this.pings++
  }
  pong(data: Buffer): void {
    this.pongs.push(data)
  }
  send(data: Uint8Array, sent: () => void): void {
    this.bufferedAmount += data.length
    this.#unread.push(sent)
  }
  /** The other side reads all that waits. */
  read(): void {
    this.bufferedAmount = 0
    for (const sent of this.#unread.splice(0)) sent()
  }
  pause(): void {
    this.isPaused = true
  }
  resume(): void {
    this.isPaused = false
  }
  close(): void {
    this.terminate()
  }
  terminate(): void {
    this.readyState = 3
    this.emit('close')
  }
}

const TURN_MS = 20_000

function meet(t: TestContext) {
  t.mock.timers.enable({ apis: ['setInterval'] })
  const socket = new FakeSocket()
  const peer = new WebSocketPeer(socket as unknown as WebSocket)
  return { socket, peer, turn: (count = 1) => t.mock.timers.tick(count * TURN_MS) }
}

test('a peer that answers no ping is dropped', (t) => {
  const { socket, peer, turn } = meet(t)
  for (let n = 1; n < 10; n++) {
    turn()
    assert.equal(socket.pings, n)
    socket.emit('pong')
  }
  turn()
  assert.equal(peer.gone.aborted, false)
  turn()
  assert.equal(peer.gone.aborted, true)
})

test('a peer that has something left to read may be slow to answer, for an hour', async (t) => {
  const { socket, peer, turn } = meet(t)
  await peer.send(Buffer.alloc(1))
  turn(170)
  assert.equal(peer.gone.aborted, false)
  // One ping at a time: they would be something to read too.
  assert.equal(socket.pings, 1)
  socket.emit('pong')
  turn()
  turn()
  assert.equal(peer.gone.aborted, true, 'all was read, and the next ping not answered')
})

test('a peer that reads nothing for an hour is dropped, one that reads slowly is not', async (t) => {
  const { socket, peer, turn } = meet(t)
  for (let n = 0; n < 5; n++) {
    const sent = peer.send(Buffer.alloc(300 * 1024))
    turn(170)
    socket.read()
    await sent
  }
  void peer.send(Buffer.alloc(300 * 1024))
  turn(181)
  assert.equal(peer.gone.aborted, true)
})

test('a peer that is not read need not answer', (t) => {
  const { socket, peer, turn } = meet(t)
  socket.emit('message', Buffer.alloc(300 * 1024), true)
  assert.equal(socket.isPaused, true)
  turn(1000)
  assert.equal(peer.gone.aborted, false)
  assert.equal(socket.pings, 1000, 'by which the kernel finds out whether there is still anyone')
})

test('a ping is answered, unless answers are not read', (t) => {
  const { socket, peer } = meet(t)
  socket.emit('ping', Buffer.from('a'))
  void peer.send(Buffer.alloc(300 * 1024))
  socket.emit('ping', Buffer.from('b'))
  assert.deepEqual(socket.pongs.map(String), ['a'])
  peer.close()
})

test('what waits to be read is bounded, frames without bytes too', async (t) => {
  const { socket, peer } = meet(t)
  let count = 0
  while (!socket.isPaused) {
    socket.emit('message', Buffer.alloc(0), true)
    count++
  }
  assert.ok(count <= 1024)
  for (let n = 0; n < count; n++) await peer.next()
  assert.equal(socket.isPaused, false)
  peer.close()
})
