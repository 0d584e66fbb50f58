/** Machines of ours and not an instance's, run up to the point where the guest parks: golden boots, and the probe of KVM. */
import { randomBytes } from 'node:crypto'
import { copyFile, type FileHandle, mkdir, rm } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import { connectTo } from '../../host/unix-socket.ts'
import type { Step } from '../../lib/step.ts'
import { logTail, wordsOf } from '../log-tail.ts'
import { makeRunDir } from '../run-dir.ts'
import { type Descriptor, Shim, type ShimPlan } from '../shim.ts'
import { cgroupLimitsOf } from '../vm-cgroup.ts'
import { commandLine, FD, type Machine, SAVE_FILE } from './command-line.ts'
import { nodeName } from './disk-nodes.ts'
import type { QemuUses } from './qemu-host.ts'
import { AGENT_SOCKET, QMP_SOCKET } from './qemu-vm.ts'
import { Qmp } from './qmp.ts'

/** Boots a machine with every slot empty and no network until it is parked, and takes its device state. */
export async function captureGolden(
  uses: QemuUses,
  machine: Machine,
  groups: readonly number[],
  memory: FileHandle,
  stateFile: string,
  step: Step,
): Promise<void> {
  await withParked(uses, machine, groups, { entry: 'capture', memory }, step, async (shim, qmp) => {
    await qmp.execute('stop', undefined, step)
    // Every slot's disk changes its size now, which the guest only learns when it goes on: each that wakes looks at its disks first.
    for (let slot = 0; slot < machine.board.diskSlots; slot++) {
      await qmp.execute('block_resize', { 'node-name': nodeName(slot), size: 512 }, step)
    }
    // Without live:false it lets go of the disks, and cannot be called again.
    await qmp.execute('xen-save-devices-state', { filename: SAVE_FILE, live: false }, step)
    await copyFile(`/proc/${shim.identity.pid}/fd/${shim.blankFd}`, stateFile)
  })
}

/** Runs a machine of ours, not an instance's, up to its parked point, does `work` there and ends it, whatever happens. */
export async function withParked(
  uses: QemuUses,
  machine: Machine,
  groups: readonly number[],
  how: { entry: 'boot' } | { entry: 'capture'; memory: FileHandle },
  step: Step,
  work: (shim: Shim, qmp: Qmp) => Promise<void>,
): Promise<void> {
  const id = `golden-${randomBytes(4).toString('hex')}`
  const runDir = path.join(uses.workDir, id)
  const log = path.join(uses.workDir, `${id}.log`)
  await using undo = new AsyncDisposableStack()
  await mkdir(uses.workDir, { recursive: true, mode: 0o711 })
  await makeRunDir(runDir)
  const cgroups = await uses.cgroups?.make(id, cgroupLimitsOf(machine))
  undo.defer(() => uses.cgroups?.remove(id))
  undo.defer(() => Promise.all([runDir, log, `${log}.1`].map((name) => rm(name, { recursive: true, force: true }))).then(() => undefined))
  const plan: ShimPlan = {
    shimPath: uses.shimPath,
    runDir,
    ...(uses.goldenUser === undefined ? {} : { user: uses.goldenUser }),
    groups,
    ...(cgroups === undefined ? {} : { cgroups }),
    logs: (['app', 'vmm', 'journal'] as const).map((name) => ({ name, file: log, maxBytes: 1 << 20 })),
    isolateNetwork: true,
    vmm: {
      argv: commandLine(machine, { id, entry: how.entry, disks: [] }),
      descriptors: [
        ...COMMON_DESCRIPTORS,
        // Before the state's: the last one is the one that the shim names.
        ...(how.entry === 'capture' ? [{ number: FD.EMPTY, kind: 'blank' } as const] : [{ number: FD.MEMORY, kind: 'blank' } as const]),
        { number: FD.SAVE, kind: 'blank' },
        // Of no bridge, and gone with the machine.
        ...(machine.hasTap ? [{ number: FD.NIC, kind: 'tap', name: 'dmgolden%d' } as const] : []),
        ...vhostDescriptors(machine),
        ...(how.entry === 'capture' ? [{ number: FD.MEMORY, kind: 'daemon', fd: how.memory.fd } as const] : []),
      ],
    },
  }
  const shim = await Shim.launch(plan, step)
  undo.defer(() => void shim[Symbol.dispose]())
  undo.defer(async () => void (await shim.kill()))
  const ended = shim.ended.then(async (): Promise<never> => {
    const { last, detail } = wordsOf(await logTail(log))
    throw new AppError('guest_unavailable', `The VM ended before it was parked: ${last}`, { detail })
  })
  ended.catch(() => undefined)
  const working = parkAndWork(runDir, shim, uses, step, work).catch(async (error): Promise<never> => {
    // A connection that broke is how an end is first seen; how it ended says more.
    if (errorCodeOf(error) === 'guest_unavailable') await Promise.race([ended, sleep(1000, undefined, { ref: false })])
    throw error
  })
  await Promise.race([working, ended])
}

async function parkAndWork(
  runDir: string,
  shim: Shim,
  uses: QemuUses,
  step: Step,
  work: (shim: Shim, qmp: Qmp) => Promise<void>,
): Promise<void> {
  using qmp = await Qmp.connect(path.join(runDir, QMP_SOCKET), step)
  const stream = await connectTo(path.join(runDir, AGENT_SOCKET), step)
  try {
    await uses.awaitParked(stream, step)
    await work(shim, qmp)
  } finally {
    stream.destroy()
  }
}

/** What every machine of ours has, whoever it is for. */
export const COMMON_DESCRIPTORS: readonly Descriptor[] = [
  { number: FD.QMP, kind: 'listen', name: QMP_SOCKET },
  { number: FD.HELD, kind: 'hold' },
  { number: FD.AGENT, kind: 'listen', name: AGENT_SOCKET },
  { number: FD.APP, kind: 'log', name: 'app' },
  { number: FD.JOURNAL, kind: 'log', name: 'journal' },
  { number: FD.CONSOLE, kind: 'log', name: 'vmm' },
]

/** By which the host's kernel carries frames. */
export const VHOST_DEVICE = '/dev/vhost-net'

export const vhostDescriptors = ({ vhost }: Machine): Descriptor[] =>
  vhost ? [{ number: FD.VHOST, kind: 'write', file: VHOST_DEVICE }] : []
