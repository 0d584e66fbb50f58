import type { WebSocket } from '@fastify/websocket'

export interface Frame {
  readonly isText: boolean
  readonly data: Buffer
}

/** Frames that may wait for their reader; beyond it the socket is not read. */
const INBOX_MAX = 256 * 1024
/** Bytes that may wait for the peer; beyond it `send` waits. */
const OUTBOX_MAX = 256 * 1024
const PING_MS = 20_000

/**
 * One WebSocket with backpressure both ways: frames are read as fast as `frames()` is, and `send` waits for a slow peer. A peer
 * that answers no ping is dropped. `gone` fires once the socket has closed for any reason.
 */
export class WebSocketPeer implements Disposable {
  readonly #socket: WebSocket
  readonly #gone = new AbortController()
  readonly #inbox: Frame[] = []
  readonly #ping: NodeJS.Timeout
  #inboxBytes = 0
  #isPaused = false
  #isAlive = true
  #wake: (() => void) | undefined

  constructor(socket: WebSocket, options: { pingMs?: number } = {}) {
    this.#socket = socket
    socket.on('message', (data: Buffer, isBinary: boolean) => this.#receive({ isText: !isBinary, data }))
    socket.on('pong', () => {
      this.#isAlive = true
    })
    socket.on('error', () => socket.terminate())
    socket.on('close', () => {
      clearInterval(this.#ping)
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
    const sent = new Promise<void>((resolve) => this.#socket.send(data, () => resolve()))
    if (this.#socket.bufferedAmount > OUTBOX_MAX) await sent
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
    this.#inbox.push(frame)
    this.#inboxBytes += frame.data.length
    if (this.#inboxBytes > INBOX_MAX && !this.#isPaused) {
      this.#isPaused = true
      this.#socket.pause()
    }
    this.#wake?.()
  }

  #take(): Frame | undefined {
    const frame = this.#inbox.shift()
    if (frame) this.#inboxBytes -= frame.data.length
    if (this.#inboxBytes <= INBOX_MAX / 2) this.#resume()
    return frame
  }

  #resume(): void {
    if (!this.#isPaused) return
    this.#isPaused = false
    this.#socket.resume()
  }

  #checkAlive(): void {
    // Its pong may wait behind frames that are not read.
    if (!this.#isAlive && !this.#isPaused) {
      this.#socket.terminate()
      return
    }
    this.#isAlive = false
    this.#socket.ping()
  }
}
