import type { OwnDoings } from '../audit/audit.ts'
import type { Instances } from './instances.ts'

const EVERY_MS = 15_000

/** Deletes instances whose time is up, now and then. One that is busy is looked at again in the next round. */
export class Reaper implements Disposable {
  readonly #timer: NodeJS.Timeout

  constructor({ instances, audit }: { instances: Instances; audit: OwnDoings }) {
    const reap = (): void =>
      instances.deleteExpired(({ id, name }, work) =>
        audit.perform({ operation: 'deleteInstance', target: { id, name }, subjectId: id }, work),
      )
    this.#timer = setInterval(reap, EVERY_MS).unref()
    reap()
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer)
  }
}
