/**
 * The guest's side of the protocol without a guest: for the fake hypervisor and for fast tests. It speaks real frames over a
 * Duplex, so that all of the daemon's side is in use. Its programs are made up:
 *
 *   as workload  `true`, `echo WORDS`, `false`, `exit N` end at once; `missing` is not found; `stubborn` ignores its stop signal;
 *                anything else runs until it is stopped
 *   by exec      `true`, `false`, `exit N`, `echo WORDS`, `cat`, `sleep SECONDS`; `count` adds one to a number that stands in the
 *                guest's RAM only, `hostname` and `date` are what they are; anything else is not found
 *
 * What it has in RAM can be taken as JSON and become another guest: for a fake of captures.
 */
import { randomBytes } from 'node:crypto'
import { basename } from 'node:path'
import type { Duplex } from 'node:stream'
import type { Ending } from './answers.ts'
import type { FakeService } from './fake-dial.ts'
import { FakeFiles, type FakeFilesState } from './fake-files.ts'
import { type FakeIdentity, fakeIdentityOf } from './fake-identity.ts'
import { codeOf, wordsFor } from './fake-programs.ts'
import { type FakeGuestSide, type FakeStream, openFakeStream } from './fake-streams.ts'
import { FieldReader, FieldWriter } from './fields.ts'
import { encodeFrame, type Frame, FrameSplitter } from './frames.ts'
import type { GuestPhase } from './guest-client.ts'
import type { JournalFact } from './journal.ts'
import { EVENT, FLAG, FRAME, OP, PHASE, PROTO_VERSION, STATUS, TAG } from './wire.ts'

export type { FakeService } from './fake-dial.ts'

export interface FakeGuestUses {
  onJournal?(fact: JournalFact): void
  onLog?(text: string): void
  onPowerOff?(): void
  /** What is served in it, by port. */
  readonly services?: ReadonlyMap<number, FakeService>
}

/** All that a fake guest has in RAM. */
export interface FakeGuestState {
  readonly bootNonce: string
  readonly phase: GuestPhase
  readonly isFrozen: boolean
  readonly clockMs: number
  readonly counter: number
  readonly connections: number
  readonly identity: FakeIdentity
  readonly files: FakeFilesState
  readonly mounts: readonly (readonly [serial: string, path: string])[]
  readonly configId: string
  readonly wakeId: string
  readonly program: string
  readonly ending?: Ending
}

const PHASES = { parked: PHASE.PARKED, starting: PHASE.STARTING, running: PHASE.RUNNING, exited: PHASE.EXITED } as const

export class FakeGuest implements FakeGuestSide {
  readonly files: FakeFiles
  /** What it was told, for tests to look at. */
  readonly requests: { readonly op: number; readonly fields: FieldReader }[] = []
  bootNonce = randomBytes(16).toString('hex')
  isFrozen = false
  /** A process hangs where no freeze reaches it. */
  /** Memory that was added to it is in use and cannot be moved. */
  needsItsMemory = false
  hasStuckProcess = false
  counter = 0
  /** Where volumes are mounted, by serial. */
  mounts = new Map<string, string>()
  /** Those that a program uses. */
  readonly inUse = new Set<string>()
  /** TCP connections that lead out. */
  connections = 0
  identity: FakeIdentity = {}
  /** Its clock less the host's: what a nap leaves behind until it is woken. */
  #clockBehindMs = 0
  #wakeId = ''
  readonly #uses: FakeGuestUses
  #phase: GuestPhase = 'parked'
  #line: Duplex | undefined
  #streams = new Map<number, FakeStream>()
  #parts: Buffer[] = []
  #configId = ''
  #program = ''
  #ending: Ending | undefined
  #grace: NodeJS.Timeout | undefined
  #isDead = false

  constructor(uses: FakeGuestUses = {}, files = new FakeFiles()) {
    this.#uses = uses
    this.files = files
  }

