/** What is to be done when, for very many at once with one timer. Times are spans from now: the wall clock's jumps do not touch them. */

export interface Passing {
  /** Milliseconds that only grow. */
  now(): number
  /** Calls `then` once, unless it is disposed of first. */
  after(ms: number, then: () => void): Disposable
}

export const hostPassing: Passing = {
  now: () => performance.now(),
  after: (ms, then) => {
    const timer = setTimeout(then, ms).unref()
    return { [Symbol.dispose]: () => clearTimeout(timer) }
  },
}

interface Entry {
  readonly atMs: number
  readonly act: () => void
}

// Those that are due within it are done together.
const GRAIN_MS = 25
// What a timer of Node takes; who waits for longer is looked at once meanwhile.
const LONGEST_MS = 2 ** 31 - 1

export class Agenda<Key> implements Disposable {
  readonly #passing: Passing
  readonly #entries = new Map<Key, Entry>()
  #timer: Disposable | undefined
  /** When it fires; never, without a timer. */
  #firesAtMs = Number.POSITIVE_INFINITY

  constructor(passing: Passing = hostPassing) {
    this.#passing = passing
  }

  /** Has `act` called once, `inMs` from now or a little later, in place of what was set for the key before. It must not throw. */
  set(key: Key, inMs: number, act: () => void): void {
    const atMs = this.#passing.now() + Math.max(0, inMs)
    this.#entries.set(key, { atMs, act })
    if (atMs < this.#firesAtMs) this.#arm(atMs)
  }

  has(key: Key): boolean {
    return this.#entries.has(key)
  }

  /** Repeat is harmless. */
  clear(key: Key): void {
    this.#entries.delete(key)
  }

  [Symbol.dispose](): void {
    this.#entries.clear()
    this.#timer?.[Symbol.dispose]()
    this.#timer = undefined
    this.#firesAtMs = Number.POSITIVE_INFINITY
  }

  #arm(atMs: number): void {
    this.#timer?.[Symbol.dispose]()
    const inMs = Math.min(LONGEST_MS, Math.max(0, atMs - this.#passing.now()))
    this.#timer = this.#passing.after(Math.ceil(inMs / GRAIN_MS) * GRAIN_MS, () => this.#fire())
    this.#firesAtMs = atMs
  }

  #fire(): void {
    this.#timer = undefined
    this.#firesAtMs = Number.POSITIVE_INFINITY
    const nowMs = this.#passing.now()
    const due = [...this.#entries].filter(([, { atMs }]) => atMs <= nowMs)
    for (const [key, { atMs, act }] of due.sort(([, a], [, b]) => a.atMs - b.atMs)) {
      // One of those before it may have set it anew, or cleared it.
      if (this.#entries.get(key)?.atMs !== atMs) continue
      this.#entries.delete(key)
      act()
    }
    const next = Math.min(Number.POSITIVE_INFINITY, ...[...this.#entries.values()].map(({ atMs }) => atMs))
    if (next < this.#firesAtMs) this.#arm(next)
  }
}
