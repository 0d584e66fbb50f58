/**
 * The daemon's side of a shim (shim/run.c): starting one, talking to it over its socket, and learning how its VMM ended. Knows
 * nothing of any particular VMM; the descriptors and command lines come from the drivers.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import type { Socket } from 'node:net'
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { identityOf, isAlive, killFamily, signalProcess, waitForExit } from '../host/process-identity.ts'
import { connectTo } from '../host/unix-socket.ts'
import type { Step } from '../lib/step.ts'
import { type AnsweredFile, answerWord } from './answered-file.ts'
import type { ProcessIdentity, VmExit } from './hypervisor.ts'
import { portError } from './network-helper.ts'
import { ShimJob } from './shim-job.ts'
import type { EgressSpec } from './vm-spec.ts'

export interface ShimPlan {
  readonly shimPath: string
  /** Must exist and be empty. */
  readonly runDir: string
  readonly user?: { readonly uid: number; readonly gid: number }
  /** Cgroups that the shim enters, and with it all that it starts. */
  readonly cgroups?: readonly string[]
  /** Further groups of the VMM. */
  readonly groups?: readonly number[]
  readonly logs: readonly ShimLog[]
  readonly vmm: ShimChild
  /** Which of the VMM's descriptors is the memory that it maps privately; without it the VM's memory can be neither captured nor loaded. */
  readonly memory?: number
  /** The VMM gets a copy of it and maps that shared: whoever may not look into the VMM then needs not. */
  readonly copiesMemory?: boolean
  /** The VM is no one's yet: until `claim` it ends with this daemon. */
  readonly waits?: boolean
  /** A directory of the VMM's own, in which it is started: for VMMs that bind sockets themselves, and open streams into logs by them. */
  readonly ownDir?: { readonly name: string; readonly logs: readonly { readonly log: ShimLog['name']; readonly socket: string }[] }
  /** The VMM needs no network of its own: its traffic goes to the helper. */
  readonly isolateNetwork: boolean
  /** Its TAP is what the VMM finds that opens /dev/net/tun, whatever name it has for it. Nothing comes through before `openTap`. */
  readonly answersTun?: boolean
  /** What else it finds by names that it opens; more may come while it runs, also where there is none yet. Absent: it opens all by itself. */
  readonly answers?: readonly AnsweredFile[]
  /** Memory that the VMM may lock, for devices that reach it by themselves; absent: as little as any process. */
  readonly lockedBytes?: number
  readonly helper?: ShimChild
  /** Where the helper is started, though no path may lead its user there; absent: in the root. */
  readonly helperDir?: string
}

export interface ShimLog {
  readonly name: 'app' | 'vmm' | 'journal'
  readonly file: string
  readonly maxBytes: number
  /** Begins empty and stops at its limit, instead of being rotated. */
  readonly isCapped?: boolean
}

export interface ShimChild {
  readonly argv: readonly string[]
  readonly descriptors: readonly Descriptor[]
}

/**
 * What a child of the shim finds under a descriptor number. `daemon`: a descriptor that this process holds open. `offer`: a socket that listens
 * at `DIRECTORY/NAME` in the run directory, for whoever is handed that directory; no path leads others there.
 */
export type Descriptor = { readonly number: number } & (
  | { readonly kind: 'listen' | 'offer' | 'log' | 'pair' | 'tap'; readonly name: string }
  /** `scratch`: an empty file without a name, on the file system of the directory `file`. */
  | { readonly kind: 'read' | 'write' | 'scratch'; readonly file: string }
  /** The same, as large as it will be. */
  | { readonly kind: 'sized'; readonly file: string; readonly bytes: number }
  | { readonly kind: 'blank' | 'hold' }
  | { readonly kind: 'daemon'; readonly fd: number }
)

/** What a capture has read: from then on the VM may run. */
export interface CaptureRead {
  /** Pages that the VM has written since it mapped its base, those that are all zero included. */
  readonly pages: number
  readonly bytes: number
  /** Settles when both files are flushed to disk; when it rejects, neither is left. */
  readonly stored: Promise<StoredCapture>
}