  /** A guest that goes on where that one was captured, its clock too. */
  static restore(state: FakeGuestState, uses: FakeGuestUses = {}): FakeGuest {
    const guest = new FakeGuest(uses, FakeFiles.restore(state.files))
    guest.bootNonce = state.bootNonce
    guest.isFrozen = state.isFrozen
    guest.counter = state.counter
    guest.connections = state.connections
    guest.identity = state.identity
    guest.mounts = new Map(state.mounts)
    guest.#clockBehindMs = state.clockMs - Date.now()
    guest.#phase = state.phase
    guest.#configId = state.configId
    guest.#wakeId = state.wakeId
    guest.#program = state.program
    guest.#ending = state.ending
    return guest
  }

  snapshot(): FakeGuestState {
    const { bootNonce, isFrozen, clockMs, counter, connections, identity } = this
    return {
      ...{ bootNonce, isFrozen, clockMs, counter, connections, identity },
      files: this.files.snapshot(),
      mounts: [...this.mounts],
      phase: this.#phase,
      configId: this.#configId,
      wakeId: this.#wakeId,
      program: this.#program,
      ...(this.#ending && { ending: this.#ending }),
    }
  }

  get clockMs(): number {
    return Date.now() + this.#clockBehindMs
  }

  tell(program: string): string | undefined {
    if (program === 'count') return String(++this.counter)
    if (program === 'hostname') return this.identity.hostname ?? ''
    return program === 'date' ? new Date(this.clockMs).toISOString() : undefined
  }

  serviceAt(port: number): FakeService | undefined {
    return this.#uses.services?.get(port)
  }

  get phase(): GuestPhase {
    return this.#phase
  }

  /** A daemon comes. What the one before had open ends. */
  attach(stream: Duplex): void {
    this.#hangUp()
    if (this.#isDead) {
      stream.destroy()
      return
    }
    this.#line = stream
    const splitter = new FrameSplitter()
    stream.on('error', () => undefined)
    stream.on('close', () => this.#line === stream && this.#hangUp())
    stream.on('data', (chunk: Buffer) => {
      for (const frame of splitter.push(chunk)) if (this.#line === stream && !this.#isDead) this.#take(frame)
    })
  }

  /** The machine is gone from one moment to the next. */
  crash(): void {
    this.#isDead = true
    clearTimeout(this.#grace)
    this.#line?.destroy()
    this.#hangUp()
  }

  /** The workload ends by itself, and the machine with it. */
  exitWorkload(code: number, message: string): void {
    if (this.#phase === 'exited' || this.#isDead) return
    this.#phase = 'exited'
    this.#ending = { code, message }
    clearTimeout(this.#grace)
    this.#uses.onJournal?.({ event: 'exited', atMs: Date.now(), boot: this.bootNonce, code, message })
    const event = new FieldWriter().number(TAG.EVENT, EVENT.EXITED)
    this.send(FRAME.EVENT, 0, 0, this.#writeEnding(event).finish())
    setImmediate(() => this.#powerOff())
  }

  /** The host presses the button: as a shutdown without much patience. */
  powerButton(): void {
    if (this.#phase === 'running') this.#stop(1000)
    else this.#powerOff()
  }

  /** A frame towards the daemon, if there is one. */
  send(type: number, flags: number, stream: number, payload: Uint8Array): void {
    if (this.#line?.writable && !this.#isDead) this.#line.write(encodeFrame(type, flags, stream, payload))
  }

  reply(id: number, status: number, message?: string): void {
    const fields = new FieldWriter().number(TAG.STATUS, status).optional(message, (text, message) => message.text(TAG.MESSAGE, text))
    this.send(FRAME.REPLY, 0, id, fields.finish())
  }

  /** Its closing frame has been sent. */
  forget(id: number): void {
    this.#streams.delete(id)
  }

  #hangUp(): void {
    this.#line = undefined
    for (const stream of this.#streams.values()) stream.abandon()
    this.#streams.clear()
    this.#parts = []
  }

  #powerOff(): void {
    if (this.#isDead) return
    this.crash()
    this.#uses.onPowerOff?.()
  }

  #take(frame: Frame): void {
    if (frame.type === FRAME.HELLO) this.#welcome(new FieldReader(frame.payload))
    else if (frame.type === FRAME.REQUEST) this.#takePart(frame)
    else this.#streams.get(frame.stream)?.take(frame)
  }

  #welcome(hello: FieldReader): void {
    for (const stream of this.#streams.values()) stream.abandon()
    this.#streams.clear()
    const fields = new FieldWriter().number(TAG.VERSION, PROTO_VERSION).bytes(TAG.EPOCH, hello.bytes(TAG.EPOCH) ?? Buffer.alloc(0))
    this.#line?.write(Buffer.of(0))
    this.send(FRAME.WELCOME, 0, 0, this.#writeState(fields).finish())
  }

  #takePart(frame: Frame): void {
    this.#parts.push(frame.payload)
    if (frame.flags & FLAG.MORE) return
    const fields = new FieldReader(Buffer.concat(this.#parts.splice(0)))
    const op = fields.number(TAG.OP) ?? 0
    this.requests.push({ op, fields })
    this.#answer(op, frame.stream, fields)
  }

  #answer(op: number, id: number, fields: FieldReader): void {
    switch (op) {
      case OP.GO:
        this.#go(id, fields)
        break
      case OP.SHUTDOWN:
        this.reply(id, STATUS.OK)
        if (this.#phase === 'running') this.#stop(fields.number(TAG.GRACE_MS) ?? 0)
        else setImmediate(() => this.#powerOff())
        break
      case OP.OFFLINE:
        this.reply(id, this.needsItsMemory ? STATUS.BUSY : STATUS.OK)
        break
      case OP.PING:
        this.send(FRAME.REPLY, 0, id, this.#writeState(ok()).finish())
        break
      case OP.WAKE:
        this.#wake(id, fields)
        break
      default:
        if (this.#phase === 'running') this.#serve(op, id, fields)
        else this.reply(id, STATUS.WRONG_PHASE, 'The workload is not running')
    }
  }

  #serve(op: number, id: number, fields: FieldReader): void {
    if (op === OP.FREEZE) {
      this.#freeze(id, fields.flag(TAG.BEST_EFFORT))
      return
    }
    if (op === OP.MOUNT || op === OP.UNMOUNT || op === OP.GROW) {
      this.#mount(op, id, fields)
      return
    }
    if (op === OP.THAW) this.isFrozen = false
    if (op === OP.THAW || ((op === OP.EXEC || op === OP.DIAL) && this.isFrozen)) {
      this.reply(id, op === OP.THAW ? STATUS.OK : STATUS.BUSY, op === OP.THAW ? undefined : 'The workload is frozen')
      return
    }
    // Before it is opened: what ends at once says so while it is being made.
    const stream = openFakeStream(this, id, op, fields)
    if (stream && !stream.isOver) this.#streams.set(id, stream)
  }

  #mount(op: number, id: number, fields: FieldReader): void {
    const [serial, path] = volumeOf(fields.bytes(TAG.VOLUME) ?? Buffer.alloc(0))
    if (op === OP.GROW) this.reply(id, this.mounts.has(serial) ? STATUS.OK : STATUS.NOT_FOUND)
    else if (op === OP.UNMOUNT && this.inUse.has(serial)) this.reply(id, STATUS.BUSY, `${path} is in use by sleep (7)`)
    else {
      if (op === OP.MOUNT) this.mounts.set(serial, path)
      else this.mounts.delete(serial)
      this.reply(id, STATUS.OK)
    }
  }

  #freeze(id: number, bestEffort: boolean): void {
    this.isFrozen = !this.hasStuckProcess || bestEffort
    if (!this.isFrozen) this.reply(id, STATUS.TIMED_OUT, 'A process did not stop in time; all run on')
    else this.send(FRAME.REPLY, 0, id, ok().flag(TAG.PARTLY, this.hasStuckProcess).finish())
  }

  #wake(id: number, fields: FieldReader): void {
    const wakeId = fields.bytes(TAG.CONFIG_ID)?.toString('hex') ?? ''
    if (this.#phase !== 'running' && this.#phase !== 'exited') {
      this.reply(id, STATUS.WRONG_PHASE, 'The workload has never run: there is nothing to wake')
      return
    }
    const already = wakeId === this.#wakeId
    const closed = !already && fields.flag(TAG.CLOSE_CONNECTIONS) ? this.connections : 0
    if (!already) this.#become(fakeIdentityOf(fields))
    this.#wakeId = wakeId
    this.connections -= closed
    this.#setClock(fields)
    this.isFrozen = false
    const answer = this.#writeState(ok()).flag(TAG.ALREADY, already).number(TAG.CLOSED, closed)
    this.send(FRAME.REPLY, 0, id, answer.finish())
    if (this.#phase === 'exited') setImmediate(() => this.#powerOff())
    else if (!already) this.#uses.onJournal?.({ event: 'started', atMs: this.clockMs, boot: this.bootNonce })
  }

  #setClock(fields: FieldReader): void {
    const ns = fields.bytes(TAG.CLOCK_NS)?.readBigUInt64LE() ?? 0n
    this.#clockBehindMs = Number(ns / 1_000_000n) - Date.now()
  }

  /** Another machine-id makes it another machine. */
  #become(told: FakeIdentity): void {
    if (told.machineId !== undefined && told.machineId !== this.identity.machineId) this.bootNonce = randomBytes(16).toString('hex')
    this.identity = { ...this.identity, ...told }
  }

  #go(id: number, fields: FieldReader): void {
    const configId = fields.bytes(TAG.CONFIG_ID)?.toString('hex') ?? ''
    if (this.#phase !== 'parked') {
      const same = configId === this.#configId && this.#phase === 'running'
      this.reply(id, same ? STATUS.OK : STATUS.WRONG_PHASE, same ? undefined : 'The guest runs another configuration')
      return
    }
    this.#configId = configId
    this.#become(fakeIdentityOf(fields))
    this.#setClock(fields)
    for (const { tag, value } of fields.all()) if (tag === TAG.VOLUME) this.mounts.set(...volumeOf(value))
    const argv = [...fields.all()].filter(({ tag }) => tag === TAG.ARG).map(({ value }) => value.toString())
    this.#program = basename(argv[0] ?? '')
    if (this.#program === 'missing') this.#refuse(id, `command not found: ${argv[0]}`)
    else this.#run(id, argv)
  }

  #refuse(id: number, message: string): void {
    const refusal = new FieldWriter().number(TAG.STATUS, STATUS.NOT_STARTED).text(TAG.MESSAGE, message).number(TAG.EXIT_CODE, 127)
    this.send(FRAME.REPLY, 0, id, refusal.finish())
    this.exitWorkload(127, message)
  }

  #run(id: number, argv: readonly string[]): void {
    this.#phase = 'running'
    this.#uses.onJournal?.({ event: 'started', atMs: Date.now(), boot: this.bootNonce })
    this.send(FRAME.EVENT, 0, 0, new FieldWriter().number(TAG.EVENT, EVENT.STARTED).finish())
    this.send(FRAME.REPLY, 0, id, this.#writeState(ok()).finish())
    const code = codeOf(this.#program, argv)
    if (this.#program === 'echo') this.#uses.onLog?.(`${argv.slice(1).join(' ')}\n`)
    if (code !== undefined) setImmediate(() => this.exitWorkload(code, wordsFor(code)))
  }

  #stop(graceMs: number): void {
    this.isFrozen = false
    if (this.#program !== 'stubborn') {
      setImmediate(() => this.exitWorkload(143, 'killed by signal 15 (SIGTERM)'))
      return
    }
    clearTimeout(this.#grace)
    this.#grace = setTimeout(() => this.exitWorkload(137, 'killed by signal 9 (SIGKILL)'), graceMs)
  }

  #writeState(fields: FieldWriter): FieldWriter {
    fields.bytes(TAG.BOOT_NONCE, Buffer.from(this.bootNonce, 'hex')).number(TAG.PHASE, PHASES[this.#phase])
    if (this.isFrozen) fields.flag(TAG.FROZEN, true)
    return this.#writeEnding(fields)
  }

  #writeEnding(fields: FieldWriter): FieldWriter {
    if (this.#ending) fields.number(TAG.EXIT_CODE, this.#ending.code).text(TAG.MESSAGE, this.#ending.message)
    return fields
  }
}

const volumeOf = (bytes: Buffer): [serial: string, path: string] => {
  const volume = new FieldReader(bytes)
  return [volume.text(TAG.SERIAL, 64) ?? '', volume.text(TAG.PATH, 4096) ?? '']
}

const ok = (): FieldWriter => new FieldWriter().number(TAG.STATUS, STATUS.OK)
