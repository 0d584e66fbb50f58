/** Work in the order in which it was asked for, a few at a time. Who waits can be told their place. */
export class WorkQueue<K> {
  readonly #limit: number
  readonly #running = new Set<K>()
  readonly #waiting: { key: K; start: () => void }[] = []

  constructor(limit: number) {
    this.#limit = limit
  }

  /** Runs `work` when it is its turn; `key` must not be in the queue. */
  async run<T>(key: K, work: () => Promise<T>): Promise<T> {
    if (this.#running.size < this.#limit) this.#running.add(key)
    else await new Promise<void>((start) => this.#waiting.push({ key, start }))
    try {
      return await work()
    } finally {
      this.#running.delete(key)
      const next = this.#waiting.shift()
      if (next) {
        this.#running.add(next.key)
        next.start()
      }
    }
  }

  /** From 1; undefined when `key` does not wait. */
  positionOf(key: K): number | undefined {
    const index = this.#waiting.findIndex((one) => one.key === key)
    return index < 0 ? undefined : index + 1
  }
}