export interface StoredCapture extends LoadedDelta {
  /** Of memory that was added, in order. */
  readonly added: readonly AddedDelta[]
  readonly zeroPages: number
  readonly deltaBytes: number
  readonly stateBytes: number
}

/** Memory that was added to the VM: a file by its number among the VMM's descriptors. */
export interface AddedMemory {
  readonly fd: number
  readonly bytes: number
}

export interface AddedDelta extends LoadedDelta {
  readonly bytes: number
}

const wordOf = ({ fd, bytes }: AddedMemory): string => `${fd}:${bytes}`

/** What a delta holds: enough to see that it is the one that was stored. */
export interface LoadedDelta {
  /** Zero pages included, in both. */
  readonly pages: number
  readonly sum: string
}

const SHIM_SOCKET = 'shim.sock'
const EXIT_RECORD = 'exit'

/** The arguments of `dormouse-shim run`, and the daemon's descriptors in the order in which the shim inherits them, from 3 on. */
function shimArguments(plan: ShimPlan): { argv: string[]; inherited: number[] } {
  const inherited: number[] = []
  const kindOf = (descriptor: Descriptor): string => {
    switch (descriptor.kind) {
      case 'listen':
      case 'offer':
      case 'log':
      case 'pair':
      case 'tap':
        return `${descriptor.kind}:${descriptor.name}`
      case 'read':
      case 'write':
      case 'scratch':
        return `${descriptor.kind}:${descriptor.file}`
      case 'sized':
        return `sized:${descriptor.bytes}:${descriptor.file}`
      case 'blank':
      case 'hold':
        return `${descriptor.kind}:`
      case 'daemon':
        return `inherit:${inherited.push(descriptor.fd) + 2}`
    }
  }
  const descriptors = (option: string, child: ShimChild): string[] =>
    child.descriptors.flatMap((descriptor) => [option, `${descriptor.number}=${kindOf(descriptor)}`])
  const options = [
    '--dir',
    plan.runDir,
    ...(plan.cgroups ?? []).flatMap((dir) => ['--cgroup', dir]),
    ...(plan.user === undefined ? [] : ['--user', `${plan.user.uid}:${plan.user.gid}`]),
    ...(plan.user === undefined ? [] : (plan.groups ?? []).flatMap((group) => ['--group', `${group}`])),
    ...plan.logs.flatMap((log) => [log.isCapped ? '--capped' : '--rotated', `${log.name}=${log.maxBytes}:${log.file}`]),
    ...(plan.ownDir === undefined ? [] : ['--own-dir', plan.ownDir.name]),
    ...(plan.ownDir?.logs ?? []).flatMap(({ log, socket }) => ['--serve', `${log}=${socket}`]),
    ...descriptors('--fd', plan.vmm),
    ...(plan.memory === undefined ? [] : ['--memory', `${plan.memory}`]),
    ...(plan.copiesMemory ? ['--copies-memory', 'yes'] : []),
    ...(plan.waits ? ['--waits', 'yes'] : []),
    ...(plan.isolateNetwork ? ['--isolate-network', 'yes'] : []),
    ...(plan.answersTun ? ['--answer-tun', 'yes'] : []),
    ...(plan.answers === undefined ? [] : ['--answers', 'yes', ...plan.answers.flatMap((file) => ['--answer', answerWord(file)])]),
    ...(plan.lockedBytes === undefined ? [] : ['--locked', `${plan.lockedBytes}`]),
    ...(plan.helper === undefined
      ? []
      : [...descriptors('--helper-fd', plan.helper), ...plan.helper.argv.flatMap((word) => ['--helper', word])]),
    ...(plan.helperDir === undefined ? [] : ['--helper-dir', plan.helperDir]),
    '--',
    ...plan.vmm.argv,
  ]
  return { argv: ['run', '--inherited', `${inherited.length}`, ...options], inherited }
}

export class Shim implements Disposable {
  readonly identity: ProcessIdentity
  readonly vmm: ProcessIdentity
  /** The number of the shim's own descriptor of the VMM's blank memory; only known to the daemon that started it. */
  readonly blankFd: number | undefined
  /** Settles once, when the shim has let go of us: the VMM has ended and is recorded, or the shim itself is gone. */
  readonly ended: Promise<VmExit>
  readonly #socket: Socket
  #runDir: string

