/**
 * A VM that runs, and the line to its guest. It stays connected for as long as the VM lives: a line that drops is dialled again.
 * A guest that is still parked is given its configuration. What happens is reported to the worker, which alone draws conclusions:
 *
 *     connect ─► hello: parked ── go ──► running ─► workload exited ─► VM exited
 *                       starting ─ wait ─►┘
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import { type ExecRequest, GuestClient, type GuestConfig, type GuestExec, type WakeRequest } from '../guest/guest-client.ts'
import type { Vm, VmExit } from '../hypervisors/hypervisor.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import type { CrashPoint } from './instance-work.ts'

export type VmReport =
  /** The workload has been started and the agent answers. */
  | { readonly kind: 'running' }
  | { readonly kind: 'workload_exited'; readonly code: number; readonly message: string }
  | { readonly kind: 'vm_exited'; readonly exit: VmExit }
  /** It did not come up. The VM still runs. */
  | { readonly kind: 'boot_failed'; readonly error: unknown }

/** What callers do in a guest. */
export type GuestAccess = Pick<GuestClient, 'exec' | 'stat' | 'copyTo' | 'copyFrom'>

export interface LiveVmUses {
  readonly log: Logger
  readonly crashPoint: CrashPoint
  readonly bootLimitMs: number
  /** Made when it is needed: an adopted VM that runs needs none. */
  guestConfig(): GuestConfig
  /** For a guest that was asleep: what it is told before anything else. */
  readonly wake?: WakeRequest
  report(report: VmReport): void
}

const CONNECT_LIMIT_MS = 10_000
const REDIAL_FIRST_MS = 20
const REDIAL_LAST_MS = 2000
const LINE_HOLDS_MS = 5000
// From the end of a VMM's process to its shim's word of it.
const EXIT_LIMIT_MS = 2000
// A guest that could not start its workload says so and powers off; one that does neither is ended.
const LAST_WORDS_MS = 10_000

export class LiveVm {
  readonly vm: Vm
  readonly #uses: LiveVmUses
  readonly #released = new AbortController()
  readonly #bootDeadline: number
  #guest: GuestClient | undefined
  /** Its workload was frozen for a capture, and is thawed by whoever froze it. */
  #isHeldStill = false
  /** Until it has been: programs wait for that. */
  #still: PromiseWithResolvers<void> | undefined
  /** How often that has begun. */
  #stills = 0
  #isUp = false
  #wake: WakeRequest | undefined
  readonly #up = Promise.withResolvers<void>()
  #attending: Promise<void> = Promise.resolve()
  #waiting: ((guest: GuestClient) => void)[] = []
  #exit: VmExit | undefined
  #lastWord: AppError | undefined

  constructor(vm: Vm, uses: LiveVmUses) {
    this.vm = vm
    this.#uses = uses
    // One that was asleep is waited for as long as it takes: to end it would be to lose its memory.
    this.#bootDeadline = uses.wake === undefined ? Date.now() + uses.bootLimitMs : Number.POSITIVE_INFINITY
    this.#wake = uses.wake
    this.#up.promise.catch(() => undefined)
  }

  /** Begins to attend to it. Once. */
  attend(): void {
    void this.vm.exited.then((exit) => {
      this.#exit = exit
      this.#report({ kind: 'vm_exited', exit })
      this.#released.abort()
    })
    this.#attending = this.#attend()
  }

  /** True once the workload has been started. */
  get isUp(): boolean {
    return this.#isUp
  }

