/** Wall time, and a timer that the wall clock's jumps do not touch. Tests bring their own. */
export interface Clock {
  now(): number
  /** Calls `then` once, unless it is disposed of first. */
  after(ms: number, then: () => void): Disposable
}

export const hostClock: Clock = {
  now: Date.now,
  after: (ms, then) => {
    const timer = setTimeout(then, ms).unref()
    return { [Symbol.dispose]: () => clearTimeout(timer) }
  },
}
