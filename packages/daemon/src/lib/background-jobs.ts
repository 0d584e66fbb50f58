/**
 * Work that no one waits for, one at a time, each under a key. A job prepares first, which may take long and can be cancelled, and then
 * commits. Who cancels it is told when nothing prepares any more: a commit that comes later has to look whether it still may.
 */
export type Commit = () => Promise<void>

export interface Job {
  readonly prepare: (signal: AbortSignal) => Promise<Commit | undefined>
  /** It does not begin before. */
  readonly notBeforeMs?: number
  /** Not told when it was cancelled. Must not throw. */
  readonly onError: (error: unknown) => void
  /** Done, failed, or there was nothing to do; not told when it was cancelled. What it throws `onError` is told. */
  readonly onSettled?: () => void
}

/** A timer of Node that is told more fires at once. */
const LONGEST_WAIT_MS = 24 * 24 * 3_600_000

export class BackgroundJobs implements AsyncDisposable {
  readonly #jobs = new Map<string, AbortController>()
  #preparing: { readonly key: string; readonly done: Promise<unknown> } | undefined
  #turn: Promise<void> = Promise.resolve()
  #isClosed = false

  /** Begins when its time and its turn have come. Repeat is harmless. */
  begin(key: string, job: Job): void {
    if (this.#isClosed || this.#jobs.has(key)) return
    const ended = new AbortController()
    this.#jobs.set(key, ended)
    whenDue(job.notBeforeMs ?? 0, ended.signal, () => {
      this.#turn = this.#turn.then(() => this.#do(key, job, ended))
    })
  }

  /** Resolves when it does not prepare, or never will. */
  async cancel(key: string): Promise<void> {
    this.#jobs.get(key)?.abort()
    this.#jobs.delete(key)
    if (this.#preparing?.key === key) await this.#preparing.done.catch(() => undefined)
  }

  /** Resolves when nothing is under way or waits for its turn, or nothing for `key`. */
  async settled(key?: string): Promise<void> {
    let turn: Promise<void> | undefined
    while (turn !== this.#turn && (key === undefined || this.#jobs.has(key))) {
      turn = this.#turn
      await turn
    }
  }

  /** Takes no more, cancels all, and resolves when nothing is under way. Repeat is harmless. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true
    for (const ended of this.#jobs.values()) ended.abort()
    this.#jobs.clear()
    await this.settled()
  }

  async #do(key: string, { prepare, onError, onSettled }: Job, ended: AbortController): Promise<void> {
    if (ended.signal.aborted) return
    try {
      const done = prepare(ended.signal)
      this.#preparing = { key, done }
      const commit = await done.finally(() => {
        this.#preparing = undefined
      })
      await commit?.()
    } catch (error) {
      if (!ended.signal.aborted) onError(error)
    } finally {
      if (this.#jobs.get(key) === ended) this.#jobs.delete(key)
    }
    if (ended.signal.aborted) return
    try {
      onSettled?.()
    } catch (error) {
      onError(error)
    }
  }
}

function whenDue(atMs: number, signal: AbortSignal, begin: () => void): void {
  const left = atMs - Date.now()
  if (left <= 0) {
    begin()
    return
  }
  const timer = setTimeout(() => whenDue(atMs, signal, begin), Math.min(left, LONGEST_WAIT_MS))
  signal.addEventListener('abort', () => clearTimeout(timer), { once: true })
}
