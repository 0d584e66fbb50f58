/**
 * One worker per instance. Requests, guest exits and shutdown all come in by the same door, and one thing is done at a time:
 *
 *     request ─► admit() with what is pending ─► queue ─► admit() again at the head ─► operation
 *     report of the VM ─────────────────────────► front of the queue ─► its conclusion
 *
 * The worker alone changes the instance. A caller who hangs up ends the waiting, not the work.
 */
import { AppError } from '@dormouse/api/errors.ts'
import {
  type Access,
  type Admission,
  admit,
  OPERATIONS,
  type Subject,
  TRANSITIONS,
  type Transition,
} from '@dormouse/api/instance-states.ts'
import type { WakeRequest } from '../guest/guest-client.ts'
import { diskFullError, isNoSpace } from '../host/disk-full.ts'
import type { Vm } from '../hypervisors/hypervisor.ts'
import type { Logger } from '../log.ts'
import { exitOf } from './exit-of.ts'
import { guestConfigOf } from './guest-config-of.ts'
import type { Instance } from './instance.ts'
import { InstanceWork, type WorkHost, type WorkUses } from './instance-work.ts'
import { LiveVm, type VmReport } from './live-vm.ts'
import { settleBootFailure, settleRunning, settleVmExit, settleWorkloadExit } from './operations/conclusions.ts'
import { holdsDevice } from './vm-spec-of.ts'

export type Story = (work: InstanceWork) => Promise<void>

interface Task {
  readonly name: string
  /** Set when it counts in admission. */
  readonly transition: Transition | undefined
  /** Absent for conclusions, which are not asked for. */
  readonly request: { readonly verb: Transition | Access; readonly refuseAlready?: string; readonly isTentative?: true } | undefined
  readonly story: Story
  readonly done: PromiseWithResolvers<void>
  /** The least grace that those who joined it want, should it end a VM. */
  graceMs?: number
}

/** What passes through the worker and leaves the state as it is. */
export type Rewiring = 'update' | 'attach_volume' | 'detach_volume'

export interface RequestOptions {
  /** With this, an `already` is refused, and this is why. */
  readonly refuseAlready?: string
  /** How long the workload may take to end. A stop that is under way takes no longer for whoever joins it, or deletes behind it. */
  readonly graceMs?: number
  /** It may find nothing to do once it comes to it: while it waits, no one is told that it will be done, nor joins it. */
  readonly isTentative?: true
}

// More than this waiting for one instance is a client gone wild.
const QUEUE_LIMIT = 32

export interface WorkerUses {
  readonly work: WorkUses
  readonly log: Logger
  /** Ends the work that is under way, once the daemon has waited long enough at its own end. */
  readonly signal: AbortSignal
  onForgotten(): void
  /** Nothing is under way or waiting any more. */
  onIdle(): void
}

export class InstanceWorker implements WorkHost {
  readonly log: Logger
  instance: Instance
  live: LiveVm | undefined
  /** How often something has been done to it. */
  turns = 0
  readonly #uses: WorkerUses
  #queue: Task[] = []
  #current: { task: Task; work: InstanceWork } | undefined
  #idle: Promise<void> = Promise.resolve()
  #isDraining = false
  #isClosed = false
  #isForgotten = false

  constructor(instance: Instance, uses: WorkerUses) {
    this.instance = instance
    this.#uses = uses
    this.log = uses.log
  }

  /** The transitions that are accepted and not finished, oldest first. */
  get pending(): Transition[] {
    return this.#pendingTasks()
      .map(({ transition }) => transition)
      .filter((transition) => transition !== undefined)
  }

  /** True while anything is under way or waiting. */
  get isBusy(): boolean {
    return this.#isDraining || this.#queue.length > 0
  }

