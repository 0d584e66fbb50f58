/** How many bytes may be on their way to a caller who says what he has taken. Without a window there is no limit but the connection's. */
export class StreamCredit {
  readonly #window: number
  #left: number
  #isClosed = false
  #wake: (() => void) | undefined

  constructor(window: number | undefined) {
    this.#window = window ?? Number.POSITIVE_INFINITY
    this.#left = this.#window
  }

  /** Waits until something may be sent, and takes up to `wanted` of it. After `close` everything may, since it goes nowhere. One waits at a time. */
  async take(wanted: number): Promise<number> {
    while (this.#left <= 0 && !this.#isClosed) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    if (this.#isClosed) return wanted
    const taken = Math.min(wanted, this.#left)
    this.#left -= taken
    return taken
  }

  /** For what is sent as a whole: the window may be overdrawn by that once. */
  async takeWhole(size: number): Promise<void> {
    await this.take(0)
    this.#left -= size
  }

  /** A caller who grants more than was sent gets no more than his window by it. */
  grant(bytes: number): void {
    this.#left = Math.min(this.#window, this.#left + bytes)
    this.#wake?.()
  }

  /** The caller has gone. */
  close(): void {
    this.#isClosed = true
    this.#wake?.()
  }
}
