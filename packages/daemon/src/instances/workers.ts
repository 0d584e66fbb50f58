/**
 * The one worker that each instance has, from when something is first asked of it until it is deleted. All that changes an instance goes
 * in by here, so here is known what is under way, and what could be asked for now.
 */

import { AppError } from '@dormouse/api/errors.ts'
import { type Admission, admit, type Operation, type Transition } from '@dormouse/api/instance-states.ts'
import type { Logger } from '../log.ts'
import type { Instance, InstanceId } from './instance.ts'
import { instanceLogger } from './instance-log.ts'
import type { WorkUses } from './instance-work.ts'
import { InstanceWorker, type RequestOptions, type Rewiring, type Story } from './instance-worker.ts'
import { holdsDevice } from './vm-spec-of.ts'

export interface WorkersUses {
  readonly work: WorkUses
  readonly log: Logger
  /** Throws `not_found`. */
  get(id: InstanceId): Instance
}

export class Workers {
  readonly #uses: WorkersUses
  readonly #workers = new Map<InstanceId, InstanceWorker>()
  readonly #end = new AbortController()
  readonly #idleListeners = new Set<(id: InstanceId) => void>()
  #isClosed = false

  constructor(uses: WorkersUses) {
    this.#uses = uses
  }

  /** Undefined while nothing has been asked of it. */
  find(id: InstanceId): InstanceWorker | undefined {
    return this.#workers.get(id)
  }

  of(instance: Instance): InstanceWorker {
    const known = this.#workers.get(instance.id)
    if (known) return known
    const { work, log } = this.#uses
    const { paths, settings } = work
    const worker = new InstanceWorker(instance, {
      work,
      log: instanceLogger(log, instance, { path: paths.instanceLogs(instance.id).daemon, maxBytes: settings.logMaxBytes }),
      signal: this.#end.signal,
      onForgotten: () => this.#workers.delete(instance.id),
      onIdle: () => {
        for (const listener of this.#idleListeners) listener(instance.id)
      },
    })
    this.#workers.set(instance.id, worker)
    return worker
  }

  /** Has it done in turn. Gives the instance as it then is; throws what admission says. */
  async request(id: InstanceId, verb: Transition | Rewiring, story: Story, options: RequestOptions = {}): Promise<Instance> {
    this.assertOpen()
    await this.of(this.#uses.get(id)).request(verb, story, options)
    return this.#uses.get(id)
  }

  /** What no request asks for: it is not admitted, and comes first. */
  async perform(id: InstanceId, name: string, story: Story): Promise<void> {
    await this.of(this.#uses.get(id)).perform(name, undefined, story)
  }

  /** True while work is under way or waiting, for one instance or for any. */
  isBusy(id?: InstanceId): boolean {
    if (id !== undefined) return this.#workers.get(id)?.isBusy ?? false
    return [...this.#workers.values()].some((worker) => worker.isBusy)
  }

  /** As the gate sees it; `isQueued` with what is under way for it. */
  admission(instance: Instance, operation: Operation, { isQueued = false } = {}): Admission {
    return admit(operation, {
      state: instance.state,
      capabilities: this.#uses.work.hypervisorOf(instance.hypervisor).capabilities,
      holdsDevice: holdsDevice(instance),
      skipsGuestAgent: instance.skipGuestAgent,
      ...(isQueued ? { pending: this.of(instance).pending } : {}),
    })
  }

  /** Throws `invalid_state` with the reason when that is not to be, after all that is under way. */
  assertAdmitted(instance: Instance, operation: Operation): void {
    const { name, state } = instance
    const admission = this.admission(instance, operation, { isQueued: true })
    if (admission.answer !== 'denied') return
    throw new AppError('invalid_state', `The instance ${name} cannot take ${operation} now: ${admission.reason}`, { detail: { state } })
  }

  /** Calls `listener` when the instance has changed, and when nothing is under way for it any more. */
  onChange(id: InstanceId, listener: () => void): Disposable {
    const onIdle = (idle: InstanceId) => idle === id && listener()
    this.#idleListeners.add(onIdle)
    const listening = this.#uses.work.events.listen(({ subject }) => subject === id && listener())
    return {
      [Symbol.dispose]: () => {
        this.#idleListeners.delete(onIdle)
        listening[Symbol.dispose]()
      },
    }
  }

  /** Throws `shutting_down` once it is too late for requests. */
  assertOpen(): void {
    if (this.#isClosed) throw new AppError('shutting_down', 'The daemon is shutting down')
  }

  /**
   * Takes no more requests and waits for what is under way, and for `endJobs`: each may wait for the other, a job for its turn with a
   * worker, a worker for a job that it cancels. What takes longer than `graceMs` is ended at its next step.
   */
  async close(graceMs: number, endJobs: () => readonly PromiseLike<void>[]): Promise<void> {
    this.#isClosed = true
    const limit = setTimeout(() => this.#end.abort(new AppError('shutting_down', 'The daemon is shutting down')), graceMs)
    await Promise.all([...endJobs(), ...[...this.#workers.values()].map((worker) => worker.close())])
    clearTimeout(limit)
  }
}
