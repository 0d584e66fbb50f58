/** The streams of a fake guest: its programs, and its files going in and out. Credit is kept to as a real guest keeps to it. */
import { basename, posix } from 'node:path'
import { FakeDial, type FakeService } from './fake-dial.ts'
import type { FakeFiles } from './fake-files.ts'
import { codeOf, wordsFor } from './fake-programs.ts'
import { FieldReader, FieldWriter } from './fields.ts'
import type { Frame } from './frames.ts'
import { signalNumber } from './signals.ts'
import { CHANNEL, FLAG, FRAME, KIND, OP, STATUS, TAG, WINDOW_GUEST } from './wire.ts'

/** What the streams need of their guest. */
export interface FakeGuestSide {
  readonly files: FakeFiles
  /** What a program prints that looks at its guest; undefined when it is no such program. */
  tell(program: string): string | undefined
  send(type: number, flags: number, stream: number, payload: Uint8Array): void
  reply(id: number, status: number, message?: string): void
  /** What it serves at a port. */
  serviceAt(port: number): FakeService | undefined
  /** Its closing frame has been sent. */
  forget(id: number): void
}

export interface FakeStream {
  /** Its closing frame has been sent. */
  readonly isOver: boolean
  take(frame: Frame): void
  /** The daemon is gone: say nothing more. */
  abandon(): void
}

/** Undefined when the request was answered at once. */
export function openFakeStream(guest: FakeGuestSide, id: number, op: number, fields: FieldReader): FakeStream | undefined {
  switch (op) {
    case OP.EXEC:
      return new FakeExec(guest, id, fields)
    case OP.DIAL: {
      const service = guest.serviceAt(fields.number(TAG.PORT) ?? 0)
      if (service !== undefined) return new FakeDial(guest, id, fields, service)
      guest.reply(id, STATUS.FAILED, 'Connection refused')
      return undefined
    }
    case OP.STAT:
      stat(guest, id, fields)
      return undefined
    case OP.PUT:
      return new FakePut(guest, id, fields)
    case OP.GET:
      return new FakeGet(guest, id, fields)
    default:
      guest.reply(id, STATUS.UNSUPPORTED, 'This guest does not know that request')
      return undefined
  }
}

/** Frames that wait for credit. */
class Outgoing {
  credit: number
  isOver = false
  readonly #guest: FakeGuestSide
  readonly #id: number
  #queue: (() => { type: number; flags: number; payload: Buffer })[] = []

  constructor(guest: FakeGuestSide, id: number, credit: number) {
    this.#guest = guest
    this.#id = id
    this.credit = credit
  }

  data(bytes: Buffer, channel: number, isEnd = false): void {
    for (let at = 0; at < bytes.length; at += 4096) this.#put(FRAME.DATA, channel, bytes.subarray(at, at + 4096))
    if (isEnd) this.#put(FRAME.DATA, channel | FLAG.EOF, Buffer.alloc(0))
  }

  entry(payload: Buffer): void {
    this.#put(FRAME.ENTRY, 0, payload)
  }

  /** After all that waits. */
  end(payload: Buffer): void {
    this.#put(FRAME.END, 0, payload)
  }

  get isWaiting(): boolean {
    return this.#queue.length > 0
  }

  drop(): void {
    this.#queue = []
  }

  flush(): void {
    for (let next = this.#queue[0]; next; next = this.#queue[0]) {
      const { type, flags, payload } = next()
      const cost = type === FRAME.END ? 0 : payload.length
      if (cost > this.credit) return
      this.credit -= cost
      this.#queue.shift()
      this.#guest.send(type, flags, this.#id, payload)
      if (type !== FRAME.END) continue
      this.isOver = true
      this.#guest.forget(this.#id)
    }
  }

  #put(type: number, flags: number, payload: Buffer): void {
    this.#queue.push(() => ({ type, flags, payload }))
    this.flush()
  }
}

class FakeExec implements FakeStream {
  readonly #guest: FakeGuestSide
  readonly #id: number
  readonly #out: Outgoing
  readonly #program: string
  #timer: NodeJS.Timeout | undefined
  #hasEnded = false
  #owed = 0
  /** What `head -c` has yet to read. */
  #left: number