  private constructor(runDir: string, identity: ProcessIdentity, vmm: ProcessIdentity, socket: Socket, blankFd?: number) {
    this.#runDir = runDir
    this.identity = identity
    this.vmm = vmm
    this.blankFd = blankFd
    this.#socket = socket
    this.ended = new Promise((resolve) => {
      // A shim that ends says nothing that the record does not; the end of the stream is the event.
      socket.on('data', () => undefined)
      socket.on('error', () => undefined)
      socket.once('close', () => resolve(howItEnded(this.runDir, [identity, vmm])))
    })
    // A VM must not keep a daemon from ending.
    socket.unref()
  }

  get runDir(): string {
    return this.#runDir
  }

  /** Starts a shim, its helper and its VMM. When it throws, none of them is left. */
  static async launch(plan: ShimPlan, step: Step): Promise<Shim> {
    const { argv, inherited } = shimArguments(plan)
    const child = spawn(plan.shimPath, argv, { stdio: ['ignore', 'pipe', 'ignore', ...inherited], detached: true, env: {} })
    try {
      const [shimPid, vmmPid, blankFd] = await readyLine(child, step)
      const identity = identityOf(shimPid)
      const vmm = identityOf(vmmPid)
      if (identity === undefined || vmm === undefined) throw new AppError('internal_error', 'The VMM ended as soon as it had started')
      const socket = await connectTo(path.join(plan.runDir, SHIM_SOCKET), step)
      child.unref()
      return new Shim(plan.runDir, identity, vmm, socket, blankFd < 0 ? undefined : blankFd)
    } catch (error) {
      await endChild(child)
      throw error
    }
  }

  /** The shim of a VM that outlived the daemon. Undefined when either of the two is gone. */
  static async adopt(runDir: string, identity: ProcessIdentity, vmm: ProcessIdentity, step: Step): Promise<Shim | undefined> {
    if (!isAlive(identity) || !isAlive(vmm)) return undefined
    try {
      const socket = await connectTo(path.join(runDir, SHIM_SOCKET), step)
      return new Shim(runDir, identity, vmm, socket)
    } catch (error) {
      if (!isAlive(identity) || !isAlive(vmm)) return undefined
      throw error
    }
  }

  /**
   * Writes what a paused VM has changed of its memory to `dir/delta`, and the device state that was saved last to `dir/state`. Resolves
   * when all is read and the VM may run on; `stored` when it is on disk. Whatever fails, no file is left. The step holds for both.
   */
  async capture(dir: string, step: Step, added: readonly AddedMemory[] = []): Promise<CaptureRead> {
    const words = added.length === 0 ? ['capture', dir] : ['capture-with', added.map(wordOf).join(), dir]
    const job = await this.#begin(words, 'capture the VM', step)
    const [, pages, bytes] = await job.answer(/^read (\d+) (\d+)$/)
    const stored = storedBy(job, added.length)
    // Whoever asks hears of it; who has given up on the capture by then need not.
    stored.catch(() => undefined)
    return { pages: Number(pages), bytes: Number(bytes), stored }
  }

  /**
   * Writes a delta over the base that the VMM has mapped and not yet touched: it must have greeted, and must not run. A VM whose load
   * failed has part of it and is to be killed.
   */
  async load(file: string, step: Step, into?: AddedMemory): Promise<LoadedDelta> {
    const words = into === undefined ? ['load', file] : ['load-added', wordOf(into), file]
    using job = await this.#begin(words, "load the VM's memory", step)
    const [, pages, sum = ''] = await job.answer(/^loaded (\d+) ([0-9a-f]{16})$/)
    return { pages: Number(pages), sum }
  }

  /**
   * Adds `file` to QEMU's descriptor set `set`. No one else may hold its control connection. A set that is not wanted any more is to be
   * removed (`remove-fd`), or the file stays open. Returns the file's number among QEMU's descriptors.
   */
  async give(file: string, access: 'ro' | 'rw', set: number, step: Step): Promise<number> {
    using job = await this.#begin(['give', file, access, `${set}`], `hand ${path.basename(file)} to the VM`, step)
    const [, fd] = await job.answer(/^gave (\d+)$/)
    return Number(fd)
  }