  /** Resolves once the workload runs and the agent answers. Rejects with `guest_unavailable` when it will not, or not in time. */
  async whenUp(step: Pick<Step, 'signal'>): Promise<void> {
    const { promise, reject } = Promise.withResolvers<never>()
    const giveUp = () => reject(new AppError('guest_unavailable', 'The guest does not answer', { cause: step.signal.reason }))
    if (step.signal.aborted) giveUp()
    else step.signal.addEventListener('abort', giveUp, { once: true })
    try {
      await Promise.race([this.#up.promise, promise])
    } finally {
      step.signal.removeEventListener('abort', giveUp)
    }
  }

  get exit(): VmExit | undefined {
    return this.#exit
  }

  /** Is its VM gone? The end of one that is just ending is waited for: then it is on record, and what failed for it is told as that. */
  async hasEnded(): Promise<boolean> {
    if (this.#exit === undefined && (await this.vm.usage().catch(() => undefined)) === undefined) {
      const limit = new AbortController()
      await Promise.race([this.vm.exited, sleep(EXIT_LIMIT_MS, undefined, { ref: false, signal: limit.signal })]).catch(() => undefined)
      limit.abort()
    }
    return this.#exit !== undefined
  }

  /** The line to the guest as it is now. */
  get guest(): GuestClient | undefined {
    return this.#guest
  }

  /** The line to the guest, waited for while it is being dialled. Throws `guest_unavailable`. */
  async connected(step: Pick<Step, 'signal'>): Promise<GuestClient> {
    if (this.#guest) return this.#guest
    const { promise, resolve, reject } = Promise.withResolvers<GuestClient>()
    this.#waiting.push(resolve)
    const giveUp = () => reject(new AppError('guest_unavailable', 'The guest agent does not answer', { cause: step.signal.reason }))
    const signal = AbortSignal.any([step.signal, this.#released.signal])
    if (signal.aborted) giveUp()
    else signal.addEventListener('abort', giveUp, { once: true })
    try {
      return await promise
    } finally {
      signal.removeEventListener('abort', giveUp)
      this.#waiting = this.#waiting.filter((waiting) => waiting !== resolve)
    }
  }

  /** The workload is about to be frozen for a capture: a line that is dialled anew must not thaw it. Repeat is harmless. */
  holdStill(): void {
    this.#isHeldStill = true
    this.#stills++
    this.#still ??= Promise.withResolvers<void>()
  }

  /** It is about to be thawed, by whoever holds a line to it. */
  letGo(): void {
    this.#isHeldStill = false
  }

  /** It has been thawed, or is going to be as soon as its guest answers: programs that wait for that begin. */
  goOn(): void {
    this.#still?.resolve()
    this.#still = undefined
  }

  /**
   * A program in the guest, beside its workload. One that is asked for while the workload stands still for a capture begins when it goes on:
   * that is a matter of milliseconds, and the caller has been told that the instance is Running.
   */
  async exec(request: ExecRequest, step: Step): Promise<GuestExec> {
    for (;;) {
      await this.#whenMoving(step)
      const stills = this.#stills
      const guest = await this.connected(step)
      try {
        return await guest.exec(request, step)
      } catch (error) {
        // The freeze was there first.
        if (errorCodeOf(error) !== 'conflict' || this.#stills === stills) throw error
      }
    }
  }

  async #whenMoving({ signal }: Pick<Step, 'signal'>): Promise<void> {
    if (this.#still === undefined) return
    const { promise, reject } = Promise.withResolvers<never>()
    const isOver = AbortSignal.any([signal, this.#released.signal])
    const giveUp = () =>
      reject(
        this.#released.signal.aborted
          ? (this.#lastWord ?? new AppError('guest_unavailable', 'The guest was lost while its workload stood still'))
          : new AppError('timed_out', 'The program was not started in time', { cause: signal.reason }),
      )
    if (isOver.aborted) giveUp()
    else isOver.addEventListener('abort', giveUp, { once: true })
    try {
      await Promise.race([this.#still.promise, promise])
    } finally {
      isOver.removeEventListener('abort', giveUp)
    }
  }

  /** Hangs up; it dials again, and hears from the guest anew how things stand. */
  async redial(): Promise<void> {
    await this.#hangUp()
  }

  /** Hangs up and reports no more; who waits for the guest is told `reason`. The VM goes on. Repeat is harmless. */
  async release(reason?: AppError): Promise<void> {
    this.#lastWord ??= reason
    this.#released.abort()
    await this.#hangUp(reason)
    await this.#attending
  }

  async #attend(): Promise<void> {
    let pause = REDIAL_FIRST_MS
    while (!this.#released.signal.aborted) {
      try {
        if (!this.#isUp) await this.#uses.crashPoint('boot', 'connect')
        const guest = await this.#connect()
        const connectedAt = performance.now()
        if (!this.#isUp && !(await this.#boot(guest))) return
        await guest.closed
        // A line that does not hold is dialled more and more seldom.
        if (performance.now() - connectedAt > LINE_HOLDS_MS) pause = REDIAL_FIRST_MS
      } catch (error) {
        if (this.#released.signal.aborted) return
        if (!this.#isUp && Date.now() > this.#bootDeadline) {
          this.#report({ kind: 'boot_failed', error })
          return
        }
        this.#uses.log.debug({ err: error }, 'the guest agent could not be reached, trying again')
      } finally {
        await this.#hangUp()
      }
      await sleep(pause, undefined, { signal: this.#released.signal, ref: false }).catch(() => undefined)
      pause = Math.min(pause * 2, REDIAL_LAST_MS)
    }
  }

  async #connect(): Promise<GuestClient> {
    const left = this.#isUp ? CONNECT_LIMIT_MS : Math.max(1, this.#bootDeadline - Date.now())
    const step = this.#step(Math.min(left, CONNECT_LIMIT_MS))
    const stream = await this.vm.connectGuest(step)
    const guest = await GuestClient.connect(stream, step)
    void guest.exited.then(
      ({ code, message }) => this.#report({ kind: 'workload_exited', code, message }),
      () => undefined,
    )
    this.#guest = guest
    // A workload that stands still was left so by a daemon that died over a capture, or did not hear that it may go on.
    const wake = this.#wake ?? (guest.hello.isFrozen && !this.#isHeldStill ? {} : undefined)
    if (wake !== undefined) await guest.wake(wake, step)
    this.#wake = undefined
    for (const resolve of this.#waiting.splice(0)) resolve(guest)
    return guest
  }

  /** Leads the guest from where it is to running. False when it will not get there; that has been reported. */
  async #boot(guest: GuestClient): Promise<boolean> {
    const { phase } = guest.hello
    const left = Math.min(this.#uses.bootLimitMs, Math.max(1, this.#bootDeadline - Date.now()))
    if (phase === 'parked') {
      await this.#uses.crashPoint('boot', 'go')
      try {
        await guest.go(this.#uses.guestConfig(), this.#step(left))
      } catch (error) {
        // A line that broke is dialled again; the guest says then how far it has come.
        if (!(error instanceof AppError) || error.code === 'guest_unavailable') throw error
        // Its last words, the exit of its workload, are reported as such. One that has none is ended.
        const spoke = [guest.exited, this.vm.exited].map((ended) => ended.then(() => true))
        const silence = sleep(LAST_WORDS_MS, false, { signal: this.#released.signal, ref: false })
        if (!(await Promise.race([...spoke, silence]).catch(() => false))) this.#report({ kind: 'boot_failed', error })
        return false
      }
    } else if (phase === 'starting') {
      await guest.started(this.#step(left))
    }
    await this.#uses.crashPoint('boot', 'running')
    this.#isUp = true
    this.#up.resolve()
    // An adopted guest whose workload has ended already says so by its exit alone.
    if (phase !== 'exited') this.#report({ kind: 'running' })
    return true
  }

  async #hangUp(reason?: AppError): Promise<void> {
    const guest = this.#guest
    this.#guest = undefined
    await guest?.close(reason)
  }

  #step(limitMs: number): Step {
    return { signal: AbortSignal.any([this.#released.signal, AbortSignal.timeout(limitMs)]), log: this.#uses.log }
  }

  #report(report: VmReport): void {
    if (report.kind === 'vm_exited' || report.kind === 'boot_failed') {
      this.#up.reject(new AppError('guest_unavailable', 'The VM ended before its guest answered'))
    }
    if (!this.#released.signal.aborted) this.#uses.report(report)
  }
}
