/**
 * A cgroup for each VM below the daemon's own, with limits for processors, memory and processes, so that one that runs wild takes no more
 * of the host than it was given:
 *
 *   <the daemon's own>/dormouse-<which daemon>/<run directory>      cgroup v1: the same in the hierarchy of each controller
 *
 * What a host has of it differs: v2, v1, both, mounted read-only, not handed down, or none at all. What is there is used, `answer` says
 * what that is, and all goes on without the rest.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { mkdir, readFile, rmdir, writeFile } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { pollUntil } from './poll-until.ts'

export const CONTROLLERS = ['cpu', 'memory', 'pids'] as const
export type Controller = (typeof CONTROLLERS)[number]

export interface CgroupLimits {
  /** How much it weighs beside others when all want more than there is: 1 for a VM of one vCPU. */
  readonly weight: number
  /** Processors that it may keep busy. */
  readonly cpus: number
  readonly memoryBytes: number
  /** Processes and threads. */
  readonly pids: number
}

export interface CgroupsAnswer {
  readonly version: 'v1' | 'v2' | 'none'
  readonly controllers: readonly Controller[]
  /** Why a controller is missing; a sentence. */
  readonly reason?: string
}

/** A directory below which ours are, and what they limit. */
interface Hierarchy {
  readonly version: 1 | 2
  readonly parent: string
  readonly dir: string
  readonly controllers: readonly Controller[]
}

/** The unit may have put the daemon into a leaf of its own, so that VMs can have theirs beside it (`DelegateSubgroup=`). */
const DAEMON_LEAF = 'daemon'
const GONE_LIMIT_MS = 5000

export class Cgroups {
  readonly answer: CgroupsAnswer
  readonly #hierarchies: readonly Hierarchy[]

  private constructor(hierarchies: readonly Hierarchy[], reasons: readonly string[]) {
    this.#hierarchies = hierarchies
    const controllers = CONTROLLERS.filter((one) => hierarchies.some((hierarchy) => hierarchy.controllers.includes(one)))
    const [reason] = reasons
    this.answer = {
      version: hierarchies.length === 0 ? 'none' : hierarchies.some(({ version }) => version === 1) ? 'v1' : 'v2',
      controllers,
      ...(reason === undefined || controllers.length === CONTROLLERS.length ? {} : { reason }),
    }
  }

  /** Looks at what there is, and makes the directory `name` wherever VMs can have theirs. Never throws. */
  static prepare(name: string, proc = '/proc/self'): Cgroups {
    const found: Hierarchy[] = []
    const reasons: string[] = []
    for (const { version, candidates, controllers } of hierarchiesOf(proc, reasons)) {
      for (const parent of candidates) {
        try {
          const dir = join(parent, name)
          found.push({ version, parent, dir, controllers: prepareIn(version, parent, dir, controllers) })
          break
        } catch (error) {
          reasons.unshift(`${controllers.join(', ')}: ${error instanceof Error ? error.message : error}`)
        }
      }
    }
    return new Cgroups(found, reasons)
  }

  /** The cgroup `name` with these limits, as directories that a process enters. What cannot be had is left out. Repeat changes the limits. */
  async make(name: string, limits: CgroupLimits): Promise<string[]> {
    const made: string[] = []
    for (const { version, parent, dir, controllers } of this.#hierarchies) {
      const own = join(dir, name)
      try {
        // Someone who tidies up may have taken ours away while no VM was in it.
        if (!existsSync(dir)) prepareIn(version, parent, dir, controllers)
        await mkdir(own).catch(unless('EEXIST'))
        // A kernel may have a controller and not all of it. One that the daemon's own cgroup gives less than that is held by the lesser limit.
        for (const [file, text] of controllers.flatMap((one) => settingsOf(version, one, limits)))
          await writeFile(join(own, file), text).catch(unless('ENOENT', ...(file === 'cpu.cfs_quota_us' ? ['EINVAL'] : [])))
        made.push(own)
      } catch {
        await rmdir(own).catch(() => undefined)
      }
    }
    return made
  }