  constructor(guest: FakeGuestSide, id: number, fields: FieldReader) {
    this.#guest = guest
    this.#id = id
    this.#out = new Outgoing(guest, id, fields.number(TAG.WINDOW) ?? 0)
    const argv = [...fields.all()].filter(({ tag }) => tag === TAG.ARG).map(({ value }) => value.toString())
    this.#program = basename(argv[0] ?? '')
    this.#left = this.#program === 'head' ? Number(argv[2] ?? 0) : 0
    guest.send(FRAME.REPLY, 0, id, new FieldWriter().number(TAG.STATUS, STATUS.OK).number(TAG.WINDOW, WINDOW_GUEST).finish())
    const timeoutMs = fields.number(TAG.TIMEOUT_MS)
    const limit = timeoutMs === undefined ? undefined : setTimeout(() => this.#end(124, 'timed out'), timeoutMs)
    limit?.unref()
    const code = codeOf(this.#program, argv)
    const told = this.#program === 'echo' ? argv.slice(1).join(' ') : guest.tell(this.#program)
    if (told !== undefined) this.#out.data(Buffer.from(`${told}\n`), CHANNEL.STDOUT)
    if (this.#program === 'sleep') this.#timer = setTimeout(() => this.#end(0, wordsFor(0)), Number(argv[1] ?? 0) * 1000).unref()
    else if (code !== undefined || told !== undefined) this.#end(code ?? 0, wordsFor(code ?? 0))
    else if (this.#program !== 'cat' && this.#left === 0) this.#end(127, `command not found: ${argv[0]}`)
  }

  get isOver(): boolean {
    return this.#out.isOver
  }

  take(frame: Frame): void {
    if (frame.type === FRAME.CREDIT) {
      this.#out.credit += frame.payload.readUInt32LE()
      this.#out.flush()
      if (!this.#hasEnded) this.#repay()
    }
    if (frame.type === FRAME.RESET) this.#end(137, 'killed by signal 9 (SIGKILL)', true)
    if (frame.type === FRAME.CONTROL) this.#control(new FieldReader(frame.payload))
    if (frame.type !== FRAME.DATA || this.#hasEnded) return
    if (frame.payload.length > 0 && this.#program === 'cat') this.#out.data(frame.payload, CHANNEL.STDOUT)
    if (this.#left > 0) {
      this.#out.data(frame.payload.subarray(0, this.#left), CHANNEL.STDOUT)
      this.#left = Math.max(0, this.#left - frame.payload.length)
      if (this.#left === 0) this.#end(0, wordsFor(0))
    }
    if (this.#hasEnded) return
    if (frame.flags & FLAG.EOF) {
      if (this.#program === 'cat') this.#end(0, wordsFor(0))
      return
    }
    this.#owed += frame.payload.length
    this.#repay()
  }

  /** As a real program reads on only once what it wrote was taken. */
  #repay(): void {
    if (this.#owed === 0 || this.#out.isWaiting) return
    const credit = Buffer.alloc(4)
    credit.writeUInt32LE(this.#owed)
    this.#owed = 0
    this.#guest.send(FRAME.CREDIT, CHANNEL.STDIN, this.#id, credit)
  }

  abandon(): void {
    this.#hasEnded = true
    clearTimeout(this.#timer)
    this.#out.drop()
  }

  #control(fields: FieldReader): void {
    const signal = fields.number(TAG.SIGNAL)
    if (signal !== undefined) this.#end(128 + signal, `killed by signal ${signal}${signal === signalNumber('KILL') ? ' (SIGKILL)' : ''}`)
  }

  #end(code: number, message: string, now = false): void {
    if (this.#hasEnded && !now) return
    this.#hasEnded = true
    clearTimeout(this.#timer)
    if (now) this.#out.drop()
    else for (const channel of [CHANNEL.STDERR, CHANNEL.STDOUT]) this.#out.data(Buffer.alloc(0), channel, true)
    this.#out.end(new FieldWriter().number(TAG.STATUS, STATUS.OK).number(TAG.EXIT_CODE, code).text(TAG.MESSAGE, message).finish())
  }
}

function stat(guest: FakeGuestSide, id: number, fields: FieldReader): void {
  const found = guest.files.find(fields.text(TAG.PATH) ?? '', fields.flag(TAG.FOLLOW))
  const answer = new FieldWriter().number(TAG.STATUS, STATUS.OK).flag(TAG.EXISTS, found !== undefined)
  if (found) {
    answer.number(TAG.FILE_KIND, found.kind).number(TAG.MODE, found.mode).number(TAG.SIZE, found.bytes.length)
    answer.optional(found.linkTarget, (target) => answer.text(TAG.LINK_TARGET, target))
  }
  guest.send(FRAME.REPLY, 0, id, answer.finish())
}

class FakePut implements FakeStream {
  readonly #guest: FakeGuestSide
  readonly #id: number
  readonly #fields: FieldReader
  readonly #bytes: Buffer[] = []
  isOver = false

  constructor(guest: FakeGuestSide, id: number, fields: FieldReader) {
    this.#guest = guest
    this.#id = id
    this.#fields = fields
    guest.send(FRAME.REPLY, 0, id, new FieldWriter().number(TAG.STATUS, STATUS.OK).number(TAG.WINDOW, WINDOW_GUEST).finish())
    const there = guest.files.find(fields.text(TAG.PATH) ?? '', false)
    const isDirectory = fields.number(TAG.FILE_KIND) === KIND.DIRECTORY
    if (there && (there.kind === KIND.DIRECTORY) !== isDirectory) this.#end(isDirectory ? STATUS.NOT_DIRECTORY : STATUS.IS_DIRECTORY)
    else if (fields.number(TAG.FILE_KIND) !== KIND.FILE) this.#finish()
  }

  take(frame: Frame): void {
    if (frame.type === FRAME.RESET) this.#end(STATUS.CANCELLED)
    if (frame.type !== FRAME.DATA) return
    this.#bytes.push(frame.payload)
    const credit = Buffer.alloc(4)
    credit.writeUInt32LE(frame.payload.length)
    if (frame.flags & FLAG.EOF) this.#finish()
    else this.#guest.send(FRAME.CREDIT, CHANNEL.STDIN, this.#id, credit)
  }

  abandon(): void {}

  #finish(): void {
    const path = this.#fields.text(TAG.PATH) ?? ''
    const kind = this.#fields.number(TAG.FILE_KIND) ?? KIND.FILE
    const bytes = Buffer.concat(this.#bytes)
    const linkTarget = this.#fields.text(TAG.LINK_TARGET)
    this.#guest.files.put(path, {
      kind,
      mode: this.#fields.number(TAG.MODE) ?? (kind === KIND.DIRECTORY ? 0o755 : 0o644),
      uid: this.#fields.number(TAG.UID) ?? 0,
      gid: this.#fields.number(TAG.GID) ?? 0,
      bytes,
      ...(linkTarget !== undefined && { linkTarget }),
    })
    this.#end(STATUS.OK, bytes.length)
  }

  #end(status: number, written = 0): void {
    if (this.isOver) return
    this.#guest.send(FRAME.END, 0, this.#id, new FieldWriter().number(TAG.STATUS, status).number(TAG.BYTES, written).finish())
    this.isOver = true
    this.#guest.forget(this.#id)
  }
}

class FakeGet implements FakeStream {
  readonly #out: Outgoing

  constructor(guest: FakeGuestSide, id: number, fields: FieldReader) {
    this.#out = new Outgoing(guest, id, fields.number(TAG.WINDOW) ?? 0)
    const path = fields.text(TAG.PATH) ?? ''
    guest.send(FRAME.REPLY, 0, id, new FieldWriter().number(TAG.STATUS, STATUS.OK).number(TAG.WINDOW, 0).finish())
    const top = posix.basename(path) || '.'
    const found = guest.files.below(path)
    for (const [name, file] of found) {
      const inner = posix.relative(path, name)
      const entry = new FieldWriter().text(TAG.PATH, inner === '' ? top : `${top}/${inner}`).number(TAG.FILE_KIND, file.kind)
      entry.number(TAG.MODE, file.mode).number(TAG.UID, file.uid).number(TAG.GID, file.gid).number(TAG.SIZE, file.bytes.length)
      entry.number(TAG.MTIME, 0).optional(file.linkTarget, (target) => entry.text(TAG.LINK_TARGET, target))
      this.#out.entry(entry.finish())
      if (file.kind === KIND.FILE) this.#out.data(file.bytes, CHANNEL.STDOUT, true)
    }
    this.#out.end(new FieldWriter().number(TAG.STATUS, found.length > 0 ? STATUS.OK : STATUS.NOT_FOUND).finish())
  }

  get isOver(): boolean {
    return this.#out.isOver
  }

  take(frame: Frame): void {
    if (frame.type === FRAME.RESET) {
      this.#out.drop()
      this.#out.end(new FieldWriter().number(TAG.STATUS, STATUS.CANCELLED).finish())
    }
    if (frame.type !== FRAME.CREDIT) return
    this.#out.credit += frame.payload.readUInt32LE()
    this.#out.flush()
  }

  abandon(): void {
    this.#out.drop()
  }
}
