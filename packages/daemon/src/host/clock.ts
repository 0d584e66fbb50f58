/** Time that only passes, for what is waited for, and the wall's, for what is shown and written down. Tests bring their own. */
export interface Clock {
  /** Milliseconds since some moment; no one sets it. */
  passed(): number
  wall(): number
  /** Calls `then` once, unless it is disposed of first. */
  after(ms: number, then: () => void): Disposable
}

export const hostClock: Clock = {
  passed: () => performance.now(),
  wall: Date.now,
  after: (ms, then) => {
    const timer = setTimeout(then, ms).unref()
    return { [Symbol.dispose]: () => clearTimeout(timer) }
  },
}
