/** One VMM under its shim, from a run directory that is made to a machine that runs or stands still. */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, mkdir, open, rm, rmdir, symlink, unlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Cgroups } from '../../host/cgroups.ts'
import { workerError } from '../../host/disk-full.ts'
import { runCommand } from '../../host/run-command.ts'
import type { Step } from '../../lib/step.ts'
import type { DeltaSum } from '../../memory/capture-files.ts'
import { SCRATCH } from '../../memory/memory.ts'
import { logTail, wordsOf } from '../log-tail.ts'
import { OWN_DIR } from '../own-dir.ts'
import { makeRunDir } from '../run-dir.ts'
import { Shim, type ShimPlan } from '../shim.ts'
import { cgroupLimitsOf } from '../vm-cgroup.ts'
import { VSOCK_OWN_DIR } from '../vsock-guest.ts'
import { CONFIG, MEMORY_RANGES, STATE_FILE } from './capture-state.ts'
import { API_SOCKET, Control, type MachineState } from './control.ts'
import { FD, KERNEL_FILE, KERNEL_NAME, type Machine, RANGES_FILE, RESTORE_DIR } from './machine.ts'
import { type PageRange, type SavedMachine, withMemory } from './saved-state.ts'

export interface Launch {
  readonly plan: Omit<ShimPlan, 'cgroups' | 'ownDir'>
  readonly machine: Pick<Machine, 'vcpus' | 'memoryMib'>
  readonly cgroups?: Cgroups
  /** What it goes on from, and the pages that it reads itself; absent: it boots. */
  readonly from?: { readonly saved: SavedMachine; readonly delta?: WrittenPages }
  readonly until: MachineState
}

export interface WrittenPages {
  readonly file: string
  readonly written: DeltaSum
  /** Where they lie as the VMM reads them, until it has; not below the run directory, whose file system is small. */
  readonly scratchDir: string
}

/** Resolves when the machine is what it was launched to be. On throw nothing is left; the error has the VMM's last words. */
export async function launch({ plan, machine, cgroups, from, until }: Launch, step: Step): Promise<Shim> {
  const { runDir, user, shimPath, vmm } = plan
  await using undo = new AsyncDisposableStack()
  await makeRunDir(runDir)
  undo.defer(() => rm(runDir, { recursive: true, force: true }))
  const own = path.join(runDir, OWN_DIR)
  await mkdir(own, { mode: 0o700 })
  await symlink(KERNEL_FILE, path.join(own, KERNEL_NAME))
  // No VMM is there yet that could have a hand in it.
  await using restore = from === undefined ? undefined : await layOut(path.join(own, RESTORE_DIR), from, { user, shimPath }, step)
  const name = path.basename(runDir)
  const entered = await cgroups?.make(name, cgroupLimitsOf({ ...machine, acceleration: 'kvm' }))
  undo.defer(() => cgroups?.remove(name))
  const descriptors = [...vmm.descriptors, ...(restore?.descriptors ?? [])]
  const shim = await Shim.launch({ ...plan, vmm: { ...vmm, descriptors }, ownDir: VSOCK_OWN_DIR, cgroups: entered ?? [] }, step)
  undo.defer(() => void shim[Symbol.dispose]())
  undo.defer(async () => void (await shim.kill()))
  try {
    const ended = shim.ended.then((): never => {
      throw new AppError('internal_error', 'The VMM ended')
    })
    ended.catch(() => undefined)
    await Promise.race([new Control(() => runDir).reach(until, step), ended])
  } catch (cause) {
    if (errorCodeOf(cause) === 'timed_out') throw cause
    await Promise.race([shim.ended, sleep(1000, undefined, { ref: false })])
    const log = plan.logs.find((one) => one.name === 'vmm')?.file ?? ''
    const { last, detail } = wordsOf(await logTail(log))
    throw new AppError('internal_error', `Cloud Hypervisor did not start the VM: ${last}`, { cause, detail })
  }
  await unlink(path.join(own, KERNEL_NAME))
  undo.move()
  return shim
}

