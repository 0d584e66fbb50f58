/**
 * What one reader of a log has read, kept for a moment for the others: many who follow one log stand at the same place of it most of
 * the time, and one read, one decoding (and one encoding, by whoever keeps that for the batch) do for all of them. Only whole lines
 * that begin and end at a line's border are shared; whoever lags behind reads on his own.
 */
export interface SharedRead {
  readonly batch: { readonly lines: readonly string[]; readonly place: string }
  /** Where the next line begins. */
  readonly next: number
}

/** At most 16 KiB of a log each, and what it becomes when it is sent. */
const KEPT_MAX = 32

export class SharedReads {
  readonly #kept = new Map<string, Promise<SharedRead | undefined>>()

  /** `read` is asked unless another has read there; undefined is what no one else can use. */
  async at(generation: string, offset: number, read: () => Promise<SharedRead | undefined>): Promise<SharedRead | undefined> {
    const key = `${generation}-${offset}`
    const known = this.#kept.get(key)
    if (known !== undefined) return known
    const reading = read()
    this.#kept.set(key, reading)
    const oldest = this.#kept.keys().next()
    if (this.#kept.size > KEPT_MAX && !oldest.done) this.#kept.delete(oldest.value)
    try {
      const found = await reading
      if (found === undefined && this.#kept.get(key) === reading) this.#kept.delete(key)
      return found
    } catch (error) {
      if (this.#kept.get(key) === reading) this.#kept.delete(key)
      throw error
    }
  }

  /** The file was cut: what was read of it is no more. */
  forget(): void {
    this.#kept.clear()
  }
}
