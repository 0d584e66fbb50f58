/**
 * Things that are made once, however many want them at the same time, and let go when the last one has. The making does not end
 * with the one who began it.
 */
export class SharedHolds<T> implements AsyncDisposable {
  readonly #letGo: (value: T) => Promise<void>
  readonly #held = new Map<string, { users: number; readonly value: Promise<T> }>()

  constructor(letGo: (value: T) => Promise<void>) {
    this.#letGo = letGo
  }

  async hold(key: string, make: () => Promise<T>): Promise<{ readonly value: T } & Disposable> {
    let entry = this.#held.get(key)
    if (entry === undefined) {
      entry = { users: 0, value: make() }
      this.#held.set(key, entry)
    }
    const mine = entry
    mine.users++
    let isHeld = true
    const release = (): void => {
      if (!isHeld) return
      isHeld = false
      if (--mine.users > 0) return
      if (this.#held.get(key) === mine) this.#held.delete(key)
      mine.value.then(this.#letGo).catch(() => undefined)
    }
    try {
      return { value: await mine.value, [Symbol.dispose]: release }
    } catch (error) {
      release()
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const all = [...this.#held.values()]
    this.#held.clear()
    for (const { value } of all) await value.then(this.#letGo).catch(() => undefined)
  }
}
