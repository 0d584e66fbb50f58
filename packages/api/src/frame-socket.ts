/** A WebSocket of the API for who has only the standard one: frames out at the pace of the connection, frames in one by one. */
import { AppError } from './errors.ts'
import { pause } from './pause.ts'
import { FRAME_MAX } from './streams.ts'
import type { WebSocketLike } from './web-transport.ts'

export type Frame = { readonly kind: 'text'; readonly text: string } | { readonly kind: 'bytes'; readonly bytes: Uint8Array }

const OPEN = 1
/** Bytes that may wait in the WebSocket. The standard has no event for when they have gone, so it is looked at again. */
const WAITING_MAX = 1024 * 1024
const LOOK_AGAIN_MS = 5

export class FrameSocket {
  readonly #socket: WebSocketLike
  readonly #frames: Frame[] = []
  readonly #opened = Promise.withResolvers<void>()
  readonly #signal: AbortSignal | undefined
  readonly #onAbort = () => this.close()
  #isClosed = false
  #wake: (() => void) | undefined

  private constructor(socket: WebSocketLike, signal: AbortSignal | undefined) {
    this.#socket = socket
    this.#signal = signal
    this.#opened.promise.catch(() => undefined)
    signal?.addEventListener('abort', this.#onAbort, { once: true })
    socket.binaryType = 'arraybuffer'
    socket.onopen = () => this.#opened.resolve()
    socket.onmessage = (event: { data: string | ArrayBuffer | Uint8Array }) => this.#receive(event.data)
    socket.onerror = () => this.#close()
    socket.onclose = () => this.#close()
  }

  /** Resolves once it is open; undefined when it could not be: a standard WebSocket does not say why. `signal` hangs up at any time. */
  static async open(socket: WebSocketLike, signal: AbortSignal | undefined): Promise<FrameSocket | undefined> {
    const own = new FrameSocket(socket, signal)
    if (signal?.aborted) own.#onAbort()
    const isOpen = await own.#opened.promise.then(
      () => true,
      () => false,
    )
    signal?.throwIfAborted()
    return isOpen ? own : undefined
  }

  /** The next frame; undefined once the connection has ended and everything was taken. Throws the signal's reason. One asks at a time. */
  async next(): Promise<Frame | undefined> {
    while (this.#frames.length === 0 && !this.#isClosed) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    this.#signal?.throwIfAborted()
    return this.#frames.shift()
  }

  sendJson(value: unknown): void {
    if (this.#socket.readyState === OPEN) this.#socket.send(JSON.stringify(value))
  }

  /** Bytes of any length, cut to frames. Resolves when the next may come; what is sent after the end goes nowhere. */
  async sendBytes(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length && this.#socket.readyState === OPEN; at += FRAME_MAX) {
      this.#socket.send(bytes.subarray(at, at + FRAME_MAX) as Uint8Array<ArrayBuffer>)
      while (this.#socket.bufferedAmount > WAITING_MAX && this.#socket.readyState === OPEN) await pause(LOOK_AGAIN_MS)
    }
  }

  /** Hangs up. Repeat is harmless. */
  close(): void {
    this.#socket.close()
    this.#close()
  }

  #receive(data: string | ArrayBuffer | Uint8Array): void {
    if (this.#isClosed) return
    if (typeof data === 'string') this.#frames.push({ kind: 'text', text: data })
    else this.#frames.push({ kind: 'bytes', bytes: new Uint8Array(data as ArrayBuffer) })
    this.#wake?.()
  }

  #close(): void {
    this.#isClosed = true
    this.#signal?.removeEventListener('abort', this.#onAbort)
    this.#opened.reject(undefined)
    this.#wake?.()
  }
}

/** What a text frame says; undefined when it is no object. */
export function noticeOf<Notice extends object>(text: string): Notice | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null ? (value as Notice) : undefined
  } catch {
    return undefined
  }
}

export const cutOff = (what: string): AppError =>
  new AppError('guest_unavailable', `The connection ended before ${what}`, { hint: 'Is the daemon still there? dormouse version' })