  /** What a request would be told now. */
  admission(verb: Transition | Rewiring): Admission {
    return admit(verb, { ...this.#subject(), pending: this.pending })
  }

  /**
   * Asks for an operation. Resolves when it has been done, by this request or by the one under way that it joins; what `story` does
   * is the operation. Throws `invalid_state` with the reason when the table says no.
   */
  async request(verb: Transition | Rewiring, story: Story, options: RequestOptions = {}): Promise<void> {
    if (this.#isForgotten) throw new AppError('not_found', `There is no instance ${this.instance.name}`)
    if (this.#isClosed) throw new AppError('shutting_down', 'The daemon is shutting down')
    const admission = this.admission(verb)
    if (admission.answer === 'denied') throw this.#denied(verb, admission.reason)
    if (admission.answer === 'already') {
      if (options.refuseAlready !== undefined) throw this.#denied(verb, options.refuseAlready)
      const joined = this.#lastPending()
      if (options.graceMs !== undefined && joined) this.#hurry([joined], options.graceMs)
      return joined?.done.promise
    }
    if (this.#queue.length >= QUEUE_LIMIT) {
      throw new AppError('rate_limited', `Too many requests are waiting for the instance ${this.instance.name}`, { retryAfterSeconds: 1 })
    }
    if (verb === 'delete' && options.graceMs !== undefined) this.#hurry(this.#pendingTasks(), options.graceMs)
    return this.#enqueue({
      name: verb,
      transition: isTransition(verb) ? verb : undefined,
      request: { verb, ...options },
      story,
      done: Promise.withResolvers<void>(),
    })
  }

  /** Work that is not asked for by a request: the rest of a create, or what a restart has to finish. Not admitted, and first in the queue. */
  async perform(name: string, transition: Transition | undefined, story: Story): Promise<void> {
    return this.#enqueue({ name, transition, request: undefined, story, done: Promise.withResolvers<void>() }, { first: true })
  }

  hold(vm: Vm, wake?: WakeRequest): LiveVm {
    const { work } = this.#uses
    const live: LiveVm = new LiveVm(vm, {
      log: this.log,
      crashPoint: work.crashPoint,
      bootLimitMs: work.settings.bootLimitMs,
      guestConfig: () => {
        const image = work.images.byDigest(this.instance.imageDigest)
        if (!image) throw new AppError('not_found', `The image ${this.instance.image} is gone`)
        return guestConfigOf(this.instance, { image, network: work.network, hasModules: work.settings.modules !== undefined })
      },
      report: (report) => this.#conclude(live, report),
      ...(wake === undefined ? {} : { wake }),
    })
    this.live = live
    live.attend()
    return live
  }

  async letGo(reason?: AppError): Promise<void> {
    const live = this.live
    this.live = undefined
    await live?.release(reason)
  }

  forget(): void {
    this.#isForgotten = true
    this.#uses.onForgotten()
    const queue = this.#queue
    this.#queue = []
    for (const task of queue) {
      // A second delete has what it wanted.
      if (task.transition === 'delete') task.done.resolve()
      else task.done.reject(new AppError('not_found', `The instance ${this.instance.name} was deleted`))
    }
  }

  /** Takes no more requests and drops those that wait; resolves when what is under way has ended. The VM goes on. */
  async close(): Promise<void> {
    this.#isClosed = true
    const queue = this.#queue
    this.#queue = []
    for (const task of queue) task.done.reject(new AppError('shutting_down', 'The daemon is shutting down'))
    await this.#idle
    await this.letGo()
  }

  #enqueue(task: Task, options: { first?: boolean } = {}): Promise<void> {
    // Who asked may have gone; the outcome is logged where it is handled.
    task.done.promise.catch(() => undefined)
    if (options.first) this.#queue.unshift(task)
    else this.#queue.push(task)
    if (!this.#isDraining) this.#idle = this.#drain()
    return task.done.promise
  }

  async #drain(): Promise<void> {
    this.#isDraining = true
    /** What is yet to be said of a request whose VM has ended. */
    let owed: (() => void) | undefined
    for (let task = this.#queue.shift(); task !== undefined; task = this.#queue.shift()) {
      const work = new InstanceWork(task.name, this.#uses.work, this, this.#uses.signal)
      this.#current = { task, work }
      this.turns++
      if (task.graceMs !== undefined) work.hurry(task.graceMs)
      const answerBefore = owed
      owed = undefined
      try {
        await this.#do(task, work)
        this.#current = undefined
        task.done.resolve()
      } catch (error) {
        const why = this.#explain(error, work)
        const ended = await this.#endOf(task, work, why)
        this.#current = undefined
        const said = ended ?? why
        // Of one that has ended its exit is told next.
        if (ended === undefined) this.#admitDoubt(work, said)
        this.log[task.request === undefined || !(error instanceof AppError) ? 'error' : 'warn'](
          { err: said, operation: task.name, step: work.at },
          'operation failed',
        )
        const answer = (): void => task.done.reject(said)
        // The end is on record before anyone hears of it.
        if (ended === undefined) answer()
        else owed = answer
      }
      answerBefore?.()
      await work.tidyUp()
    }
    owed?.()
    this.#isDraining = false
    this.#uses.onIdle()
  }

  async #do(task: Task, work: InstanceWork): Promise<void> {
    if (task.request !== undefined) {
      const { verb, refuseAlready } = task.request
      // The instance may have changed while the request waited: its guest may have ended.
      const admission = admit(verb, this.#subject())
      if (admission.answer === 'denied') throw this.#denied(verb, admission.reason)
      if (admission.answer === 'already') {
        if (refuseAlready !== undefined) throw this.#denied(verb, refuseAlready)
        return
      }
    }
    const startedAt = performance.now()
    await task.story(work)
    this.log.debug({ operation: task.name, ms: Math.round(performance.now() - startedAt), steps: work.steps }, 'operation done')
  }

  /**
   * Work that failed behind its commit point: how far it came is not known, so the state is not either. A retry or a stop leads out;
   * when the daemon itself ended it, the intent stays on record for the next one. That of a restore stays in any case: a guest that
   * has not been told who it is must not be taken for one that has.
   */
  #admitDoubt(work: InstanceWork, error: AppError): void {
    const { operation, vm } = this.instance
    if (operation === undefined || this.#isForgotten || this.#uses.signal.aborted) return
    const isWaking = operation === 'restore' && vm !== undefined
    try {
      const stateError = `${error.message}${reasonOf(error)}`
      work.change({ state: 'Unknown', stateError, ...(isWaking ? {} : { operation: undefined }) })
    } catch (cause) {
      this.log.error({ err: cause }, 'the doubt about an instance could not be recorded')
    }
  }

  #conclude(live: LiveVm, report: VmReport): void {
    if (this.#isClosed || this.#isForgotten) return
    const story: Story = async (work) => {
      // What is said of a VM that was let go meanwhile is no news.
      if (this.live !== live) return
      switch (report.kind) {
        case 'running':
          return settleRunning(work)
        case 'workload_exited':
          return settleWorkloadExit(work, live, report)
        case 'vm_exited':
          return settleVmExit(work, report.exit)
        case 'boot_failed':
          return settleBootFailure(work, live, report.error)
      }
    }
    const name = report.kind === 'running' ? 'boot' : 'exit'
    const task: Task = { name, transition: undefined, request: undefined, story, done: Promise.withResolvers<void>() }
    // In the order in which they came, but before any request: each is then judged by the state as it truly is.
    const at = this.#queue.findIndex(({ request }) => request !== undefined)
    task.done.promise.catch(() => undefined)
    this.#queue.splice(at < 0 ? this.#queue.length : at, 0, task)
    if (!this.#isDraining) this.#idle = this.#drain()
  }

  #pendingTasks(): Task[] {
    const waiting = this.#queue.filter(({ request }) => request?.isTentative !== true)
    return this.#current === undefined ? waiting : [this.#current.task, ...waiting]
  }

  #hurry(tasks: readonly Task[], graceMs: number): void {
    for (const task of tasks) {
      if (task.transition !== 'stop' && task.transition !== 'delete') continue
      if (this.#current?.task === task) this.#current.work.hurry(graceMs)
      else task.graceMs = Math.min(graceMs, task.graceMs ?? graceMs)
    }
  }

  #lastPending(): Task | undefined {
    return this.#pendingTasks().findLast(({ transition }) => transition !== undefined)
  }

  #subject(): Subject {
    const { state, hypervisor, skipGuestAgent: skipsGuestAgent } = this.instance
    const { capabilities } = this.#uses.work.hypervisorOf(hypervisor)
    return { state, capabilities, holdsDevice: holdsDevice(this.instance), skipsGuestAgent }
  }

