import { Writable } from 'node:stream'
import { FRAME_PAYLOAD_MAX, WINDOW_MAX } from './wire.ts'

/** Bytes into the guest, at the pace at which it grants credit. */
export class Input extends Writable {
  readonly #send: (bytes: Uint8Array, isEnd: boolean) => void
  #credit = 0
  #waiting: { readonly rest: Buffer; readonly done: () => void } | undefined

  constructor(send: (bytes: Uint8Array, isEnd: boolean) => void) {
    super({ highWaterMark: FRAME_PAYLOAD_MAX })
    this.#send = send
  }

  /** False when the guest grants more than anyone could. */
  grant(bytes: number): boolean {
    this.#credit += bytes
    if (this.#credit > WINDOW_MAX) return false
    this.#push()
    return true
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.#waiting = { rest: chunk, done }
    this.#push()
  }

  override _final(done: () => void): void {
    this.#send(Buffer.alloc(0), true)
    done()
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    const waiting = this.#waiting
    this.#waiting = undefined
    callback(error)
    waiting?.done()
  }

  #push(): void {
    while (this.#waiting && this.#credit > 0) {
      const { rest, done } = this.#waiting
      const part = rest.subarray(0, Math.min(this.#credit, FRAME_PAYLOAD_MAX))
      const left = rest.subarray(part.length)
      // Before it is sent: the answer may come from within.
      this.#credit -= part.length
      this.#waiting = left.length > 0 ? { rest: left, done } : undefined
      this.#send(part, false)
      if (left.length === 0) done()
    }
  }
}
