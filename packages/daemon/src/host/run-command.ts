import { type ChildProcess, spawn } from 'node:child_process'
import type { Readable } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'

export interface RunOptions {
  readonly step: Pick<Step, 'signal'>
  /** Written to the command's standard input, which is closed afterwards. Without it the command reads end of file. */
  readonly input?: Readable | Uint8Array | string
  readonly cwd?: string
  /** The whole environment of the command; by default only PATH and a C locale, so that messages do not change with the host. */
  readonly env?: Readonly<Record<string, string>>
  /** More standard output than this ends the command with an error. */
  readonly maxOutputBytes?: number
  readonly user?: { readonly uid: number; readonly gid: number }
  /** Descriptors of ours that the command finds as 3, 4, .. */
  readonly inherit?: readonly number[]
  /** Exit codes that mean success; [0] when absent. */
  readonly okCodes?: readonly number[]
}

export interface CommandResult {
  readonly stdout: string
  /** Its end only: at most 16 KiB. */
  readonly stderr: string
  readonly code: number
}

/** Why an outer tool did not do it. Callers that show it to a person wrap it as the cause of an AppError. */
export class CommandError extends Error {
  override readonly name = 'CommandError'
  readonly argv: readonly string[]
  readonly exitCode: number | undefined
  readonly exitSignal: NodeJS.Signals | undefined
  /** The last lines it wrote to standard error. */
  readonly stderr: string

  constructor(argv: readonly string[], why: string, end: { code?: number; signal?: NodeJS.Signals; stderr: string; cause?: unknown }) {
    const lines = lastLines(end.stderr, 5)
    super(`${argv[0]} ${why}${lines === '' ? '' : `: ${lines}`}`, end.cause === undefined ? undefined : { cause: end.cause })
    this.argv = argv
    this.exitCode = end.code
    this.exitSignal = end.signal
    this.stderr = lastLines(end.stderr, 40)
  }
}

/**
 * Runs an outer tool to its end, without a shell and in a process group of its own. When the step's signal aborts, the group is
 * killed. A tool that is not installed is `dependency_missing`; anything else that is not success is a CommandError.
 */
export async function runCommand(argv: readonly [string, ...string[]], options: RunOptions): Promise<CommandResult> {
  const { step, input, maxOutputBytes = 1 << 20, okCodes = [0] } = options
  if (step.signal.aborted) throw new CommandError(argv, 'was not started, the time was up', { stderr: '', cause: step.signal.reason })
  const child = spawn(argv[0], argv.slice(1), {
    stdio: ['pipe', 'pipe', 'pipe', ...(options.inherit ?? [])],
    detached: true,
    env: options.env ?? { PATH: SYSTEM_PATH, LC_ALL: 'C.UTF-8' },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.user === undefined ? {} : { uid: options.user.uid, gid: options.user.gid }),
  })

  let endedBecause: { why: string; cause?: unknown } | undefined
  const end = (why: string, cause?: unknown): void => {
    endedBecause ??= { why, cause }
    killGroup(child)
  }
  const onAbort = (): void => end(whyAborted(step.signal), step.signal.reason)
  step.signal.addEventListener('abort', onAbort, { once: true })
  const stdout: Buffer[] = []
  let stdoutBytes = 0
  let stderr = Buffer.alloc(0)
  child.stdout?.on('data', (chunk: Buffer) => {
    stdoutBytes += chunk.length
    if (stdoutBytes > maxOutputBytes) end(`wrote more than ${maxOutputBytes} bytes`)
    else stdout.push(chunk)
  })
  child.stderr?.on('data', (chunk: Buffer) => {
    stderr = Buffer.concat([stderr, chunk])
    if (stderr.length > STDERR_KEPT) stderr = Buffer.from(stderr.subarray(stderr.length - STDERR_KEPT))
  })
  feed(child, input, end)

  try {
    const { code, signal } = await new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve, reject) => {
      child.once('error', reject)
      child.once('close', (code, signal) => resolve({ code, signal }))
    })
    const said = stderr.toString('utf8')
    if (endedBecause !== undefined) throw new CommandError(argv, endedBecause.why, { stderr: said, cause: endedBecause.cause })
    if (signal !== null) throw new CommandError(argv, `was killed by ${signal}`, { signal, stderr: said })
    if (code === null || !okCodes.includes(code))
      throw new CommandError(argv, `ended with code ${code}`, { code: code ?? -1, stderr: said })
    return { stdout: Buffer.concat(stdout).toString('utf8'), stderr: said, code }
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') {
      throw new AppError('dependency_missing', `The program ${argv[0]} is not installed`, {
        hint: 'See what the host lacks with: dormouse doctor',
        cause,
      })
    }
    throw cause
  } finally {
    step.signal.removeEventListener('abort', onAbort)
  }
}

const SYSTEM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
const STDERR_KEPT = 16 * 1024

function feed(child: ChildProcess, input: RunOptions['input'], end: (why: string, cause?: unknown) => void): void {
  if (child.stdin === null) return
  // A tool may end without reading its input (EPIPE); how it ended says enough.
  child.stdin.on('error', () => undefined)
  if (input === undefined || typeof input === 'string' || input instanceof Uint8Array) {
    child.stdin.end(input)
    return
  }
  input.once('error', (cause) => end('lost its input', cause))
  input.pipe(child.stdin)
  child.once('close', () => input.destroy())
}

function killGroup(child: ChildProcess): void {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch {
    child.kill('SIGKILL')
  }
}

const whyAborted = (signal: AbortSignal): string =>
  signal.reason instanceof DOMException && signal.reason.name === 'TimeoutError' ? 'took too long and was killed' : 'was cancelled'

const lastLines = (text: string, count: number): string => text.trimEnd().split('\n').slice(-count).join('\n').trim()