interface Laid extends AsyncDisposable {
  readonly descriptors: ShimPlan['vmm']['descriptors']
}

/** What the VMM is to read, in a directory below its own. Disposed of, it is gone, whatever a VMM has made of the directory's name by then. */
async function layOut(
  dir: string,
  { saved, delta }: NonNullable<Launch['from']>,
  { user, shimPath }: { readonly user: ShimPlan['user'] | undefined; readonly shimPath: string },
  step: Step,
): Promise<Laid> {
  await using undo = new AsyncDisposableStack()
  await mkdir(dir, { mode: 0o700 })
  undo.defer(() => rmdir(dir).catch(() => undefined))
  const handle = await open(dir, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW)
  undo.defer(() => handle.close())
  const place = (name: string): string => `/proc/self/fd/${handle.fd}/${name}`
  const pages = delta === undefined ? undefined : undo.use(await readPages(shimPath, delta, step))
  const texts = [
    [CONFIG, JSON.stringify(saved.config)],
    [STATE_FILE, JSON.stringify(withMemory(saved.state, pages?.ranges ?? []))],
  ] as const
  for (const [name, text] of texts) {
    undo.defer(() => unlink(place(name)).catch(() => undefined))
    await using file = await open(place(name), 'wx', 0o600)
    await writeFile(file, text)
    if (user !== undefined) await file.chown(user.uid, user.gid)
  }
  if (user !== undefined) await handle.chown(user.uid, user.gid)
  if (pages !== undefined) {
    if (user !== undefined) await pages.file.chown(user.uid, user.gid)
    undo.defer(() => unlink(place(MEMORY_RANGES)).catch(() => undefined))
    await symlink(RANGES_FILE, place(MEMORY_RANGES))
  }
  const kept = undo.move()
  return {
    descriptors: pages === undefined ? [] : [{ number: FD.RANGES, kind: 'daemon', fd: pages.file.fd }],
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

interface Pages extends AsyncDisposable {
  readonly ranges: readonly PageRange[]
  /** One after the other; no name leads to it. */
  readonly file: FileHandle
}

/** Throws `snapshot_unusable` for pages that are not those that were written. */
async function readPages(shimPath: string, { file, written, scratchDir }: WrittenPages, step: Step): Promise<Pages> {
  const out = path.join(scratchDir, `${SCRATCH}${randomBytes(8).toString('hex')}`)
  const options = { step, maxOutputBytes: 256 << 20, okCodes: [0, 1] }
  const { stdout, stderr, code } = await runCommand([shimPath, 'ranges', file, out], options)
  if (code !== 0) {
    const cause = workerError('The memory of the sleeping state could not be read', stdout.trim() || stderr)
    if (errorCodeOf(cause) === 'insufficient_resources') throw cause
    throw new AppError('snapshot_unusable', 'The sleeping state cannot be used: its memory could not be loaded', { cause })
  }
  await using undo = new AsyncDisposableStack()
  undo.defer(() => rm(out, { force: true }))
  const sum = /^sum ([0-9a-f]{16}) (\d+) \d+$/m.exec(stdout)
  if (sum?.[1] !== written.sum || Number(sum[2]) !== written.pages)
    throw new AppError('snapshot_unusable', 'The sleeping state cannot be used: its memory is not the one that was written')
  const ranges = [...stdout.matchAll(/^range (\d+) (\d+)$/gm)].map(([, first, count]) => ({ first: Number(first), count: Number(count) }))
  const pages = await open(out, 'r')
  return { ranges, file: pages, [Symbol.asyncDispose]: () => pages.close() }
}

/** What every machine has, whoever it is for. */
export const commonDescriptors = ({
  kernelPath,
  initrdPath,
}: {
  kernelPath: string
  initrdPath: string
}): ShimPlan['vmm']['descriptors'] => [
  { number: FD.API, kind: 'listen', name: API_SOCKET },
  { number: FD.KERNEL, kind: 'read', file: kernelPath },
  { number: FD.INITRD, kind: 'read', file: initrdPath },
]
