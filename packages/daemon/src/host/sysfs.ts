/**
 * What the kernel shows of its devices, and how it is told to do something with them. A write may hang for as long as a driver likes, out
 * of reach of every signal, so it is done in a process of its own and waited for no longer than its step.
 */
import { constants } from 'node:fs'
import { chown, lstat, open, readdir, readFile, readlink } from 'node:fs/promises'
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'
import { runCommand } from './run-command.ts'

export interface Sysfs {
  /** `/sys`, or a tree that a test has made. */
  readonly root: string
  /** Where device nodes are. */
  readonly dev: string
  /** `/proc`. */
  readonly proc: string
  /** Writes an attribute. Rejects with what the kernel says, or when the step's time is up; it may still happen then. */
  write(file: string, text: string, step: Pick<Step, 'signal'>): Promise<void>
  /** Gives a device node to a user. */
  own(file: string, user: { readonly uid: number; readonly gid: number }): Promise<void>
  /** Is the block device of this node held by something in the kernel: a mount, swap, a pool of btrfs or ZFS, RAID, LVM? */
  isClaimed(node: string): Promise<boolean>
  /** Repeat is harmless. */
  loadModule(name: string, step: Pick<Step, 'signal'>): Promise<void>
}

export const hostSysfs: Sysfs = {
  root: '/sys',
  dev: '/dev',
  proc: '/proc',
  write: async (file, text, step) => {
    await untilAborted(runCommand(['tee', file], { step, input: text }), step.signal)
  },
  own: (file, { uid, gid }) => chown(file, uid, gid),
  isClaimed: async (node) => {
    try {
      // For a block device O_EXCL asks for a claim of one's own (open(2)); O_NONBLOCK waits for no medium.
      await (await open(node, constants.O_RDONLY | constants.O_EXCL | constants.O_NONBLOCK)).close()
      return false
    } catch (error) {
      return (error as NodeJS.ErrnoException).code === 'EBUSY'
    }
  },
  loadModule: async (name, step) => {
    await untilAborted(runCommand(['modprobe', name], { step }), step.signal)
  },
}

/** Of a host that has nothing: made-up VMs must not be given what a real one has. */
export const noSysfs: Sysfs = { ...hostSysfs, root: '/nonexistent', dev: '/nonexistent' }

/** A process that hangs in the kernel does not end when it is killed. */
async function untilAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  work.catch(() => undefined)
  const { promise, reject } = Promise.withResolvers<never>()
  const onAbort = (): void => reject(new AppError('timed_out', 'The kernel did not answer in time', { cause: signal.reason }))
  if (signal.aborted) onAbort()
  else signal.addEventListener('abort', onAbort, { once: true })
  try {
    return await Promise.race([work, promise])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

/** What an attribute says, without its newline; undefined when it is not there or says nothing. */
export async function readAttribute(file: string): Promise<string | undefined> {
  try {
    return (await readFile(file, 'utf8')).trim() || undefined
  } catch {
    return undefined
  }
}

/** The last part of where a link leads, such as a driver's name; undefined when there is no such link. */
export async function linkedName(file: string): Promise<string | undefined> {
  try {
    return path.basename(await readlink(file))
  } catch {
    return undefined
  }
}

/** In order; none when there is no such directory. */
export async function namesIn(dir: string): Promise<string[]> {
  try {
    return (await readdir(dir)).sort()
  } catch {
    return []
  }
}

/** Also of a link that leads nowhere. */
export const isThere = (file: string): Promise<boolean> =>
  lstat(file).then(
    () => true,
    () => false,
  )
