/** A command in a guest, over a WebSocket. The frames are described in docs/streams.md. */
import type { Readable, Writable } from 'node:stream'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import {
  CHANNEL,
  EXIT,
  type ExecStart,
  FRAME_MAX,
  type OutputChannel,
  STDIN_FRAME_COST,
  STDIN_WINDOW,
  WINDOW,
} from '@dormouse/api/streams.ts'
import { type Static, Type } from 'typebox'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import { checkInput } from './check-input.ts'
import { FIRST_FRAME_MS, readFirstFrame } from './first-frame.ts'
import { StreamCredit } from './stream-credit.ts'
import type { GuestDoor, GuestExecDoor } from './uses.ts'
import type { Frame, WebSocketPeer } from './web-socket-peer.ts'

const strict = { additionalProperties: false } as const
const Size = Type.Integer({ minimum: 1, maximum: 65_535 })

/** The longest that a timer of Node can be told: one that is asked for more fires at once. */
const TIMEOUT_MAX_S = 2_147_483

const Start = Type.Object(
  {
    command: Type.Optional(Type.Array(Type.String({ pattern: '^[^\\u0000]*$' }), { maxItems: 4096 })),
    tty: Type.Optional(Type.Boolean()),
    env: Type.Optional(Type.Record(Type.String({ pattern: '^[^=\\u0000]+$' }), Type.String({ pattern: '^[^\\u0000]*$' }), strict)),
    cwd: Type.Optional(Type.String({ maxLength: 4096, pattern: '^[^\\u0000]*$' })),
    user: Type.Optional(Type.String({ maxLength: 256 })),
    timeout: Type.Optional(Type.Number({ minimum: 0, maximum: TIMEOUT_MAX_S })),
    // Without effect: an instance that boots is refused before this frame can be read.
    wait_for_agent: Type.Optional(Type.Number({ minimum: 0 })),
    rows: Type.Optional(Type.Integer({ minimum: 0, maximum: 65_535 })),
    cols: Type.Optional(Type.Integer({ minimum: 0, maximum: 65_535 })),
    separate_streams: Type.Optional(Type.Boolean()),
    window: Type.Optional(Type.Integer({ minimum: WINDOW.least, maximum: WINDOW.most })),
  },
  strict,
)
const Resize = Type.Object({ resize: Type.Object({ rows: Size, cols: Size }, strict) }, strict)
const Signal = Type.Object({ signal: Type.String({ pattern: '^(SIG)?[A-Z0-9+-]{2,12}$' }) }, strict)
const OutputCredit = Type.Object(
  {
    credit: Type.Object(
      { channel: Type.Enum(['stdout', 'stderr']), bytes: Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER }) },
      strict,
    ),
  },
  strict,
)
const StdinEnd = Type.Object({ stdin: Type.Literal('eof') }, strict)

/** How long output may still come after the command has ended: something that it left behind may hold the pipe. */
const DRAIN_MS = 5_000
const GUEST_SLACK_MS = 2_000

export interface ExecUses {
  readonly guest: GuestDoor
  readonly log: Logger
  /** The daemon closes, or the caller's token has ended; its reason says which. */
  readonly closing: AbortSignal
}

export async function runExec(peer: WebSocketPeer, { guest, log, closing }: ExecUses): Promise<void> {
  using _ = peer
  let start: ExecStart
  const first = await peer.next(FIRST_FRAME_MS)
  try {
    start = readStart(first)
  } catch (error) {
    await peer.sendJson({ error: sentenceOf(error), code: 'invalid_request' })
    // The contract's word for it is the one above. Who knows only exit codes would take the close that follows for a success.
    if (!asksForSeparateStreams(first)) await failMerged(peer, error)
    return
  }
  const step: Step = { signal: AbortSignal.any([peer.gone, closing]), log }
  let exec: GuestExecDoor
  try {
    exec = await guest.exec(requestOf(start), step)
  } catch (error) {
    log.debug({ err: error }, 'exec did not start')
    await failStart(peer, start, closing.aborted ? closing.reason : error)
    return
  }
  await converse(peer, exec, start, { step, closing })
}

/** A program that never was is told by its code and by words about why; one that ran tells how it ended. */
const couldNotRun = ({ code, message }: { code: number; message: string }): boolean =>
  (code === EXIT.notExecutable || code === EXIT.notFound) && message !== '' && !/^(exited|killed) /.test(message)

/** Of what could not be run. Whatever else comes instead of a start is no word about the program. */
const NOT_RUN: ReadonlySet<ErrorCode> = new Set(['not_found', 'path_not_found', 'invalid_path', 'invalid_request'])

/** The published clients hear of a program that could not be run by output and an exit code, and know no other way. */
async function failStart(peer: WebSocketPeer, start: ExecStart, error: unknown): Promise<void> {
  if (!(error instanceof AppError && NOT_RUN.has(error.code))) return failExec(peer, start, error)
  const { code, message } = error
  const exitCode = code === 'invalid_path' || /permission denied/i.test(message) ? EXIT.notExecutable : EXIT.notFound
  await peer.send(framed(start, 'stderr', errorText(message)))
  await tellExit(peer, start, exitCode, message)
}