  #denied(verb: Transition | Access, reason: string): AppError {
    return new AppError('invalid_state', `The instance ${this.instance.name} cannot take ${verb} now: ${reason}`, {
      detail: { state: this.instance.state, operation: this.instance.operation },
    })
  }

  /**
   * What was asked for and failed because the VM has ended meanwhile is told as that. What has a reason of its own keeps it, and what ends
   * a VM did not fail for its end.
   */
  async #endOf({ request }: Task, work: InstanceWork, error: AppError): Promise<AppError | undefined> {
    const { live, instance } = this
    if (request === undefined || request.verb === 'stop' || request.verb === 'delete') return undefined
    const canBeIt = error.code === 'internal_error' || error.code === 'guest_unavailable' || error.code === 'timed_out'
    if (!canBeIt || instance.vm === undefined || live === undefined || !(await live.hasEnded()) || live.exit === undefined) return undefined
    return new AppError(
      'guest_unavailable',
      `The VM of ${instance.name} ended during its ${work.operation}: ${exitOf([], live.exit).message}`,
      {
        hint: `Its disk is whole. See what happened with: dormouse logs --source vmm ${instance.name}`,
        cause: error,
      },
    )
  }

  #explain(thrown: unknown, work: InstanceWork): AppError {
    // When an undo failed too, what it was undoing is the reason; the rest is for the log.
    const error = firstOf(thrown)
    if (error !== thrown) this.log.error({ err: thrown, operation: work.operation, step: work.at }, 'an undo failed')
    const isSettled = error instanceof AppError && error.code !== 'internal_error'
    if (!isSettled && isNoSpace(error))
      return diskFullError(`The ${work.operation} of ${this.instance.name} failed at the step "${work.at}"`, error)
    if (error instanceof AppError) return error
    if (this.#uses.signal.aborted) {
      return new AppError('shutting_down', `The daemon ended during ${work.operation} of ${this.instance.name}`, { cause: error })
    }
    const isTimeout = (link: unknown): boolean =>
      link instanceof Error && (link.name === 'TimeoutError' || (link.cause !== undefined && isTimeout(link.cause)))
    if (isTimeout(error)) {
      return new AppError('timed_out', `The ${work.operation} of ${this.instance.name} took too long at the step "${work.at}"`, {
        cause: error,
      })
    }
    return new AppError('internal_error', `The ${work.operation} of ${this.instance.name} failed at the step "${work.at}"`, {
      cause: error,
      hint: `Look at its log: dormouse logs --source daemon ${this.instance.name}`,
    })
  }
}

/** The error that came first, below those of the undo. */
const firstOf = (error: unknown): unknown => (error instanceof SuppressedError ? firstOf(error.suppressed) : error)

const reasonOf = (error: AppError): string => (error.cause instanceof Error ? `: ${error.cause.message}` : '')

const isTransition = (verb: string): verb is Transition => (TRANSITIONS as readonly string[]).includes(verb) && verb in OPERATIONS
