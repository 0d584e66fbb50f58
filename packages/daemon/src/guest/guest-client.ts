/** The daemon's side of a guest agent: every request with a deadline, every answer bounded. */
import { randomBytes } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'
import { type Ending, endingOf, refusalOf } from './answers.ts'
import { type CopyEntry, type CopyRequest, checkPath, copyFrom, copyTo } from './copies.ts'
import { type FieldReader, FieldWriter } from './fields.ts'
import { encodeConfig, encodeVolume, type GuestConfig, type GuestVolume } from './guest-config.ts'
import { type DialRequest, dial } from './guest-dial.ts'
import { type ExecRequest, type GuestExec, startExec } from './guest-exec.ts'
import { GuestLink } from './guest-link.ts'
import { encodeWake, type WakeRequest } from './guest-wake.ts'
import { type PathInfo, pathInfoOf } from './path-info.ts'
import { EVENT, OP, PHASE, TAG } from './wire.ts'

export type { Ending } from './answers.ts'
export type { CopyEntry, CopyRequest } from './copies.ts'
export type { GuestConfig, GuestVolume } from './guest-config.ts'
export type { ExecRequest, GuestExec } from './guest-exec.ts'
export type { WakeRequest } from './guest-wake.ts'
export type { PathInfo } from './path-info.ts'

export type GuestPhase = 'parked' | 'starting' | 'running' | 'exited'

export interface GuestHello {
  readonly protocol: number
  /**
   * 32 hex digits that only ever stood in the guest's RAM: the same after a restore, others after a boot. New with "go", and with a
   * wake as another machine.
   */
  readonly bootNonce: string
  readonly phase: GuestPhase
  /** Its workload was frozen, and neither thawed nor woken since: whoever finds it so has to do that. */
  readonly isFrozen: boolean
}

export interface FreezeOptions {
  /** Also when a process does not stop. */
  readonly bestEffort?: boolean
  readonly limitMs?: number
}

export interface Awakening {
  readonly bootNonce: string
  readonly phase: GuestPhase
  readonly closedConnections: number
}

/** What no answer should ever need; the caller's own limit is usually nearer. */
const ANSWER_LIMIT_MS = 30_000
/** All that is in memory that is to go has to be moved; what cannot be is known much sooner. */
const OFFLINE_LIMIT_MS = 20_000
const GO_LIMIT_MS = 300_000
const FREEZE_LIMIT_MS = 2000
/** A journal may have to be completed first, or all that was written brought home. */
const MOUNT_LIMIT_MS = 120_000
const ENTROPY_BYTES = 64
/** A wake that was longer on its way there and back than this has set a clock that is late. */
const CLOCK_LATE_MS = 50
const WAKE_TURNS = 10

export class GuestClient implements AsyncDisposable {
  readonly hello: GuestHello
  /** The connection has ended. Never rejects. */
  readonly closed: Promise<void>
  /** The workload has ended. Rejects with `guest_unavailable` when the connection ends first. */
  readonly exited: Promise<Ending>
  readonly #link: GuestLink
  readonly #events: Events
  #bootNonce: string

  private constructor(link: GuestLink, hello: GuestHello, events: Events) {
    this.#link = link
    this.#events = events
    this.hello = hello
    this.#bootNonce = hello.bootNonce
    this.closed = link.closed
    this.exited = events.exited.promise
    if (hello.phase === 'exited') events.exited.resolve(endingOf(link.welcome))
    if (hello.phase === 'running') events.started.resolve()
    void link.closed.then(() => events.fail(new AppError('guest_unavailable', 'The connection to the guest agent was closed')))
  }

  /** Handshake on a fresh byte stream; finds its way also behind a daemon that died in the middle of a frame. Owns the stream. */
  static async connect(stream: Duplex, step: Step): Promise<GuestClient> {
    const events = new Events()
    const link = await GuestLink.open(stream, (fields) => events.take(fields), step)
    try {
      const phase = phaseOf(link.welcome)
      const nonce = nonceOf(link.welcome)
      if (phase === undefined || nonce === undefined) throw new AppError('guest_unavailable', 'The guest agent does not say how it is')
      const { welcome } = link
      const hello = { protocol: welcome.number(TAG.VERSION) ?? 0, bootNonce: nonce, phase, isFrozen: welcome.flag(TAG.FROZEN) }
      return new GuestClient(link, hello, events)
    } catch (error) {
      await link.close()
      throw error
    }
  }