/** The guest was lost, or the daemon closes: how the command ends is not known. */
async function failExec(peer: WebSocketPeer, start: ExecStart, error: unknown): Promise<void> {
  if (start.separate_streams !== true) return failMerged(peer, error)
  await peer.sendJson({ error: sentenceOf(error), code: error instanceof AppError ? error.code : 'guest_unavailable' })
}

/** As the published clients hear of anything that goes wrong: they pass over any other text, and take a clean close for exit code 0. */
async function failMerged(peer: WebSocketPeer, error: unknown): Promise<void> {
  await peer.send(errorText(sentenceOf(error)))
  await peer.sendJson({ exitCode: EXIT.notFound })
}

/** The last frame. One of the published clients takes nothing beside the code; words are for who can tell them from output. */
function tellExit(peer: WebSocketPeer, start: ExecStart, exitCode: number, message: string): Promise<void> {
  return peer.sendJson(start.separate_streams === true ? { exitCode, message } : { exitCode })
}

const errorText = (message: string): Buffer => Buffer.from(`Error: ${message}\r\n`)

/** A command that runs, and who asked for it. */
interface Session {
  readonly peer: WebSocketPeer
  readonly exec: GuestExecDoor
  readonly start: ExecStart
  readonly credit: Readonly<Record<OutputChannel, StreamCredit>>
  readonly input: Stdin
}

async function converse(
  peer: WebSocketPeer,
  exec: GuestExecDoor,
  start: ExecStart,
  { step: { signal, log }, closing }: { readonly step: Step; readonly closing: AbortSignal },
): Promise<void> {
  const credit = { stdout: new StreamCredit(start.window), stderr: new StreamCredit(start.window) }
  const input = new Stdin(exec.stdin, start.window === undefined ? undefined : (bytes) => peer.sendJson({ credit: bytes }))
  const session: Session = { peer, exec, start, credit, input }
  peer.gone.addEventListener('abort', () => {
    for (const one of Object.values(credit)) one.close()
  })
  // An error event that no one hears would end the daemon; what matters of it comes by `exit`.
  for (const stream of [exec.stdin, exec.stdout, exec.stderr]) stream.on('error', (error) => log.debug({ err: error }, 'exec stream'))
  try {
    const limit = start.timeout ? AbortSignal.timeout(Math.ceil(start.timeout * 1000)) : undefined
    const killed = killedAfter(AbortSignal.any([signal, ...(limit ? [limit] : [])]), exec)
    const output = Promise.all([pump(exec.stdout, 'stdout', session), pump(exec.stderr, 'stderr', session)])
    output.catch(() => undefined)
    void feed(session).catch((error: unknown) => log.debug({ err: error }, 'exec input ended'))
    const exit = await Promise.race([exec.exit, killed])
    // Of a command whose end the guest has told, all output is here: its reader takes the time that he needs.
    await (exit === KILLED ? within(DRAIN_MS, output) : output.catch(() => undefined))
    if (couldNotRun(exit)) await peer.send(framed(start, 'stderr', errorText(exit.message)))
    if (limit?.aborted === true && !signal.aborted) await tellExit(peer, start, EXIT.timedOut, `killed after ${start.timeout} s`)
    else await tellExit(peer, start, exit.code, exit.message)
  } catch (error) {
    log.debug({ err: error }, 'exec was cut off')
    // What follows from a close is told as that.
    await failExec(peer, start, closing.aborted ? closing.reason : error)
  } finally {
    exec.kill()
  }
}

const KILLED = { code: 137, message: 'killed by signal 9 (SIGKILL)' }

/** Kills the command once `ending` fires, and is its end when the guest does not tell one: no guest holds a connection for ever. */
function killedAfter(ending: AbortSignal, exec: GuestExecDoor): Promise<typeof KILLED> {
  return new Promise((resolve) => {
    const kill = () => {
      exec.kill()
      setTimeout(resolve, DRAIN_MS, KILLED).unref()
    }
    if (ending.aborted) kill()
    else ending.addEventListener('abort', kill, { once: true })
  })
}

/** Guest to peer, at the pace of the peer. */
async function pump(source: Readable, channel: OutputChannel, { peer, start, credit }: Session): Promise<void> {
  // One byte is the channel's.
  const longest = FRAME_MAX - 1
  for await (const chunk of source as AsyncIterable<Buffer>) {
    for (let at = 0; at < chunk.length; ) {
      const size = await credit[channel].take(Math.min(longest, chunk.length - at))
      await peer.send(framed(start, channel, chunk.subarray(at, at + size)))
      at += size
    }
    if (peer.gone.aborted) return
  }
}

function framed(start: ExecStart, channel: OutputChannel, bytes: Uint8Array): Uint8Array {
  return start.separate_streams === true ? Buffer.concat([Buffer.of(CHANNEL[channel]), bytes]) : bytes
}

