import type { ImageProgress } from '@dormouse/api/images.ts'

type Step = Omit<ImageProgress, 'name'>

/** The latest step of each image that is under way, and who follows it. Nothing is stored and a slow follower only sees fewer steps. */
export class ProgressFeed {
  readonly #latest = new Map<string, Step>()
  readonly #followers = new Map<string, Set<() => void>>()

  latest(digest: string): Step | undefined {
    return this.#latest.get(digest)
  }

  publish(digest: string, step: Step): void {
    this.#latest.set(digest, step)
    for (const wake of this.#followers.get(digest) ?? []) wake()
  }

  /** Nobody works on it any more: followers see the last step and end. */
  end(digest: string): void {
    const followers = this.#followers.get(digest)
    this.#latest.delete(digest)
    for (const wake of followers ?? []) wake()
  }

  /** Resolves at the next change of `digest`, or when `signal` aborts. */
  async changed(digest: string, signal: AbortSignal): Promise<void> {
    const followers = this.#followers.get(digest) ?? new Set()
    this.#followers.set(digest, followers)
    let wake: () => void = () => undefined
    try {
      await new Promise<void>((resolve) => {
        wake = resolve
        followers.add(wake)
        signal.addEventListener('abort', wake, { once: true })
        if (signal.aborted) resolve()
      })
    } finally {
      signal.removeEventListener('abort', wake)
      followers.delete(wake)
      if (followers.size === 0) this.#followers.delete(digest)
    }
  }
}
