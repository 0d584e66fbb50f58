/**
 * How much of the daemon's time one guest may take. Credit bounds the bytes of streams; events, empty frames and bare zeros cost
 * none, and each takes some microseconds to look at. A guest that sends more of them than anyone needs is read more slowly.
 */
const PER_SECOND = 25_000
const BURST = 25_000

export class Pace {
  readonly #now: () => number
  #left = BURST
  #at: number

  /** `now` in milliseconds; for tests. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now
    this.#at = now()
  }

  /** Takes note of work that was done. Returns the milliseconds to wait before more is taken; mostly 0. */
  spend(units: number): number {
    const now = this.#now()
    this.#left = Math.min(BURST, this.#left + ((now - this.#at) * PER_SECOND) / 1000) - units
    this.#at = now
    return this.#left >= 0 ? 0 : Math.ceil((-this.#left * 1000) / PER_SECOND)
  }
}