  /** Processes that run already become part of `name`. One that has ended is no matter. */
  async move(name: string, pids: readonly number[]): Promise<void> {
    for (const { dir } of this.#hierarchies)
      for (const pid of pids) await writeFile(join(dir, name, 'cgroup.procs'), `${pid}`).catch(unless('ESRCH', 'ENOENT'))
  }

  /** Who is in `name`, in any hierarchy, as far as this daemon can see them. */
  async members(name: string): Promise<number[]> {
    const texts = await Promise.all(this.#hierarchies.map(({ dir }) => readFile(join(dir, name, 'cgroup.procs'), 'latin1').catch(() => '')))
    // 0 is one of a PID namespace that is not ours, and to kill() it is our own process group.
    return [...new Set(texts.flatMap((text) => text.split('\n')))].map(Number).filter((pid) => pid > 0)
  }

  /** Takes `name` away, and ends what is still in it. Repeat is harmless. */
  async remove(name: string): Promise<void> {
    for (const { dir } of this.#hierarchies) {
      const isGone = async (): Promise<boolean> => {
        if (await isRemoved(join(dir, name))) return true
        for (const pid of await this.members(name)) tryKill(pid)
        return false
      }
      await pollUntil(`the cgroup ${name} to be empty`, isGone, { signal: AbortSignal.timeout(GONE_LIMIT_MS) }, { everyMs: 2, upToMs: 100 })
    }
  }

  /** The cgroups that there are, by name. */
  list(): string[] {
    return [...new Set(this.#hierarchies.flatMap(({ dir }) => namesIn(dir)))].sort()
  }

  /** Takes away those in which nothing is. */
  async sweep(): Promise<void> {
    for (const { dir } of this.#hierarchies) for (const name of namesIn(dir)) await isRemoved(join(dir, name))
  }

  /** When no VM has one, nothing is left of it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.sweep()
    for (const { dir } of this.#hierarchies) await isRemoved(dir)
  }
}

function settingsOf(version: 1 | 2, controller: Controller, { weight, cpus, memoryBytes, pids }: CgroupLimits): [string, string][] {
  const period = 100_000
  const quota = Math.round(cpus * period)
  switch (controller) {
    case 'cpu':
      return version === 1
        ? [
            ['cpu.shares', `${Math.round(weight * 1024)}`],
            ['cpu.cfs_period_us', `${period}`],
            ['cpu.cfs_quota_us', `${quota}`],
          ]
        : [
            ['cpu.weight', `${Math.min(10_000, Math.round(weight * 100))}`],
            ['cpu.max', `${quota} ${period}`],
          ]
    case 'memory':
      return [[version === 1 ? 'memory.limit_in_bytes' : 'memory.max', `${memoryBytes}`]]
    case 'pids':
      return [['pids.max', `${pids}`]]
  }
}

interface Candidate {
  readonly version: 1 | 2
  /** Directories below which ours could be, the best first. */
  readonly candidates: readonly string[]
  readonly controllers: readonly Controller[]
}

/** Pure but for what it reads: where the daemon stands in each hierarchy. */
function hierarchiesOf(proc: string, reasons: string[]): Candidate[] {
  let mounts: Mount[]
  let own: Map<string, string>
  try {
    mounts = readFileSync(join(proc, 'mountinfo'), 'utf8').split('\n').flatMap(cgroupMountOf)
    own = ownPathsOf(readFileSync(join(proc, 'cgroup'), 'utf8'))
  } catch (error) {
    reasons.push(`it cannot be seen: ${error instanceof Error ? error.message : error}`)
    return []
  }
  const left = new Set<Controller>(CONTROLLERS)
  const found: Candidate[] = []
  for (const mount of mounts.filter(({ version }) => version === 1)) {
    const controllers = CONTROLLERS.filter((one) => left.has(one) && mount.options.includes(one))
    const dir = controllers[0] === undefined ? undefined : dirIn(mount, own.get(controllers[0]))
    if (dir === undefined) continue
    found.push({ version: 1, candidates: [dir], controllers })
    for (const one of controllers) left.delete(one)
  }
  const unified = mounts.find(({ version }) => version === 2)
  const dir = unified && dirIn(unified, own.get(''))
  if (left.size === 0) return found
  if (unified === undefined || dir === undefined) {
    reasons.push(`no cgroup file system is mounted for ${[...left].join(', ')}`)
    return found
  }
  // A cgroup of v2 has processes or children with limits, not both. The root of all is the exception.
  const candidates = [...(basename(dir) === DAEMON_LEAF ? [dirname(dir)] : []), dir, unified.point]
  found.push({ version: 2, candidates: [...new Set(candidates)], controllers: [...left] })
  return found
}

interface Mount {
  readonly version: 1 | 2
  /** What of the hierarchy is to be seen there. */
  readonly root: string
  readonly point: string
  readonly options: readonly string[]
}

// proc_pid_mountinfo(5): optional fields end with a dash.
function cgroupMountOf(line: string): Mount[] {
  const match = /^\d+ \d+ \S+ (\S+) (\S+) \S+ .*?- (cgroup2?) \S+ (\S+)$/.exec(line)
  const [, root = '', point = '', kind, options = ''] = match ?? []
  return match === null ? [] : [{ version: kind === 'cgroup2' ? 2 : 1, root, point, options: options.split(',') }]
}

/** By controller; that of v2 by no name. */
function ownPathsOf(text: string): Map<string, string> {
  const lines = text.split('\n').flatMap((line) => {
    const [, controllers = '', path = ''] = /^\d+:([^:]*):(.*)$/.exec(line) ?? []
    return path === '' ? [] : controllers.split(',').map((one) => [one, path] as const)
  })
  return new Map(lines)
}

function dirIn({ root, point }: Mount, own: string | undefined): string | undefined {
  if (own === undefined) return undefined
  if (root === '/') return join(point, own)
  return own === root || own.startsWith(`${root}/`) ? join(point, own.slice(root.length)) : undefined
}

function prepareIn(version: 1 | 2, parent: string, dir: string, controllers: readonly Controller[]): readonly Controller[] {
  if (version === 2) return prepareV2(parent, dir, controllers)
  makeDir(dir)
  if (controllers.includes('cpu')) weighAll(join(dir, 'cpu.shares'), 1024)
  return controllers
}

/**
 * All VMs together weigh as much as the processors that there are. Left to itself a cgroup weighs as one process beside those of its
 * parent's, however many are in it: on a busy host all VMs had to share what one process gets.
 */
function weighAll(file: string, unit: number): void {
  try {
    writeFileSync(file, `${Math.min(availableParallelism() * unit, 100 * unit)}`)
  } catch {
    // Then they weigh less: a VM is worth more than its share.
  }
}

/** Has `parent` hand its controllers down to ours, and ours to those of VMs. */
function prepareV2(parent: string, dir: string, wanted: readonly Controller[]): readonly Controller[] {
  handDown(parent, wanted)
  makeDir(dir)
  try {
    handDown(dir, wanted)
    const handed = wordsOf(join(dir, 'cgroup.subtree_control'))
    const controllers = wanted.filter((one) => handed.includes(one))
    if (controllers.length === 0) throw new Error(`${parent} hands no controllers down`)
    // Beside the daemon alone; at the top of the hierarchy beside all that the host runs, of which none weighs more.
    if (controllers.includes('cpu') && existsSync(join(parent, DAEMON_LEAF))) weighAll(join(dir, 'cpu.weight'), 100)
    return controllers
  } catch (error) {
    removeEmpty(dir)
    throw error
  }
}

function handDown(dir: string, wanted: readonly Controller[]): void {
  const handed = wordsOf(join(dir, 'cgroup.subtree_control'))
  const there = wordsOf(join(dir, 'cgroup.controllers'))
  const missing = wanted.filter((one) => there.includes(one) && !handed.includes(one))
  if (missing.length > 0) writeFileSync(join(dir, 'cgroup.subtree_control'), missing.map((one) => `+${one}`).join(' '))
}

/** One with VMs of another life in it stays. */
function removeEmpty(dir: string): void {
  try {
    rmdirSync(dir)
  } catch {
    // What was wrong before this says more.
  }
}

function makeDir(dir: string): void {
  try {
    mkdirSync(dir)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
  }
}

const wordsOf = (file: string): string[] => readFileSync(file, 'latin1').trim().split(/\s+/)

async function isRemoved(dir: string): Promise<boolean> {
  try {
    await rmdir(dir)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT'
  }
}

function tryKill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It has ended by itself.
  }
}

const unless =
  (...codes: string[]) =>
  (error: NodeJS.ErrnoException): void => {
    if (!codes.includes(error.code ?? '')) throw error
  }

/** Its children: a cgroup's own files are no directories. */
function namesIn(dir: string): string[] {
  try {
    return readdirSync(dir, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name)
  } catch {
    return []
  }
}
