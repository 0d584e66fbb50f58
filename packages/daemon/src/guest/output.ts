import { Readable } from 'node:stream'

// Credit goes back in steps of this, and whenever nothing waits here.
const CREDIT_STEP = 16384

/** Bytes out of the guest, at the pace of whoever reads here: the guest may only send what was read, plus the window. */
export class Output extends Readable {
  readonly #repay: (bytes: number) => void
  readonly #window: number
  #received = 0
  #repaid = 0
  #ended = false

  constructor(window: number, repay: (bytes: number) => void) {
    super({ highWaterMark: window })
    this.#window = window
    this.#repay = repay
  }

  /** False when the guest sends more than it may, or after its end. */
  receive(bytes: Buffer, isEnd: boolean): boolean {
    if (this.#ended || this.#received + bytes.length - this.#repaid > this.#window) return false
    this.#received += bytes.length
    if (bytes.length > 0 && !this.destroyed) this.push(bytes)
    if (isEnd) this.finish()
    this.#settle()
    return true
  }

  /** No more comes. Repeat is harmless. */
  finish(): void {
    if (this.#ended) return
    this.#ended = true
    if (!this.destroyed) this.push(null)
  }

  override _read(): void {}

  /** Everything that is read passes here, or is handed on at once by `push`. */
  override read(size?: number): unknown {
    const chunk = super.read(size)
    this.#settle()
    return chunk
  }

  #settle(): void {
    // Whoever destroyed the stream wants none of it; the guest must not stand still for that.
    const waiting = this.destroyed ? 0 : this.readableLength
    const owed = this.#received - waiting - this.#repaid
    if (this.#ended || owed === 0 || (owed < CREDIT_STEP && waiting > 0)) return
    this.#repaid += owed
    this.#repay(owed)
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.#settle()
    callback(error)
  }
}
