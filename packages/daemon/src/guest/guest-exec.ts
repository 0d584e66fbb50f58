import type { Readable, Writable } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'
import { type Ending, endingOf, refusalOf } from './answers.ts'
import { type FieldReader, FieldWriter } from './fields.ts'
import { checkText, writeWords } from './guest-config.ts'
import type { GuestLink, LinkStream, StreamOwner } from './guest-link.ts'
import { Input } from './input.ts'
import { Output } from './output.ts'
import { signalNumber } from './signals.ts'
import { CHANNEL, OP, TAG } from './wire.ts'

export interface ExecRequest {
  readonly command: readonly string[]
  readonly tty?: boolean
  /** Over the workload's own. */
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  readonly user?: string
  /** It is killed then, and its code is 124. */
  readonly timeoutMs?: number
  readonly rows?: number
  readonly cols?: number
}

/** A program that runs in the guest beside the workload. Its output waits for whoever reads here; nothing else does. */
export interface GuestExec {
  readonly stdin: Writable
  readonly stdout: Readable
  /** Ends at once with a terminal, which has one output only. */
  readonly stderr: Readable
  /** 126 and 127 when it could not be run, 128 + n after signal n, 124 after its time. Rejects when the guest is lost. */
  readonly exit: Promise<Ending>
  /** Resolves once it is on its way to the guest, as `signal` does. */
  resize(rows: number, cols: number): Promise<void>
  /** To the program and what it runs in the foreground. Rejects with `invalid_request` for a name that is none. */
  signal(name: string): Promise<void>
  /** Kills it with all it has started. Repeat is harmless, also after its end. */
  kill(): void
}

// While few programs run each may send much at once; with many, all of them together still fit.
const WINDOW_WIDE = 256 << 10
const WINDOW_NARROW = 32 << 10
const WIDE_STREAMS = 16

/** What a new stream may have under way in each of its directions, so that all of them together stay bounded. */
export const windowFor = (link: GuestLink): number => (link.openStreams < WIDE_STREAMS ? WINDOW_WIDE : WINDOW_NARROW)

/** Resolves when the program runs, or when it is known that it cannot: `exit` then says so. */
export async function startExec(link: GuestLink, request: ExecRequest, step: Step): Promise<GuestExec> {
  const window = windowFor(link)
  const exec = new RunningExec(window)
  exec.stream = link.request(encode(request, window), exec)
  const onAbort = () => exec.giveUp(new AppError('timed_out', 'The program was not started in time', { cause: step.signal.reason }))
  step.signal.addEventListener('abort', onAbort, { once: true })
  if (step.signal.aborted) onAbort()
  try {
    await exec.started
    return exec
  } finally {
    step.signal.removeEventListener('abort', onAbort)
  }
}

function encode(request: ExecRequest, window: number): Buffer {
  if (request.command.length === 0) throw new AppError('invalid_request', 'There is no command to run')
  const fields = new FieldWriter().number(TAG.OP, OP.EXEC).number(TAG.WINDOW, window)
  writeWords(fields, request.command, request.env ?? {})
  return fields
    .flag(TAG.TTY, request.tty === true)
    .optional(request.cwd, (cwd) => fields.text(TAG.CWD, checkText(cwd)))
    .optional(request.user, (user) => fields.text(TAG.USER, checkText(user)))
    .optional(request.timeoutMs, (ms) => fields.number(TAG.TIMEOUT_MS, Math.max(1, Math.ceil(ms))))
    .optional(request.rows, (rows) => fields.number(TAG.ROWS, rows))
    .optional(request.cols, (cols) => fields.number(TAG.COLS, cols))
    .finish()
}

class RunningExec implements GuestExec, StreamOwner {
  stream: LinkStream | undefined
  readonly stdin: Input
  readonly stdout: Output
  readonly stderr: Output
  readonly started: Promise<void>
  readonly exit: Promise<Ending>
  readonly #started = Promise.withResolvers<void>()
  readonly #exit = Promise.withResolvers<Ending>()
  #isOver = false

  constructor(window: number) {
    this.started = this.#started.promise
    this.exit = this.#exit.promise
    // Whoever only reads the output need not look at the end.
    this.exit.catch(() => undefined)
    this.stdin = new Input((bytes, isEnd) => this.#isOver || this.stream?.data(bytes, isEnd))
    const output = (channel: number) => new Output(window, (bytes) => this.#isOver || this.stream?.credit(channel, bytes))
    this.stdout = output(CHANNEL.STDOUT)
    this.stderr = output(CHANNEL.STDERR)
  }

  reply(fields: FieldReader): { isLast: boolean } {
    const refusal = refusalOf(fields, 'The program could not be started')
    if (refusal) {
      this.lost(refusal)
      return { isLast: true }
    }
    this.#grant(fields.number(TAG.WINDOW) ?? 0)
    this.#started.resolve()
    return { isLast: false }
  }

  data(channel: number, bytes: Buffer, isEnd: boolean): void {
    const output = channel === CHANNEL.STDOUT ? this.stdout : channel === CHANNEL.STDERR ? this.stderr : undefined
    if (!output?.receive(bytes, isEnd)) this.stream?.accuse('it sent more than it was given credit for')
  }

  credit(bytes: number): void {
    this.#grant(bytes)
  }

  end(fields: FieldReader): void {
    const ending = endingOf(fields)
    this.#isOver = true
    this.stdout.finish()
    this.stderr.finish()
    this.stdin.destroy()
    this.#exit.resolve(ending)
  }

  lost(error: AppError): void {
    this.#isOver = true
    this.stdin.destroy()
    this.stdout.destroy()
    this.stderr.destroy()
    this.#exit.reject(error)
    this.#started.reject(error)
  }

  /** Before it has started: the caller has stopped waiting. */
  giveUp(error: AppError): void {
    this.stream?.abandon()
    this.lost(error)
  }

  async resize(rows: number, cols: number): Promise<void> {
    if (!this.#isOver) await this.stream?.control(new FieldWriter().number(TAG.ROWS, rows).number(TAG.COLS, cols).finish())
  }

  async signal(name: string): Promise<void> {
    const number = signalNumber(name)
    if (!this.#isOver) await this.stream?.control(new FieldWriter().number(TAG.SIGNAL, number).finish())
  }

  kill(): void {
    if (!this.#isOver) this.stream?.reset()
  }

  #grant(bytes: number): void {
    if (!this.stdin.grant(bytes)) this.stream?.accuse('it granted more than it can take')
  }
}
