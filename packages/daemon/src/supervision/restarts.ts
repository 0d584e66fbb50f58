/** Restarts instances when their policies say so: each at its time, few at once, and none more often than its backoff allows. */
import { errorCodeOf } from '@dormouse/api/errors.ts'
import type { Instance, InstanceId } from '../instances/instance.ts'
import { restartOutlook } from '../instances/restart-policy.ts'
import { Agenda, type Passing } from '../lib/agenda.ts'
import type { Logger } from '../log.ts'

export interface RestartsUses {
  readonly log: Logger
  readonly passing: Passing
  find(id: InstanceId): Instance | undefined
  restart(instance: Pick<Instance, 'id' | 'name'>): Promise<void>
  /** Since when it is not well, by its health check. */
  unhealthySinceMs(id: InstanceId): number | undefined
}

// After a start of the host all of them are due, and each start is a VM's worth of work.
const AT_ONCE = 4
// Of an attempt that could not even be asked for, whatever its backoff.
const RETRY_LEAST_MS = 1000

export class Restarts {
  readonly #uses: RestartsUses
  readonly #agenda: Agenda<InstanceId>
  /** Their time has come, and others are before them; in order. */
  readonly #waiting = new Set<InstanceId>()
  readonly #underWay = new Map<InstanceId, Promise<void>>()
  /** Not asked for again until then, by the time that passes. */
  readonly #notBefore = new Map<InstanceId, number>()
  #isClosed = false

  constructor(uses: RestartsUses) {
    this.#uses = uses
    this.#agenda = new Agenda(uses.passing)
  }

  /** Something may have changed for it. Quick, and never throws. */
  look(id: InstanceId): void {
    if (this.#isClosed || this.#underWay.has(id)) return
    const instance = this.#uses.find(id)
    const outlook = instance && this.#outlookOf(instance)
    if (outlook?.kind !== 'due') {
      this.#agenda.clear(id)
      this.#waiting.delete(id)
      if (outlook?.kind !== 'none') this.#notBefore.delete(id)
      return
    }
    // A clock that was set back, or forth, must not keep it waiting for longer than it has to.
    const inMs = Math.min(Math.max(0, outlook.atMs - Date.now()), outlook.backoffMs)
    const barredMs = (this.#notBefore.get(id) ?? 0) - this.#uses.passing.now()
    this.#agenda.set(id, Math.max(inMs, barredMs), () => this.#takeTurn(id))
  }

  async close(): Promise<void> {
    this.#isClosed = true
    this.#agenda[Symbol.dispose]()
    this.#waiting.clear()
    await Promise.all(this.#underWay.values())
  }

  #outlookOf(instance: Instance) {
    const unhealthySinceMs = this.#uses.unhealthySinceMs(instance.id)
    return restartOutlook(instance, { nowMs: Date.now(), ...(unhealthySinceMs !== undefined && { unhealthySinceMs }) })
  }

  #takeTurn(id: InstanceId): void {
    this.#waiting.add(id)
    this.#next()
  }

  #next(): void {
    for (const id of this.#waiting) {
      if (this.#isClosed || this.#underWay.size >= AT_ONCE) return
      this.#waiting.delete(id)
      const instance = this.#uses.find(id)
      if (instance && this.#outlookOf(instance).kind === 'due') this.#underWay.set(id, this.#restart(instance))
    }
  }

  async #restart({ id, name, restartPolicy }: Instance): Promise<void> {
    try {
      await this.#uses.restart({ id, name })
      this.#notBefore.delete(id)
    } catch (error) {
      // The worker has logged it; what could not be asked for at all is told here.
      this.#notBefore.set(id, this.#uses.passing.now() + Math.max(RETRY_LEAST_MS, restartPolicy?.backoffMs ?? 0))
      if (errorCodeOf(error) === 'invalid_state' || errorCodeOf(error) === 'not_found')
        this.#uses.log.debug({ err: error, name }, 'a restart came too late')
    } finally {
      this.#underWay.delete(id)
      this.look(id)
      this.#next()
    }
  }
}