  /**
   * Puts the card of a VM that waits behind the TAP `name`, which is there, in place of the one that it has waited with: that is gone then.
   * What passes meanwhile is lost.
   */
  async takeTap(name: string, step: Step): Promise<void> {
    using job = await this.#begin(['tap', name], `put the VM behind the TAP ${name}`, step)
    await job.answer(/^took \S+$/)
  }

  /**
   * The way out of a VM that waits is the proxy at this socket from now on: its network helper has begun anew when this resolves. Its ports
   * and rates stay; what is asked of the helper meanwhile is lost.
   */
  async giveProxy({ mode, socket }: EgressSpec, step: Step): Promise<void> {
    using job = await this.#begin(['egress', mode, socket], "lead the VM's way out by its proxy", step)
    await job.answer(/^ok$/)
  }

  /** A capture has cut the guest's streams without a word to their other end: they end here too, and the guest may open others. */
  async cutStreams(step: Step): Promise<void> {
    using job = await this.#begin(['cut'], "end the guest's streams", step)
    await job.answer(/^ok$/)
  }

  /** Of a VMM that opens its TAP itself: nothing comes through any more, and what would is lost. Repeat is harmless. */
  async shutTap(step: Step): Promise<void> {
    using job = await this.#begin(['shut'], 'shut the TAP', step)
    await job.answer(/^ok$/)
  }

  /** Takes that back. Repeat is harmless. */
  async openTap(step: Step): Promise<void> {
    using job = await this.#begin(['open'], 'open the TAP', step)
    await job.answer(/^ok$/)
  }

  /**
   * The VMM finds this by its name from its next opening on. Its plan must have had `answers`. What it has open stays open, and is let go of
   * by the VMM alone. Repeat is harmless.
   */
  async answer(file: AnsweredFile, step: Step): Promise<void> {
    using job = await this.#begin(['answer', answerWord(file)], `have the VM find ${file.name}`, step)
    await job.answer(/^ok$/)
  }

  /** Makes what the VMM finds by that name, to write, `bytes` large; `not_found` when there is nothing. Repeat is harmless, a smaller size is refused. */
  async extend(name: string, bytes: number, step: Step): Promise<void> {
    using job = await this.#begin(['extend', name, `${bytes}`], `make ${name} larger`, step)
    await job.answer(/^ok$/)
  }

  /** Whoever opens that name from now on finds nothing. Repeat is harmless. */
  async refuse(name: string, step: Step): Promise<void> {
    using job = await this.#begin(['refuse', name], `keep ${name} from the VM`, step)
    await job.answer(/^ok$/)
  }

  /** Someone has a lock (fcntl) on what the VMM finds by that name, as a VMM that still has it open may. */
  async isLocked(name: string, step: Step): Promise<boolean> {
    using job = await this.#begin(['locked', name], `say whether ${name} is in use`, step)
    return (await job.answer(/^(yes|no)$/))[1] === 'yes'
  }

  /** Its run directory is another now: it is named relative to it, so it need not be told. */
  moved(runDir: string): void {
    this.#runDir = runDir
  }

  /** A VM that waited becomes an instance's: its logs go on in these files, and it no longer ends with this daemon. */
  async claim(logs: Readonly<Record<ShimLog['name'], string>>, step: Step): Promise<void> {
    const requests = [...Object.entries(logs).map(([name, file]) => ['log', name, file]), ['claim']]
    using job = await this.#begin([], 'take the VM over', step)
    for (const request of requests) {
      job.ask(request)
      await job.answer(/^ok$/)
    }
  }

  #begin(words: readonly string[], what: string, step: Step): Promise<ShimJob> {
    return ShimJob.start(path.join(this.runDir, SHIM_SOCKET), words, what, step)
  }

  /** Ends the VMM, whatever state it is in, and with it the shim. Repeat is harmless. */
  async kill(): Promise<VmExit> {
    this.#socket.ref()
    signalProcess(this.vmm, 'SIGKILL')
    const ended = await Promise.race([this.ended, after(KILL_LIMIT_MS)])
    if (ended !== undefined) {
      // The shim's last act was to close our connection.
      await waitForExit(this.identity, { signal: AbortSignal.timeout(KILL_LIMIT_MS) })
      return ended
    }
    // A shim that hangs (its log's disk does) takes its VMM with it.
    await killFamily(this.identity, { signal: AbortSignal.timeout(KILL_LIMIT_MS) })
    return this.ended
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }
}

