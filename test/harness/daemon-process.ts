/**
 * The daemon as a child process on a data directory of its own. Its VMs live on when it is stopped or killed, as they do in life;
 * `endVms` or the disposal ends them too.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, open, readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import type { HypervisorName } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { Paths } from '../../packages/daemon/src/paths.ts'
import { ApiClient } from './api-client.ts'
import { endProcessesNaming } from './processes.ts'
import { slowHostSettings, timeFactor } from './slow-host.ts'

export const REPOSITORY = resolve(import.meta.dirname, '../..')
/** The daemon from source. */
export const MAIN = join(REPOSITORY, 'packages/daemon/src/main.ts')
/** A host that is busy compiles it for long. */
const START_LIMIT_MS = 60_000
const STOP_LIMIT_MS = 60_000

export interface DaemonOptions {
  /** Holds data, run directory, socket and log. Start a second daemon on it after the first has ended to see what a restart finds. */
  readonly dir: string
  readonly driver?: HypervisorName
  /** Further settings, with their `DORMOUSE_` names. */
  readonly env?: Readonly<Record<string, string>>
  /** The program and its first arguments; the repository's own daemon by default. */
  readonly argv?: readonly [string, ...string[]]
}

export interface DaemonProcess extends AsyncDisposable {
  readonly client: ApiClient
  readonly socket: string
  readonly dir: string
  /** Where its files are. */
  readonly paths: Paths
  readonly pid: number
  /** From the spawn to the first answer of the API. */
  readonly startMs: number
  /** Settles when the process has ended, for whatever reason: its exit code, or the signal that ended it. */
  readonly exited: Promise<number | NodeJS.Signals>
  /** What it has logged so far. */
  log(): Promise<string>
  /** SIGTERM, and waits until it is gone. VMs live on. */
  stop(): Promise<void>
  /** SIGKILL. VMs live on. */
  kill(): Promise<void>
  /** Ends every VM and helper that runs on this directory, by force. */
  endVms(): Promise<number>
}

/** Resolves when the API answers. On failure the error holds the end of the daemon's log. */
export async function startDaemon(options: DaemonOptions): Promise<DaemonProcess> {
  const { dir } = options
  const paths = new Paths({ dataDir: join(dir, 'data'), runDir: join(dir, 'run') })
  const socket = join(paths.runDir, 'dormouse.sock')
  const logFile = join(dir, 'daemon.log')
  await mkdir(dir, { recursive: true })
  // So that a configuration of this host's own daemon does not leak in.
  await writeFile(join(dir, 'config.json'), '{}')
  await using log = await open(logFile, 'a')
  const [program, ...args] = options.argv ?? [process.execPath, '--disable-warning=ExperimentalWarning', MAIN]
  const from = performance.now()
  const child = spawn(program, args, { stdio: ['ignore', log.fd, log.fd], env: settingsOf(options) })
  const exited = endOf(child)
  const client = new ApiClient(socket)
  const end = async (signal: NodeJS.Signals): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) child.kill(signal)
    const limit = setTimeout(() => child.kill('SIGKILL'), STOP_LIMIT_MS * timeFactor)
    await exited
    clearTimeout(limit)
    client[Symbol.dispose]()
  }
  try {
    await untilItAnswers(client, child, exited)
  } catch (cause) {
    await end('SIGKILL')
    throw new Error(`The daemon did not start; its log ends with:\n${lastLines(await readFile(logFile, 'utf8'))}`, { cause })
  }
  return {
    client,
    socket,
    dir,
    paths,
    pid: child.pid as number,
    startMs: performance.now() - from,
    exited,
    log: () => readFile(logFile, 'utf8'),
    stop: () => end('SIGTERM'),
    kill: () => end('SIGKILL'),
    endVms: () => endProcessesNaming(join(dir, 'run')),
    async [Symbol.asyncDispose]() {
      await end('SIGKILL')
      await endProcessesNaming(dir)
    },
  }
}

function settingsOf({ dir, driver, env }: DaemonOptions): Record<string, string> {
  return {
    PATH: process.env.PATH ?? '',
    HOME: dir,
    DORMOUSE_CONFIG: join(dir, 'config.json'),
    DORMOUSE_DATA_DIR: join(dir, 'data'),
    DORMOUSE_RUN_DIR: join(dir, 'run'),
    DORMOUSE_LISTEN: 'off',
    // VMs of no instance would take the machine's two processors, and be counted: whoever wants them says so.
    DORMOUSE_POOL_SIZE: '0',
    // Whatever disk the tests are on.
    DORMOUSE_MAX_IMAGE_STORAGE: '1',
    DORMOUSE_MIN_FREE_DISK: '64MB',
    // From source: some 250 files whose types are stripped and whose code is compiled once, not at each start.
    NODE_COMPILE_CACHE: join(REPOSITORY, 'build/cache/node'),
    ...slowHostSettings,
    ...(driver === undefined ? {} : { DORMOUSE_HYPERVISOR: driver }),
    ...env,
  }
}

async function endOf(child: ChildProcess): Promise<number | NodeJS.Signals> {
  // A program that is not there has no exit; it says so by `error`, which `once` throws.
  const [code, signal] = (await once(child, 'exit').catch(() => [127, null])) as [number | null, NodeJS.Signals | null]
  return code ?? signal ?? 'SIGKILL'
}

async function untilItAnswers(client: ApiClient, child: ChildProcess, exited: Promise<number | NodeJS.Signals>): Promise<void> {
  const over = new AbortController()
  const signal = AbortSignal.any([over.signal, AbortSignal.timeout(START_LIMIT_MS)])
  void exited.then((how) => over.abort(new Error(`the daemon ended with ${how}`)))
  const answers = () =>
    child.exitCode === null &&
    client.call('GET', '/health').then(
      ({ status }) => status === 200,
      () => false,
    )
  await pollUntil('the API to answer', answers, { signal }, { everyMs: 2, upToMs: 10 })
}

const lastLines = (text: string): string => text.trimEnd().split('\n').slice(-20).join('\n')
