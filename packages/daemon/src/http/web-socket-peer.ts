import type { EventEmitter } from 'node:events'
import type { WebSocket } from '@fastify/websocket'
import { type FrameShare, TEXT_FRAME_MAX } from './frame-room.ts'

export interface Frame {
  readonly isText: boolean
  readonly data: Buffer
}

/** Bytes of frames that may wait for their reader; beyond it the socket is not read. */
const INBOX_MAX = 256 * 1024
/** What holding a frame costs beside its bytes: those without any are not for nothing. */
const FRAME_COST = 512
/** Bytes that a socket may hold of frames without asking for room: those that wait, and what is read with them. */
const HELD_FREELY = 512 * 1024
/** Bytes that may wait for the peer; beyond it `send` waits. */
const OUTBOX_MAX = 256 * 1024
const PING_MS = 20_000
/** An hour: so long a peer may leave unread what was sent to it, who then cannot see the pings that lie behind it. */
const STALLED_TURNS_MAX = 180

export interface PeerOptions {
  readonly pingMs?: number
  /** What the socket reads from: tells of bytes that are no whole frame yet. */
  readonly transport?: EventEmitter
  readonly room?: FrameShare
}

/**
 * One WebSocket with backpressure both ways: frames are read as fast as `frames()` is, and `send` waits for a slow peer. A peer
 * that answers no ping is dropped; one that may only be behind in reading, a pager at a terminal, after an hour. `gone` fires once the
 * socket has closed for any reason. It must have been made without answers of its own to pings (`autoPong`).
 */
export class WebSocketPeer implements Disposable {
  readonly #socket: WebSocket
  readonly #gone = new AbortController()
  readonly #inbox: Frame[] = []
  readonly #ping: NodeJS.Timeout
  readonly #room: FrameShare | undefined
  #inboxBytes = 0
  /** Of a frame that is not whole. */
  #arrivingBytes = 0
  /** Of the frame that was taken last, which is passed on until the next is asked for. */
  #inHandBytes = 0
  #isPaused = false
  /** Turns of the ping in which nothing was heard of the peer. */
  #quietTurns = 0
  #isPinged = false
  #hasSentSincePing = false
  #mayBeBehind = false
  #wake: (() => void) | undefined

  constructor(socket: WebSocket, options: PeerOptions = {}) {
    this.#socket = socket
    this.#room = options.room
    options.transport?.on('data', (bytes: Buffer) => this.#noteArrival(bytes.length))
    socket.on('message', (data: Buffer, isBinary: boolean) => this.#receive({ isText: !isBinary, data }))
    socket.on('pong', () => {
      this.#hear()
      this.#isPinged = false
      // What went before the ping was read.
      this.#mayBeBehind = this.#hasSentSincePing
    })
    // A peer that asks and does not read must not fill memory with answers.
    socket.on('ping', (data: Buffer) => {
      this.#hear()
      if (socket.bufferedAmount < OUTBOX_MAX) socket.pong(data)
    })
    socket.on('error', () => socket.terminate())
    socket.on('close', () => {
      clearInterval(this.#ping)
      this.#room?.hold(0)
      this.#gone.abort()
      this.#wake?.()
    })
    this.#ping = setInterval(() => this.#checkAlive(), options.pingMs ?? PING_MS)
    this.#ping.unref()
  }

  get gone(): AbortSignal {
    return this.#gone.signal
  }

  /** The next frame; undefined once the peer has gone, or after `withinMs`. */
  async next(withinMs?: number): Promise<Frame | undefined> {
    this.#inHandBytes = 0
    this.#holdRoom()
    const deadline = withinMs === undefined ? undefined : setTimeout(() => this.#wake?.(), withinMs)
    try {
      if (this.#inbox.length === 0 && !this.gone.aborted) {
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
        this.#wake = undefined
      }
      return this.#take()
    } finally {
      clearTimeout(deadline)
    }
  }

  async *frames(): AsyncGenerator<Frame> {
    for (let frame = await this.next(); frame !== undefined; frame = await this.next()) yield frame
  }

  /** Resolves when little enough waits for the peer. What cannot be sent any more is dropped: `gone` tells. */
  async send(data: string | Uint8Array): Promise<void> {
    if (this.#socket.readyState !== this.#socket.OPEN) return
    this.#hasSentSincePing = true
    this.#mayBeBehind = true
    const sent = new Promise<void>((resolve) => this.#socket.send(data, () => resolve()))
    if (this.#socket.bufferedAmount <= OUTBOX_MAX) return
    await sent
    // It has made room.
    this.#hear()
  }

  sendJson(value: unknown): Promise<void> {
    return this.send(JSON.stringify(value))
  }

  /** Lets the peer hang up first, for a while. Resolves when it has. */
  async leave(withinMs: number): Promise<void> {
    if (this.gone.aborted) return
    const limit = AbortSignal.any([this.gone, AbortSignal.timeout(withinMs)])
    await new Promise((resolve) => limit.addEventListener('abort', resolve, { once: true }))
  }

  close(code = 1000, reason = ''): void {
    // A paused socket would never read the peer's own close frame.
    this.#resume()
    this.#socket.close(code, reason)
  }

  [Symbol.dispose](): void {
    if (this.#socket.readyState === this.#socket.OPEN) this.close()
  }

  #receive(frame: Frame): void {
    this.#hear()
    this.#arrivingBytes = 0
    if (frame.isText && frame.data.length > TEXT_FRAME_MAX) {
      this.#refuse(1009, 'this text frame is too large')
      return
    }
    this.#inbox.push(frame)
    this.#inboxBytes += frame.data.length + FRAME_COST
    if (this.#inboxBytes > INBOX_MAX && !this.#isPaused) {
      this.#isPaused = true
      this.#socket.pause()
    }
    this.#wake?.()
  }

  #take(): Frame | undefined {
    const frame = this.#inbox.shift()
    if (frame) {
      this.#inboxBytes -= frame.data.length + FRAME_COST
      this.#inHandBytes = frame.data.length
    }
    if (this.#inboxBytes <= INBOX_MAX / 2) this.#resume()
    return frame
  }

  /** Between the pieces of a frame no pong can come: they show as well that the peer is there. */
  #noteArrival(bytes: number): void {
    this.#hear()
    this.#arrivingBytes += bytes
    if (!this.#holdRoom()) this.#refuse(1013, 'too much of large frames is on its way; try again later')
  }

  #holdRoom(): boolean {
    if (this.#room === undefined || this.gone.aborted) return true
    const held = this.#arrivingBytes + this.#inboxBytes + this.#inHandBytes
    return this.#room.hold(Math.max(0, held - HELD_FREELY))
  }

  /** What else is on its way is not read: it would take memory until the peer has hung up. */
  #refuse(code: number, reason: string): void {
    this.#socket.close(code, reason)
    this.#socket.terminate()
  }

  #resume(): void {
    if (!this.#isPaused) return
    this.#isPaused = false
    this.#socket.resume()
  }

  #hear(): void {
    this.#quietTurns = 0
  }

  #checkAlive(): void {
    // Nothing can be heard of a peer that is not read. One that has gone is found out by the ping, which the kernel cannot deliver.
    if (this.#isPaused) this.#hear()
    this.#quietTurns++
    const limit = this.#mayBeBehind ? STALLED_TURNS_MAX : 1
    if (this.#quietTurns > limit) {
      this.#socket.terminate()
      return
    }
    if (this.#isPinged && !this.#isPaused) return
    this.#isPinged = true
    this.#hasSentSincePing = false
    this.#socket.ping()
  }
}
