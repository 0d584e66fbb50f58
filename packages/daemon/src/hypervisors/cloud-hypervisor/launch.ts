/** One VMM under its shim, from a run directory that is made to a machine that runs or stands still. */
import { chown, mkdir, rm, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Cgroups } from '../../host/cgroups.ts'
import { runCommand } from '../../host/run-command.ts'
import type { Step } from '../../lib/step.ts'
import { logTail, wordsOf } from '../log-tail.ts'
import { OWN_DIR } from '../own-dir.ts'
import { makeRunDir } from '../run-dir.ts'
import { Shim, type ShimPlan } from '../shim.ts'
import { cgroupLimitsOf } from '../vm-cgroup.ts'
import { VSOCK_OWN_DIR } from '../vsock-guest.ts'
import { CONFIG, MEMORY_RANGES, STATE_FILE } from './capture-state.ts'
import { API_SOCKET, Control, type MachineState } from './control.ts'
import { FD, KERNEL_FILE, KERNEL_NAME, type Machine, RESTORE_DIR } from './machine.ts'
import { type PageRange, type SavedMachine, withMemory } from './saved-state.ts'

export interface Launch {
  readonly plan: Omit<ShimPlan, 'cgroups' | 'ownDir'>
  readonly machine: Pick<Machine, 'vcpus' | 'memoryMib'>
  readonly cgroups?: Cgroups
  /** What it goes on from, and the pages that it reads itself; absent: it boots. */
  readonly from?: { readonly saved: SavedMachine; readonly delta?: string }
  readonly until: MachineState
}

/** What the pages of a delta turned out to be. */
export interface Launched {
  readonly shim: Shim
  readonly delta: { readonly pages: number; readonly sum: string } | undefined
}

/** Resolves when the machine is what it was launched to be. On throw nothing is left; the error has the VMM's last words. */
export async function launch({ plan, machine, cgroups, from, until }: Launch, step: Step): Promise<Launched> {
  const { runDir, user, shimPath } = plan
  await using undo = new AsyncDisposableStack()
  await makeRunDir(runDir)
  undo.defer(() => rm(runDir, { recursive: true, force: true }))
  const own = path.join(runDir, OWN_DIR)
  await mkdir(own, { mode: 0o700 })
  await symlink(KERNEL_FILE, path.join(own, KERNEL_NAME))
  // No VMM is there yet that could have a hand in it.
  const delta = from === undefined ? undefined : await layOut(path.join(own, RESTORE_DIR), from, { user, shimPath }, step)
  const name = path.basename(runDir)
  const entered = await cgroups?.make(name, cgroupLimitsOf({ ...machine, acceleration: 'kvm' }))
  undo.defer(() => cgroups?.remove(name))
  const shim = await Shim.launch({ ...plan, ownDir: VSOCK_OWN_DIR, cgroups: entered ?? [] }, step)
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
  await Promise.all([KERNEL_NAME, RESTORE_DIR].map((file) => rm(path.join(own, file), { recursive: true, force: true })))
  undo.move()
  return { shim, delta }
}

type Owner = Pick<ShimPlan, 'user' | 'shimPath'>

async function layOut(
  dir: string,
  { saved, delta }: NonNullable<Launch['from']>,
  { user, shimPath }: { user: Owner['user'] | undefined; shimPath: string },
  step: Step,
): Promise<Launched['delta']> {
  await mkdir(dir, { mode: 0o700 })
  const memory = path.join(dir, MEMORY_RANGES)
  const pages = delta === undefined ? undefined : await readRanges(shimPath, delta, memory, step)
  await writeFile(path.join(dir, CONFIG), JSON.stringify(saved.config), { mode: 0o600 })
  await writeFile(path.join(dir, STATE_FILE), JSON.stringify(withMemory(saved.state, pages?.ranges ?? [])), { mode: 0o600 })
  if (user !== undefined) {
    const files = [dir, path.join(dir, CONFIG), path.join(dir, STATE_FILE), ...(pages === undefined ? [] : [memory])]
    await Promise.all(files.map((file) => chown(file, user.uid, user.gid)))
  }
  return pages
}

interface DeltaPages {
  readonly ranges: readonly PageRange[]
  readonly pages: number
  readonly sum: string
}

async function readRanges(shimPath: string, delta: string, out: string, step: Step): Promise<DeltaPages> {
  let stdout: string
  try {
    ;({ stdout } = await runCommand([shimPath, 'ranges', delta, out], { step, maxOutputBytes: 256 << 20 }))
  } catch (cause) {
    if (step.signal.aborted) throw cause
    throw new AppError('snapshot_unusable', 'The sleeping state cannot be used: its memory could not be loaded', { cause })
  }
  const sum = /^sum ([0-9a-f]{16}) (\d+) \d+$/m.exec(stdout)
  if (sum === null) throw new AppError('internal_error', 'The pages of a sleeping state could not be told apart')
  const ranges = [...stdout.matchAll(/^range (\d+) (\d+)$/gm)].map(([, first, count]) => ({ first: Number(first), count: Number(count) }))
  return { ranges, pages: Number(sum[2]), sum: sum[1] ?? '' }
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
