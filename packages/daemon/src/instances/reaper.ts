import type { Instances } from './instances.ts'

const EVERY_MS = 15_000

/** Deletes instances whose time is up, now and then. One that is busy is looked at again in the next round. */
export class Reaper implements Disposable {
  readonly #timer: NodeJS.Timeout

  constructor(instances: Instances) {
    this.#timer = setInterval(() => instances.deleteExpired(), EVERY_MS).unref()
    instances.deleteExpired()
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer)
  }
}