  /** As in `hello`, or what "go" or a wake has made of it. */
  get bootNonce(): string {
    return this.#bootNonce
  }

  /**
   * Gives a parked guest its configuration. Resolves when the workload has been started. When it could not be, this rejects with
   * the reason and `exited` follows. On a guest that runs the same configuration already this does nothing.
   */
  async go(config: GuestConfig, step: Step): Promise<void> {
    const { fields, id } = encodeConfig(config)
    // The clock last: the time between this line and the guest's is the error of its clock.
    const head = () =>
      new FieldWriter()
        .number(TAG.OP, OP.GO)
        .bytes(TAG.CONFIG_ID, id)
        .bytes(TAG.ENTROPY, randomBytes(ENTROPY_BYTES))
        .number(TAG.CLOCK_NS, clockNs())
        .finish()
    const askedAt = performance.now()
    const answer = await this.#ask('The workload could not be started', Buffer.concat([head(), fields]), step, GO_LIMIT_MS)
    const onItsWayMs = performance.now() - askedAt - workedMs(answer)
    this.#bootNonce = nonceOf(answer) ?? this.#bootNonce
    this.#events.started.resolve()
    step.log.debug({ timings: timingsOf(answer), onItsWayMs }, 'guest started')
  }

  /** Resolves once the workload has been started, by whomever. Rejects when it ended before that, or the connection did. */
  async started(step: Step): Promise<void> {
    const { promise, reject } = Promise.withResolvers<never>()
    const onAbort = () => reject(new AppError('timed_out', 'The workload was not started in time', { cause: step.signal.reason }))
    if (step.signal.aborted) onAbort()
    else step.signal.addEventListener('abort', onAbort, { once: true })
    try {
      await Promise.race([this.#events.started.promise, promise])
    } finally {
      step.signal.removeEventListener('abort', onAbort)
    }
  }

  /** Resolves when the program runs, or cannot: its `exit` then has code 126 or 127. */
  exec(request: ExecRequest, step: Step): Promise<GuestExec> {
    return startExec(this.#link, request, step)
  }

  /** A connection to what listens in the guest, on its loopback or an address of its own, in every kind of network and without one. */
  dial(request: DialRequest, step: Step): Promise<Duplex> {
    return dial(this.#link, request, step)
  }

  async stat(path: string, options: { readonly followLinks: boolean }, step: Step): Promise<PathInfo> {
    const fields = new FieldWriter().number(TAG.OP, OP.STAT).text(TAG.PATH, checkPath(path)).flag(TAG.FOLLOW, options.followLinks)
    const answer = await this.#exchange(fields.finish(), step, ANSWER_LIMIT_MS)
    return pathInfoOf(answer)
  }

  /**
   * Takes a stretch of added memory out of use, so that the machine can have it back: all of it, or none. Rejects with `conflict` when the
   * guest needs it. Repeat is harmless.
   */
  async offlineMemory({ address, bytes }: { readonly address: number; readonly bytes: number }, step: Step): Promise<void> {
    const fields = operation(OP.OFFLINE).number(TAG.ADDRESS, address).number(TAG.SIZE, bytes).number(TAG.TIMEOUT_MS, OFFLINE_LIMIT_MS)
    try {
      const answer = await this.#exchange(fields.finish(), step, OFFLINE_LIMIT_MS + ANSWER_LIMIT_MS)
      const refusal = refusalOf(answer, 'Memory could not be taken out of use')
      if (refusal !== undefined) throw refusal
    } catch (cause) {
      if (errorCodeOf(cause) === 'guest_unavailable' || errorCodeOf(cause) === 'timed_out') throw cause
      throw new AppError('conflict', 'The guest needs the memory that it is to give back', {
        hint: 'End what uses it, or ask for less',
        cause,
      })
    }
  }

  copyTo(request: CopyRequest, source: AsyncIterable<Uint8Array>, step: Step): Promise<{ bytesWritten: number }> {
    return copyTo(this.#link, request, source, step)
  }

  copyFrom(path: string, options: { readonly followLinks: boolean }, step: Step): AsyncIterable<CopyEntry> {
    return copyFrom(this.#link, path, options, step)
  }

  /**
   * All processes of the workload stand still, or all run on and this rejects. With `bestEffort` it resolves when the limit is over
   * all the same: what then still hangs in the kernel stops before it runs a line of its own. That is the way to freeze for a capture:
   * once asked for, also when this rejects, only a thaw, a wake or a shutdown lets the workload run on, and no hang-up does.
   * Repeat is harmless.
   */
  async freeze(options: FreezeOptions, step: Step): Promise<{ isWhole: boolean }> {
    const { bestEffort = false, limitMs = FREEZE_LIMIT_MS } = options
    const fields = operation(OP.FREEZE)
      .number(TAG.TIMEOUT_MS, Math.max(1, Math.round(limitMs)))
      .flag(TAG.BEST_EFFORT, bestEffort)
    const answer = await this.#ask('The workload could not be frozen', fields.finish(), step)
    return { isWhole: !answer.flag(TAG.PARTLY) }
  }

  /** The workload of a machine that was only frozen runs on. Repeat is harmless. */
  async thaw(step: Step): Promise<void> {
    await this.#ask('The workload could not be thawed', operation(OP.THAW).finish(), step)
  }

  /**
   * Makes a guest right that was restored from a capture, then lets its workload run: fresh entropy, the clock, for a fork who it is.
   * On failure the workload still stands still. Repeat with the same `token` is harmless.
   */
  async wake(request: WakeRequest, step: Step): Promise<Awakening> {
    const { fields, id } = encodeWake(request)
    // As for "go": the clock last.
    const head = () =>
      operation(OP.WAKE).bytes(TAG.CONFIG_ID, id).bytes(TAG.ENTROPY, randomBytes(ENTROPY_BYTES)).number(TAG.CLOCK_NS, clockNs()).finish()
    let closedConnections = 0
    for (let turn = 1; ; turn++) {
      const askedAt = performance.now()
      const answer = await this.#ask('The guest could not be woken', Buffer.concat([head(), fields]), step)
      const onItsWayMs = performance.now() - askedAt - workedMs(answer)
      this.#bootNonce = nonceOf(answer) ?? this.#bootNonce
      closedConnections += answer.number(TAG.CLOSED) ?? 0
      step.log.debug({ timings: timingsOf(answer), onItsWayMs }, 'guest woken')
      // On a busy host the words lie about, and the clock is late by as much. Said again they set it anew, and do nothing else.
      if (onItsWayMs > CLOCK_LATE_MS && turn < WAKE_TURNS) continue
      return { bootNonce: this.#bootNonce, phase: phaseOf(answer) ?? this.hello.phase, closedConnections }
    }
  }

  /** Mounts a disk that has come since. Repeat is harmless. */
  async mount(volume: GuestVolume, step: Step): Promise<void> {
    await this.#ask(
      'The volume could not be mounted',
      operation(OP.MOUNT).bytes(TAG.VOLUME, encodeVolume(volume)).finish(),
      step,
      MOUNT_LIMIT_MS,
    )
  }

  /** Throws `in_use`, naming the programs, while something uses it; it then stays mounted. Repeat is harmless. */
  async unmount(volume: GuestVolume, step: Step): Promise<void> {
    const what = 'The volume cannot be detached'
    const answer = await this.#exchange(operation(OP.UNMOUNT).bytes(TAG.VOLUME, encodeVolume(volume)).finish(), step, MOUNT_LIMIT_MS)
    const refusal = refusalOf(answer, what)
    if (refusal?.code === 'conflict') {
      throw new AppError('in_use', refusal.message, { hint: 'End what uses it, or stop the instance and detach it then' })
    }
    if (refusal) throw refusal
  }

  /** The filesystem of a mounted disk that is `bytes` large by now becomes as large. Repeat is harmless. */
  async grow(volume: GuestVolume, bytes: number, step: Step): Promise<void> {
    const fields = operation(OP.GROW).bytes(TAG.VOLUME, encodeVolume(volume)).number(TAG.SIZE, bytes)
    await this.#ask('The volume could not be made larger', fields.finish(), step, MOUNT_LIMIT_MS)
  }

  /** Asks the workload to end, kills it when `graceMs` have passed, powers off. Resolves when the guest has understood. */
  async shutdown(options: { readonly graceMs: number }, step: Step): Promise<void> {
    const fields = operation(OP.SHUTDOWN).number(TAG.GRACE_MS, Math.max(0, Math.round(options.graceMs)))
    await this.#ask('The guest could not be shut down', fields.finish(), step)
  }

  /**
   * A parked guest lives a whole life in a child of its agent, which whoever connects next finds parked and leads through it. The one
   * who connects after its end finds the guest parked as it was, or its machine powered off. Resolves when the child begins.
   */
  async rehearse(step: Step): Promise<void> {
    await this.#ask('The guest could not rehearse', operation(OP.REHEARSE).finish(), step)
  }

  /** Resolves when a parked guest has seen that the disks of its rehearsal are gone; those that it sees later are other ones. */
  async vacate(step: Step): Promise<void> {
    await this.#ask('The guest still has the disks of its rehearsal', operation(OP.VACATE).finish(), step)
  }

  /** How the guest is now. */
  async ping(step: Step): Promise<{ phase: GuestPhase; bootNonce: string; isFrozen: boolean }> {
    const answer = await this.#ask('The guest does not answer', operation(OP.PING).finish(), step)
    const phase = phaseOf(answer) ?? this.hello.phase
    return { phase, bootNonce: nonceOf(answer) ?? this.#bootNonce, isFrozen: answer.flag(TAG.FROZEN) }
  }

  /** Ends the connection. Who still waits for a program or a copy is given `reason`. */
  async close(reason?: AppError): Promise<void> {
    await this.#link.close(reason)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #ask(what: string, fields: Buffer, step: Step, limitMs: number = ANSWER_LIMIT_MS): Promise<FieldReader> {
    const answer = await this.#exchange(fields, step, limitMs)
    const refusal = refusalOf(answer, what)
    if (refusal) throw refusal
    return answer
  }

  /** A request that has one answer. */
  async #exchange(fields: Buffer, step: Step, limitMs: number): Promise<FieldReader> {
    const { promise, resolve, reject } = Promise.withResolvers<FieldReader>()
    const signal = AbortSignal.any([step.signal, AbortSignal.timeout(limitMs)])
    if (signal.aborted) throw new AppError('timed_out', 'There was no time left to ask the guest', { cause: signal.reason })
    const stream = this.#link.request(fields, {
      reply(answer) {
        resolve(answer)
        return { isLast: true }
      },
      lost: reject,
    })
    const onAbort = () => {
      stream.abandon()
      reject(new AppError('timed_out', 'The guest agent did not answer in time', { cause: signal.reason }))
    }
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      return await promise
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  }
}

/** What the guest tells unasked. */
class Events {
  readonly started = Promise.withResolvers<void>()
  readonly exited = Promise.withResolvers<Ending>()

  constructor() {
    this.started.promise.catch(() => undefined)
    this.exited.promise.catch(() => undefined)
  }

  take(fields: FieldReader): void {
    const event = fields.number(TAG.EVENT)
    if (event === EVENT.STARTED) this.started.resolve()
    if (event !== EVENT.EXITED) return
    const ending = endingOf(fields)
    this.exited.resolve(ending)
    this.started.reject(new AppError('invalid_state', `The workload has ended: ${ending.message}`))
  }

  fail(error: AppError): void {
    this.started.reject(error)
    this.exited.reject(error)
  }
}

const operation = (op: number): FieldWriter => new FieldWriter().number(TAG.OP, op)

/** The host's clock as it is now: what Node counts from its start on knows nothing of a clock that was set since. */
const clockNs = (): bigint => BigInt(Date.now()) * 1_000_000n

const PHASES: Readonly<Record<number, GuestPhase>> = {
  [PHASE.PARKED]: 'parked',
  [PHASE.STARTING]: 'starting',
  [PHASE.RUNNING]: 'running',
  [PHASE.EXITED]: 'exited',
}

const phaseOf = (fields: FieldReader): GuestPhase | undefined => PHASES[fields.number(TAG.PHASE) ?? -1]

function nonceOf(fields: FieldReader): string | undefined {
  const nonce = fields.bytes(TAG.BOOT_NONCE)
  return nonce?.length === 16 ? nonce.toString('hex') : undefined
}

/** What took the guest how long on its way to the workload, in order and in milliseconds. */
/** How long the guest says that it has worked. */
function workedMs(answer: FieldReader): number {
  let micros = 0
  for (const { tag, value } of answer.all()) if (tag === TAG.MICROS && value.length === 8) micros += Number(value.readBigUInt64LE())
  return micros / 1000
}

function timingsOf(answer: FieldReader): string[] {
  const timings: string[] = []
  let name = ''
  for (const { tag, value } of answer.all()) {
    if (tag === TAG.NAME) name = value.toString('latin1', 0, 40)
    if (tag === TAG.MICROS && value.length === 8) timings.push(`${name} ${Math.round(Number(value.readBigUInt64LE()) / 100) / 10}`)
  }
  return timings
}