/** Peer to guest, at the pace of the guest. Only clients that ask for separate streams know of signals and an end of stdin. */
async function feed(session: Session): Promise<void> {
  const { peer, exec, start, input } = session
  for await (const frame of peer.frames()) {
    if (!frame.isText) await input.write(frame.data)
    else if (start.separate_streams === true) await control(frame, session)
    else if (start.tty !== true || !(await resize(frame, exec))) await input.write(frame.data)
  }
}

/**
 * Standard input. That of a caller with a window waits here, so that what he says of his outputs is heard meanwhile: a command that
 * reads on only once its output is taken would wait for ever otherwise. Who sends more than he may is held up as all others are.
 */
class Stdin {
  readonly #stdin: Writable
  readonly #took: ((bytes: number) => Promise<void>) | undefined
  #waiting = 0
  #writing: Promise<void> = Promise.resolve()

  constructor(stdin: Writable, took: ((bytes: number) => Promise<void>) | undefined) {
    this.#stdin = stdin
    this.#took = took
  }

  async write(data: Buffer): Promise<void> {
    const cost = data.length + STDIN_FRAME_COST
    this.#waiting += cost
    this.#writing = this.#writing.then(async () => {
      await write(this.#stdin, data)
      this.#waiting -= cost
      await this.#took?.(cost)
    })
    if (this.#took === undefined || this.#waiting > STDIN_WINDOW) await this.#writing
  }

  /** After all that was written. */
  end(): void {
    this.#writing = this.#writing.then(() => void this.#stdin.end())
  }
}

/** Text frames are control and nothing else; one that is none is told of, and the command goes on. */
async function control(frame: Frame, { peer, exec, credit, input }: Session): Promise<void> {
  const value = parse(frame)
  try {
    if (isObjectWith(value, 'resize')) await resize(frame, exec)
    else if (isObjectWith(value, 'signal')) {
      checkInput(Signal, value, 'The frame')
      const { signal } = value as Static<typeof Signal>
      await exec.signal(signal.startsWith('SIG') ? signal : `SIG${signal}`)
    } else if (isObjectWith(value, 'credit')) {
      checkInput(OutputCredit, value, 'The frame')
      const { channel, bytes } = (value as Static<typeof OutputCredit>).credit
      credit[channel].grant(bytes)
    } else {
      checkInput(StdinEnd, value, 'The frame')
      input.end()
    }
  } catch (error) {
    // Who asks wrongly again and again waits until he has read what he was told.
    await peer.sendJson({ error: sentenceOf(error), code: 'invalid_request' })
  }
}

async function resize(frame: Frame, exec: GuestExecDoor): Promise<boolean> {
  const value = parse(frame)
  if (!isObjectWith(value, 'resize')) return false
  try {
    checkInput(Resize, value, 'The frame')
  } catch {
    return true
  }
  const { rows, cols } = (value as Static<typeof Resize>).resize
  await exec.resize(rows, cols)
  return true
}

/** Resolves when the guest takes more. What comes after the command has ended goes nowhere. */
function write(stdin: Writable, data: Buffer): Promise<void> {
  if (!stdin.writable) return Promise.resolve()
  if (stdin.write(data)) return Promise.resolve()
  return new Promise((resolve) => {
    const done = () => {
      stdin.off('drain', done).off('close', done).off('error', done)
      resolve()
    }
    stdin.on('drain', done).on('close', done).on('error', done)
  })
}

function readStart(frame: Frame | undefined): ExecStart {
  const start = readFirstFrame(Start, frame, 'the command') as ExecStart
  if (start.window !== undefined && start.separate_streams !== true) {
    throw new AppError('invalid_request', 'A `window` needs `separate_streams`: without them there are no frames to say what was taken')
  }
  return start
}

function asksForSeparateStreams(first: Frame | undefined): boolean {
  const value = first?.isText === true ? parse(first) : undefined
  return isObjectWith(value, 'separate_streams') && (value as ExecStart).separate_streams === true
}

function requestOf(start: ExecStart) {
  const { command = [], tty = false, env, cwd, user, timeout, rows, cols } = start
  return {
    command: command.length > 0 ? [...command] : ['/bin/sh'],
    tty,
    ...(env !== undefined && { env: { ...env } }),
    ...(cwd !== undefined && cwd !== '' && { cwd }),
    ...(user !== undefined && user !== '' && { user }),
    // The guest's own limit is the second line: the first is here, and knows what to answer.
    ...(timeout !== undefined && timeout > 0 && { timeoutMs: timeout * 1000 + GUEST_SLACK_MS }),
    ...(rows !== undefined && rows > 0 && cols !== undefined && cols > 0 && { rows, cols }),
  }
}

function parse(frame: Frame): unknown {
  try {
    return JSON.parse(frame.data.toString())
  } catch {
    return undefined
  }
}

const isObjectWith = (value: unknown, key: string): value is object =>
  typeof value === 'object' && value !== null && Object.hasOwn(value, key)

const sentenceOf = (error: unknown): string => (error instanceof AppError ? error.message : 'The guest did not answer')

async function within(ms: number, work: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms)
  })
  await Promise.race([work, late]).finally(() => clearTimeout(timer))
}
