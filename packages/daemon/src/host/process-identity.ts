import { readFileSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import type { Step } from '../lib/step.ts'
import { pollUntil } from './poll-until.ts'

/** A pid alone may be used again; with the start time (field 22 of /proc/PID/stat, clock ticks since boot) it is one process. */
export interface ProcessIdentity {
  readonly pid: number
  readonly startTicks: string
}

/** Who `pid` is right now. Undefined when no such process lives; a zombie does not live. */
export function identityOf(pid: number): ProcessIdentity | undefined {
  const fields = statFields(pid)
  const state = fields?.[0]
  const startTicks = fields?.[19]
  if (startTicks === undefined || state === 'Z' || state === 'X') return undefined
  return { pid, startTicks }
}

/** Does this very process still run? A zombie and a stranger with the same pid do not count. */
export const isAlive = (identity: ProcessIdentity): boolean => identityOf(identity.pid)?.startTicks === identity.startTicks

/**
 * Sends a signal, but only to the process that is meant. False when it is gone. Between the look and the kill the pid could in
 * theory be given away; a pid comes round again only after all the others, so that takes longer than the two system calls.
 */
export function signalProcess(identity: ProcessIdentity, signal: NodeJS.Signals): boolean {
  if (!isAlive(identity)) return false
  try {
    return process.kill(identity.pid, signal)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false
    throw error
  }
}

/** Resolves once the process is gone. It need not be a child of ours, and Node has no pidfd: hence a poll, a short one. */
export async function waitForExit(identity: ProcessIdentity, step: Pick<Step, 'signal'>): Promise<void> {
  await pollUntil(`process ${identity.pid} to end`, () => !isAlive(identity), step, { everyMs: 5, upToMs: 50 })
}

/** SIGKILL and wait. Repeat is harmless; a process that is already gone is success. */
export async function killProcess(identity: ProcessIdentity, step: Pick<Step, 'signal'>): Promise<void> {
  signalProcess(identity, 'SIGKILL')
  await waitForExit(identity, step)
}

/**
 * Ends a process whose children die with it (PDEATHSIG), and waits for them too: they die a moment later, and until then hold what
 * they held. Repeat is harmless.
 */
export async function killFamily(parent: ProcessIdentity, step: Pick<Step, 'signal'>): Promise<void> {
  // Stopped first, so that none is born between the look and the kill.
  signalProcess(parent, 'SIGSTOP')
  const children = childrenOf(parent.pid)
  await killProcess(parent, step)
  for (const child of children) await waitForExit(child, step)
}

function childrenOf(pid: number): ProcessIdentity[] {
  try {
    const pids = readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').trim().split(' ')
    return pids.map((child) => identityOf(Number(child))).filter((child) => child !== undefined)
  } catch {
    return []
  }
}

/** Every user that a process of this host runs as. */
export async function usersOfProcesses(): Promise<Set<number>> {
  const users = new Set<number>()
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const status = await readFile(`/proc/${name}/status`, 'latin1').catch(() => '')
    for (const uid of /^Uid:\s+(.*)$/m.exec(status)?.[1]?.split('\t') ?? []) users.add(Number(uid))
  }
  return users
}

/** Changes with every boot of the host; a pid and its start time of another boot mean nothing. */
export const readBootId = (): string => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()

/** What a process has used so far, as /proc tells it. Undefined once it is gone. */
export interface ProcessUsage {
  readonly cpuSeconds: number
  readonly rssBytes: number
  readonly vmsBytes: number
  /** Memory that is its own and no file's, swapped out or not: what the host has again once it is gone. */
  readonly privateBytes: number
}

export function usageOf(identity: ProcessIdentity): ProcessUsage | undefined {
  const fields = statFields(identity.pid)
  if (fields === undefined || fields[19] !== identity.startTicks) return undefined
  const number = (index: number): number => Number(fields[index] ?? 0)
  // One that is ending has given its memory back already, and is only waited for by its parent.
  if (number(20) === 0) return undefined
  return {
    cpuSeconds: (number(11) + number(12)) / CLOCK_TICKS,
    rssBytes: number(21) * PAGE_BYTES,
    vmsBytes: number(20),
    privateBytes: privateBytesOf(identity.pid),
  }
}

function privateBytesOf(pid: number): number {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'latin1')
    return [...status.matchAll(/^(?:RssAnon|VmSwap):\s+(\d+) kB$/gm)].reduce((sum, [, kib]) => sum + Number(kib) * 1024, 0)
  } catch {
    return 0
  }
}

// USER_HZ and the page size are part of the x86-64 ABI; Node has no sysconf.
const CLOCK_TICKS = 100
const PAGE_BYTES = 4096

/** Fields of /proc/PID/stat from the state on (the third). The name before it may hold spaces and brackets, so count from the last one. */
function statFields(pid: number): string[] | undefined {
  if (!Number.isSafeInteger(pid) || pid <= 0) return undefined
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
    return text.slice(text.lastIndexOf(')') + 2).split(' ')
  } catch {
    return undefined
  }
}
