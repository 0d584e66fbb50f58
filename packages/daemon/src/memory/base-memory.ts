/**
 * Guest memory as memfds that this process holds open and hands to shims. The shim binary makes them, since Node cannot; it is gone
 * again before anything is mapped.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'
import { workerError } from '../host/disk-full.ts'
import { runCommand } from '../host/run-command.ts'
import type { Step } from '../lib/step.ts'

/** What a memory file holds: enough to see that it is whole. */
export interface MemorySum {
  /** Over the pages that are not zero. */
  readonly sum: string
  readonly pages: number
}

export interface HeldMemory extends MemorySum {
  readonly handle: FileHandle
}

/** The content of `file` in a memfd that no one can write, shrink, grow or punch. All who map it privately share its pages. */
export const loadBase = (shimPath: string, file: string, step: Step): Promise<HeldMemory> =>
  take([shimPath, 'base', file], constants.O_RDONLY, step)

/** An empty memfd for a golden boot to write; `storeBase` makes a base of it. */
export const makeBlank = (shimPath: string, bytes: number, step: Step): Promise<HeldMemory> =>
  take([shimPath, 'blank', `${bytes}`], constants.O_RDWR, step)

/** Seals what a golden boot has left in `memory` and writes it, flushed, to `file`. No VMM may still map it for writing. */
export async function storeBase(shimPath: string, memory: FileHandle, file: string, step: Step): Promise<MemorySum> {
  const { stdout } = await runCommand([shimPath, 'store', file], { step, inherit: [memory.fd], okCodes: [0, 1] })
  return storedSum(stdout, 'The memory of a golden boot could not be stored')
}

function storedSum(said: string, otherwise: string): MemorySum {
  const match = /^stored ([0-9a-f]{16}) (\d+)$/m.exec(said)
  if (match === null) throw workerError(otherwise, said)
  return { sum: match[1] ?? '', pages: Number(match[2]) }
}

export interface Consolidation {
  /** Without one the delta is laid over zeros. */
  readonly base: string | undefined
  /** What the base is said to hold; one that holds something else is refused. */
  readonly baseSum?: MemorySum
  readonly delta: string
  /** Must not exist. Anyone may write it, so that any VMM's user may: whoever is not meant to is kept out by the directory. */
  readonly out: string
  readonly maxBytesPerSecond?: number
}

/** A new base: `base` with the pages of `delta` laid over it, flushed. A copy that shares its blocks where the file system can. */
export async function consolidateBase(shimPath: string, what: Consolidation, step: Step): Promise<MemorySum> {
  const { base, baseSum, delta, out, maxBytesPerSecond } = what
  const argv = ['consolidate', base ?? '-', delta, out, `${maxBytesPerSecond ?? 0}`]
  const expected = baseSum === undefined ? [] : [baseSum.sum, `${baseSum.pages}`]
  const { stdout } = await runCommand([shimPath, ...argv, ...expected], { step, okCodes: [0, 1] })
  return storedSum(stdout, 'A base could not be made of what a VM has written')
}

/** Takes files out of the page cache, but for what someone has mapped; the bytes that they have left there. */
export async function forgetFiles(
  shimPath: string,
  files: readonly string[],
  step: Step,
  { dryRun }: { readonly dryRun: boolean },
): Promise<number> {
  let bytes = 0
  // A command line is not endless.
  for (let at = 0; at < files.length; at += 500) {
    const { stdout } = await runCommand([shimPath, 'forget', ...(dryRun ? ['--dry-run'] : []), ...files.slice(at, at + 500)], { step })
    bytes += Number(/^forgot (\d+)$/m.exec(stdout)?.[1] ?? 0)
  }
  return bytes
}

/** What the files of a memory at rest hold, read from end to end. Throws `snapshot_unusable` for a delta that contradicts itself. */
export async function sumUp(
  shimPath: string,
  { base, delta }: { base: string | undefined; delta: string | undefined },
  step: Step,
): Promise<{ readonly base: MemorySum | undefined; readonly delta: MemorySum | undefined }> {
  const { stdout } = await runCommand([shimPath, 'verify', base ?? '-', delta ?? '-'], { step, okCodes: [0, 1] })
  const damaged = /^damaged (.*)$/m.exec(stdout)
  if (damaged !== null) throw new AppError('snapshot_unusable', `What a VM has written is damaged: ${damaged[1]}`)
  const said = (what: string): MemorySum | undefined => {
    const found = new RegExp(`^${what} ([0-9a-f]{16}) (\\d+)$`, 'm').exec(stdout)
    return found === null ? undefined : { sum: found[1] ?? '', pages: Number(found[2]) }
  }
  const sums = { base: said('base'), delta: said('delta') }
  if ((base !== undefined && sums.base === undefined) || (delta !== undefined && sums.delta === undefined)) {
    throw workerError('Memory could not be read', stdout)
  }
  return sums
}

/** Opens the memfd that a helper offers, after which the helper may go. */
async function take(argv: readonly [string, ...string[]], flags: number, step: Step): Promise<HeldMemory> {
  const helper = spawn(argv[0], argv.slice(1), { stdio: ['pipe', 'pipe', 'ignore'], env: {} })
  const onAbort = (): void => void helper.kill('SIGKILL')
  step.signal.addEventListener('abort', onAbort, { once: true })
  try {
    step.signal.throwIfAborted()
    const line = await firstLine(helper)
    const match = /^held (\d+) ([0-9a-f]{16}) (\d+)$/.exec(line)
    if (match === null) throw workerError('Memory could not be had', line)
    const handle = await open(`/proc/${helper.pid}/fd/${match[1]}`, flags)
    return { handle, sum: match[2] ?? '', pages: Number(match[3]) }
  } finally {
    step.signal.removeEventListener('abort', onAbort)
    await dismiss(helper)
  }
}

async function firstLine(helper: ChildProcess): Promise<string> {
  let text = ''
  helper.once('error', () => helper.stdout?.destroy())
  if (helper.stdout === null) return text
  for await (const chunk of helper.stdout.iterator({ destroyOnReturn: false })) {
    text += String(chunk)
    if (text.includes('\n') || text.length > 4096) break
  }
  return text.split('\n', 1)[0] ?? ''
}

async function dismiss(helper: ChildProcess): Promise<void> {
  if (helper.pid === undefined || helper.exitCode !== null || helper.signalCode !== null) return
  helper.stdin?.on('error', () => undefined)
  const gone = once(helper, 'exit')
  helper.stdin?.end()
  await gone
}
