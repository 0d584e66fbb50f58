import type { Clock } from './clock.ts'

/** For tests: time that passes when it is told to, and a wall clock that can be set. */
export class FakeClock implements Clock {
  #passedMs = 5_000_000
  #wallMs: number
  readonly #timers = new Set<{ readonly atMs: number; readonly then: () => void }>()

  constructor(startsAt: string) {
    this.#wallMs = Date.parse(startsAt)
  }

  passed(): number {
    return this.#passedMs
  }
  wall(): number {
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
    for (;;) {
      const [next] = [...this.#timers].filter(({ atMs }) => atMs <= endMs).sort((a, b) => a.atMs - b.atMs)
      if (next === undefined) break
      this.#move(next.atMs)
      this.#timers.delete(next)
      next.then()
      await rest()
    }
    this.#move(endMs)
    await rest()
  }

  #move(toMs: number): void {
    this.#wallMs += toMs - this.#passedMs
    this.#passedMs = toMs
  }
}

/** Nothing here waits for more than promises that follow one another. */
async function rest(): Promise<void> {
  for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve))
}