async function storedBy(held: ShimJob, addedCount: number): Promise<StoredCapture> {
  using job = held
  const added: AddedDelta[] = []
  while (added.length < addedCount) {
    const [, own = '', pages, bytes] = await job.answer(/^added ([0-9a-f]{16}) (\d+) (\d+)$/)
    added.push({ sum: own, pages: Number(pages), bytes: Number(bytes) })
  }
  const [, sum = '', ...counts] = await job.answer(/^stored ([0-9a-f]{16}) (\d+) (\d+) (\d+) (\d+)$/)
  const [pages = 0, zeroPages = 0, deltaBytes = 0, stateBytes = 0] = counts.map(Number)
  return { sum, pages, zeroPages, deltaBytes, stateBytes, added }
}

const KILL_LIMIT_MS = 10_000

const after = (ms: number): Promise<undefined> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms, undefined).unref()
  })

async function howItEnded(runDir: string, processes: readonly ProcessIdentity[]): Promise<VmExit> {
  const exit = await readExit(runDir).catch(() => undefined)
  if (exit !== undefined) return exit
  // The shim was killed. The VMM dies with it, but a moment later, and until then it has the disks.
  const limit = { signal: AbortSignal.timeout(KILL_LIMIT_MS) }
  for (const identity of processes) await waitForExit(identity, limit).catch(() => undefined)
  return { kind: 'lost', atMs: Date.now() }
}

/** How the VMM of `runDir` ended, as its shim recorded it. */
export async function readExit(runDir: string): Promise<VmExit | undefined> {
  let line: string
  try {
    line = await readFile(path.join(runDir, EXIT_RECORD), 'latin1')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  const match = /^(?:exited (\d+)|signaled (SIG\S+)) (\d+)\n$/.exec(line)
  if (match === null) return undefined
  const atMs = Number(match[3])
  return match[2] === undefined ? { kind: 'exited', code: Number(match[1]), atMs } : { kind: 'signaled', signal: match[2], atMs }
}

/** `ready SHIM VMM BLANK`, or `error WHAT`: the one line that a shim says before it closes its output. */
function readyLine(child: ChildProcess, step: Step): Promise<[number, number, number]> {
  return new Promise((resolve, reject) => {
    let text = ''
    const finish = (error?: unknown): void => {
      step.signal.removeEventListener('abort', onAbort)
      child.stdout?.removeAllListeners()
      child.stdout?.destroy()
      const match = /^ready (\d+) (\d+) (-?\d+)$/m.exec(text)
      if (match) resolve([Number(match[1]), Number(match[2]), Number(match[3])])
      else reject(error ?? shimError(text))
    }
    const onAbort = (): void => finish(new AppError('timed_out', 'The shim did not start its VMM in time', { cause: step.signal.reason }))
    step.signal.addEventListener('abort', onAbort, { once: true })
    child.once('error', (cause) =>
      finish(new AppError('dependency_missing', 'The shim could not be started', { hint: 'See: dormouse doctor', cause })),
    )
    child.stdout?.on('data', (chunk: Buffer) => {
      text = (text + chunk.toString('utf8')).slice(0, 4096)
      if (text.includes('\n')) finish()
    })
    child.stdout?.once('end', () => finish())
    if (step.signal.aborted) onAbort()
  })
}

function shimError(text: string): AppError {
  const what = /^error (.*)$/m.exec(text)?.[1] ?? 'it ended without a word'
  const port = portError(what)
  if (port) return port
  return new AppError('internal_error', `The VM's process could not be started: ${what}`)
}

async function endChild(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  const gone = new Promise((resolve) => child.once('exit', resolve))
  const identity = identityOf(child.pid)
  if (identity !== undefined) await killFamily(identity, { signal: AbortSignal.timeout(KILL_LIMIT_MS) })
  await gone
}
