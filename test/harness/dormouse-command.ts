import { type ChildProcess, spawn } from 'node:child_process'
import { join } from 'node:path'
import { REPOSITORY } from './daemon-process.ts'

export interface CommandRun {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
  readonly ms: number
}

export interface DormouseOptions {
  /** The daemon's socket. */
  readonly socket: string
  /** The `dormouse` to run; the repository's own by default. */
  readonly program?: string
  /** Given to the command's standard input, which is then closed. */
  readonly input?: string
  readonly timeoutMs?: number
  readonly signal?: AbortSignal
  /** Ends the command (SIGINT, as a person would) once its standard output so far satisfies this. */
  readonly enough?: (stdout: string) => boolean
}

/** One command line of the CLI, as a person would type it. Any exit code is an answer; only a command that hangs is an error. */
export async function dormouse(args: readonly string[], options: DormouseOptions): Promise<CommandRun> {
  const from = performance.now()
  const child = spawn(options.program ?? join(REPOSITORY, 'bin/dormouse'), args, {
    stdio: ['pipe', 'pipe', 'pipe'],
    ...(options.signal === undefined ? {} : { signal: options.signal }),
    env: { ...process.env, DORMOUSE_HOST: `unix://${options.socket}`, NO_COLOR: '1' },
  })
  child.stdin.on('error', () => undefined)
  child.stdin.end(options.input)
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text
    if (options.enough?.(stdout)) child.kill('SIGINT')
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text
  })
  const code = await exitCodeOf(child, options.timeoutMs ?? 120_000)
  if (code === undefined) throw new Error(`'dormouse ${args.join(' ')}' did not end in time; it wrote:\n${stdout}${stderr}`)
  return { code, stdout, stderr, ms: performance.now() - from }
}

/** Undefined when it had to be ended because it took too long. */
function exitCodeOf(child: ChildProcess, limitMs: number): Promise<number | undefined> {
  const { promise, resolve, reject } = Promise.withResolvers<number | undefined>()
  const limit = setTimeout(() => {
    child.kill('SIGKILL')
    resolve(undefined)
  }, limitMs)
  child.once('error', reject)
  child.once('close', (code, signal) => resolve(code ?? (signal === 'SIGINT' ? 130 : 137)))
  return promise.finally(() => clearTimeout(limit))
}
