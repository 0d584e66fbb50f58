import type { Clock } from './clock.ts'

/** For tests: time that passes when it is told to, and a wall clock that can be set. */
export class FakeClock implements Clock {
  #wallMs: number
  #passedMs = 0
  readonly #timers = new Set<{ readonly atMs: number; readonly then: () => void }>()

  constructor(startsAt: string) {
    this.#wallMs = Date.parse(startsAt)
  }

  now(): number {
    return this.#wallMs
  }

  after(ms: number, then: () => void): Disposable {
    const timer = { atMs: this.#passedMs + ms, then }
    this.#timers.add(timer)
    return { [Symbol.dispose]: () => this.#timers.delete(timer) }
  }

  /** Sets the wall clock; no time passes. */
  jump(ms: number): void {
    this.#wallMs += ms
  }

  /** Lets time pass, with all that happens in it. Resolves when everything that needs no more time has come to rest. */
  async pass(ms: number): Promise<void> {
    const endMs = this.#passedMs + ms
    await rest()
    for (let next = this.#next(endMs); next !== undefined; next = this.#next(endMs)) {
      this.#move(next.atMs)
      this.#timers.delete(next)
      next.then()
      await rest()
    }
    this.#move(endMs)
  }

  #next(endMs: number) {
    return [...this.#timers].filter(({ atMs }) => atMs <= endMs).sort((a, b) => a.atMs - b.atMs)[0]
  }

  #move(toMs: number): void {
    this.#wallMs += toMs - this.#passedMs
    this.#passedMs = toMs
  }
}

const rest = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))
