/**
 * A command inside a guest, held by this process: its input, its two outputs, its window, its signals and its end. `exec` is this
 * and little else; `run -it` is this on a fresh instance.
 */
import { AppError, ERROR_CODES } from '@dormouse/api/errors.ts'
import { decodeOutput, type ExecNotice, type ExecStart, type OutputChannel } from '@dormouse/api/streams.ts'
import type { Daemon } from './daemon.ts'
import { environment } from './environment.ts'
import { EscapeKeys } from './escape-keys.ts'
import { EXIT, Failure, usageFailure } from './failure.ts'
import { remark } from './output/print.ts'
import { writeOut } from './output/write-out.ts'
import { Socket } from './socket.ts'
import { RawTerminal, terminalSize, watchSize } from './terminal.ts'

export interface ExecRequest {
  readonly instance: string
  /** Empty for the guest's /bin/sh. */
  readonly command: readonly string[]
  /** Send this process's standard input; without it the command's is at its end at once. */
  readonly interactive: boolean
  readonly tty: boolean
  readonly env?: Record<string, string>
  readonly cwd?: string
  readonly user?: string
  readonly timeoutMs?: number
}

export interface ExecEnd {
  readonly exitCode: number
  /** How it ended, in words, where the code alone does not say it. */
  readonly message?: string
  /** The command, or the daemon in its place, wrote to standard error. */
  readonly wroteErrors: boolean
}

/** Where the command's output goes; the process's own streams unless said otherwise. */
export type Sink = (channel: OutputChannel, bytes: Uint8Array) => Promise<void> | void | undefined

const toStandardStreams: Sink = (channel, bytes) => writeOut(process[channel], bytes)

/** Throws when the command could not be begun, or was lost on the way. The terminal is given back however it ends. */
export async function execSession(daemon: Daemon, request: ExecRequest, sink: Sink = toStandardStreams): Promise<ExecEnd> {
  if (request.tty && request.interactive && !process.stdin.isTTY) {
    throw usageFailure('A tty was asked for, but standard input is no terminal', 'Leave out -t')
  }
  using socket = await Socket.open(daemon, 'execInstance', request.instance)
  await socket.sendJson(startOf(request))

  using session = new DisposableStack()
  if (request.tty) {
    if (request.interactive) session.use(new RawTerminal())
    session.use(watchSize((resize) => void socket.sendJson({ resize }).catch(ignore)))
  }
  session.use(forwardSignals((signal) => void socket.sendJson({ signal }).catch(ignore)))
  if (request.interactive) {
    void sendInput(socket, request.tty ? new EscapeKeys() : undefined).catch(ignore)
    session.defer(() => process.stdin.destroy())
  } else if (!request.tty) await socket.sendJson({ stdin: 'eof' })

  let wroteErrors = false
  let refusal: AppError | undefined
  for (;;) {
    const frame = await socket.next()
    if (frame === undefined)
      throw (
        refusal ?? new Failure('The daemon ended the connection before the command was over', { hint: `Is it still there? dormouse ps` })
      )
    if (frame.kind === 'bytes') {
      const output = decodeOutput(frame.bytes)
      if (output?.channel === 'stderr') wroteErrors = true
      if (output !== undefined) await sink(output.channel, output.bytes)
      continue
    }
    const notice = parseNotice(frame.text)
    if (notice === undefined) continue
    if ('exitCode' in notice)
      return { exitCode: notice.exitCode, wroteErrors, ...(notice.message !== undefined && { message: notice.message }) }
    if ('credit' in notice) continue
    // Said of the first frame, it is the last word and the connection ends; said of a later one, the command goes on.
    refusal = new AppError(ERROR_CODES.find((code) => code === notice.code) ?? 'internal_error', notice.error)
  }
}

function startOf(request: ExecRequest): ExecStart {
  const size = request.tty ? terminalSize() : undefined
  // Programs draw for this terminal, not for one that the image's author had in mind.
  const term = request.tty && request.env?.TERM === undefined ? environment.terminal() : undefined
  const env = { ...(term !== undefined && { TERM: term }), ...request.env }
  return {
    command: request.command,
    tty: request.tty,
    separate_streams: true,
    ...(Object.keys(env).length > 0 && { env }),
    ...(request.cwd !== undefined && { cwd: request.cwd }),
    ...(request.user !== undefined && { user: request.user }),
    ...(request.timeoutMs !== undefined && { timeout: request.timeoutMs / 1000 }),
    ...size,
  }
}

async function sendInput(socket: Socket, keys: EscapeKeys | undefined): Promise<void> {
  for await (const piece of process.stdin) {
    const { forGuest, isLeaving } = keys?.filter(piece as Buffer) ?? { forGuest: piece as Buffer, isLeaving: false }
    if (isLeaving) {
      remark('\r\nLeft; what ran there was ended')
      process.exit(EXIT.interrupted)
    }
    await socket.sendBytes(forGuest)
  }
  await socket.sendJson({ stdin: 'eof' })
}

const FORWARDED = ['SIGINT', 'SIGTERM', 'SIGQUIT', 'SIGHUP', 'SIGUSR1', 'SIGUSR2'] as const
const NUMBERS = { SIGINT: 2, SIGTERM: 15, SIGQUIT: 3, SIGHUP: 1, SIGUSR1: 10, SIGUSR2: 12 } as const
const ENDING: ReadonlySet<string> = new Set(['SIGINT', 'SIGTERM', 'SIGQUIT', 'SIGHUP'])

/**
 * Signals to this process are meant for the command. The same one a second time means this process: a guest that does not answer
 * must not hold a terminal. (With a raw terminal Ctrl-C is a key and never gets here.)
 */
function forwardSignals(forward: (signal: string) => void): Disposable {
  const seen = new Set<string>()
  const listeners = FORWARDED.map((signal) => {
    const listener = (): void => {
      if (seen.has(signal) && ENDING.has(signal)) process.exit(128 + NUMBERS[signal])
      seen.add(signal)
      forward(signal)
    }
    process.on(signal, listener)
    return { signal, listener }
  })
  return {
    [Symbol.dispose]: () => {
      for (const { signal, listener } of listeners) process.off(signal, listener)
    },
  }
}

function parseNotice(text: string): ExecNotice | undefined {
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value !== 'object' || value === null) return undefined
    return 'exitCode' in value || 'error' in value ? (value as ExecNotice) : undefined
  } catch {
    return undefined
  }
}

// The reading side sees the same failure and tells it.
const ignore = (): void => {}
