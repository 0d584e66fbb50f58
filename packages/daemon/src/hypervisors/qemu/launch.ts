/** The launch of a VMM: its shim's plan, what it is wired to, and its way to the point from which its VM goes on. */
import { rm } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import { readBootId } from '../../host/process-identity.ts'
import type { Step } from '../../lib/step.ts'
import type { VmHandle } from '../hypervisor.ts'
import { logTail, wordsOf } from '../log-tail.ts'
import { NETWORK_SOCKET, NetworkHelper, portWord, rateWords } from '../network-helper.ts'
import { makeRunDir } from '../run-dir.ts'
import { type Descriptor, Shim, type ShimPlan } from '../shim.ts'
import { cgroupLimitsOf } from '../vm-cgroup.ts'
import { shimLogsOf } from '../vm-logs.ts'
import type { DiskSpec, NicSpec, UserNicSpec, VmSpec } from '../vm-spec.ts'
import type { Board } from './boards.ts'
import { commandLine, FD, type Machine, STATE_URI, type Wiring } from './command-line.ts'
import { DIMM_ROOM_MIB, dimmFd } from './dimms.ts'
import { diskDescriptors } from './disk-nodes.ts'
import { captureFactsOf } from './golden-shape.ts'
import { COMMON_DESCRIPTORS, vhostDescriptors } from './parked-machine.ts'
import { loadDevices } from './prepared-machine.ts'
import type { HostAnswers, QemuUses } from './qemu-host.ts'
import { QMP_SOCKET } from './qemu-vm.ts'
import { Qmp } from './qmp.ts'
import { throttle } from './throttle.ts'
import { baseOf, dimmsIn, loadMemory, memoryOf, type Origin, stateOf } from './vm-origin.ts'

export type LaunchUses = Pick<QemuUses, 'cgroups' | 'shimPath' | 'memory' | 'networkHelperPath' | 'allowHostAccess'>

export interface Launch {
  readonly spec: VmSpec
  readonly machine: Machine
  readonly host: HostAnswers
  readonly origin: Origin
}

/** What is running under its shim. */
export interface Launched {
  readonly shim: Shim
  readonly handle: VmHandle
}

/**
 * A VM of `spec` under its shim, as far as its origin leads it: booting, awake, or restored and paused; one that waits for its sleeper has its
 * devices still to load. On throw nothing of it is left. Throws `WakeFailed` for one that did not come out of its golden boot.
 */
export async function launch(uses: LaunchUses, { spec, machine, host, origin }: Launch, step: Step): Promise<Launched> {
  await using undo = new AsyncDisposableStack()
  await makeRunDir(spec.runDir)
  undo.defer(() => rm(spec.runDir, { recursive: true, force: true }))
  const { cgroups } = uses
  const name = path.basename(spec.runDir)
  const addedMib = (spec.hotplugMib ?? 0) + machine.memoryMib
  const entered = await cgroups?.make(name, cgroupLimitsOf({ ...machine, memoryMib: addedMib }))
  undo.defer(() => cgroups?.remove(name))
  const shim = await Shim.launch({ ...planOf(uses, { spec, machine, host, origin }), cgroups: entered ?? [] }, step)
  undo.defer(() => void shim[Symbol.dispose]())
  undo.defer(async () => void (await shim.kill()))
  try {
    using qmp = await Qmp.connect(path.join(spec.runDir, QMP_SOCKET), step)
    // A disk is not looked at before its guest is told to go, or runs on.
    if (spec.diskIoBps !== undefined) await throttle(qmp, blockDevicesOf(machine.board, spec.disks), spec.diskIoBps, step)
    if (origin.entry === 'wake') {
      await qmp.execute('migrate-incoming', { uri: STATE_URI }, step)
      // Not only loaded: it runs.
      await qmp.event('RESUME', step)
    }
    if (origin.entry === 'restore') {
      await loadMemory(shim, origin, step)
      if (!origin.waits) await loadDevices(qmp, step)
    }
  } catch (cause) {
    if (errorCodeOf(cause) === 'timed_out' || errorCodeOf(cause) === 'snapshot_unusable') throw cause
    await Promise.race([shim.ended, sleep(1000, undefined, { ref: false })])
    // The log goes with an instance that could not be made, so the error takes its end along.
    const { last, detail } = wordsOf(await logTail(spec.logs.vmm))
    const message = `QEMU did not start the VM: ${last}`
    throw origin.entry === 'wake' ? new WakeFailed(message, { cause }) : new AppError('internal_error', message, { cause, detail })
  }
  const handle = {
    hypervisor: machine.board.hypervisor,
    runDir: spec.runDir,
    shim: shim.identity,
    vmm: shim.vmm,
    bootId: readBootId(),
    startedAtMs: Date.now(),
    machine: {
      ...baseOf(origin),
      memoryBytes: machine.memoryMib * 2 ** 20,
      facts: captureFactsOf(machine, host, networkKindOf(spec)),
    },
  }
  undo.move()
  return { shim, handle }
}

/** A VM that did not come out of its golden boot. Never leaves the driver. */
export class WakeFailed extends Error {
  override readonly name = 'WakeFailed'
}

/** The other end of its network helper, of one that has such. */
export const networkOf = (runDir: string, hasNetwork: boolean): NetworkHelper | undefined =>
  hasNetwork ? new NetworkHelper(runDir) : undefined

export const networkKindOf = (spec: VmSpec): 'user' | 'tap' | 'none' => spec.nic?.backend ?? 'none'

function planOf(uses: LaunchUses, { spec, machine, host, origin }: Launch): ShimPlan {
  const waits = origin.entry !== 'boot' && origin.waits === true
  // Its disks are not the ones that it will have.
  const changesDisks = waits && origin.entry === 'wake'
  const wiring: Wiring = {
    id: spec.id,
    changesDisks,
    entry: origin.entry,
    ownsMemory: host.outOfReach !== undefined,
    disks: spec.disks,
    dimms: dimmsIn(origin),
    ...(spec.nic === undefined ? {} : { nic: { mac: spec.nic.mac } }),
    ...(spec.hostDevices === undefined ? {} : { hostDevices: spec.hostDevices }),
  }
  return {
    shimPath: uses.shimPath,
    runDir: spec.runDir,
    ...(spec.user === undefined ? {} : { user: spec.user }),
    groups: host.acceleration.groups,
    logs: shimLogsOf(spec.logs),
    waits,
    isolateNetwork: true,
    ...(spec.hostDevices === undefined ? {} : { lockedBytes: lockedBytesOf(machine) }),
    memory: FD.MEMORY,
    copiesMemory: host.outOfReach !== undefined,
    vmm: {
      argv: commandLine(machine, wiring),
      descriptors: [
        ...COMMON_DESCRIPTORS,
        memoryOf(origin),
        ...dimmsIn(origin).map(({ slot }) => ({ number: dimmFd(slot), kind: 'scratch', file: uses.memory.scratchDir }) as const),
        ...stateOf(origin),
        ...(changesDisks ? [{ number: FD.EMPTY, kind: 'blank' } as const] : []),
        // After all other blanks: the last one is the one that the shim names.
        { number: FD.SAVE, kind: 'blank' },
        ...nicDescriptors(spec.nic),
        ...vhostDescriptors(machine),
        ...diskDescriptors(spec.disks),
      ],
    },
    ...(spec.nic?.backend === 'user' ? { helper: networkHelper(uses, spec.nic) } : {}),
    ...(spec.nic?.backend === 'user' && spec.nic.egress !== undefined ? { helperDir: path.dirname(spec.nic.egress.socket) } : {}),
  }
}

function networkHelper(uses: LaunchUses, { ports, bandwidth, egress }: UserNicSpec): ShimPlan['helper'] {
  return {
    argv: [
      uses.networkHelperPath,
      // It is started in the socket's directory.
      ...(egress === undefined ? [] : ['--egress', egress.mode, path.basename(egress.socket)]),
      ...(uses.allowHostAccess ? ['--open-host'] : []),
      ...(bandwidth === undefined ? [] : ['--rates', rateWords(bandwidth)]),
      ...ports.map(portWord),
    ],
    descriptors: [
      { number: NET_FD.NIC, kind: 'pair', name: 'nic' },
      { number: NET_FD.CONTROL, kind: 'listen', name: NETWORK_SOCKET },
      { number: NET_FD.PORTS, kind: 'blank' },
    ],
  }
}

const blockDevicesOf = (board: Board, disks: readonly DiskSpec[]): string[] => disks.map(({ role }) => board.blockDevice(role))

const LOCKED_SLACK_MIB = 1024

/** All of the guest's memory, what may be added to it, and the devices' own rings and tables. */
const lockedBytesOf = ({ memoryMib, hotplug }: Machine): number => (memoryMib + (hotplug ? DIMM_ROOM_MIB : 0) + LOCKED_SLACK_MIB) * 2 ** 20

function nicDescriptors(nic: NicSpec | undefined): Descriptor[] {
  if (nic === undefined) return []
  return [{ number: FD.NIC, ...(nic.backend === 'tap' ? { kind: 'tap', name: nic.tap } : { kind: 'pair', name: 'nic' }) }]
}

/** The descriptors that shim/net.c expects. */
const NET_FD = { NIC: 3, CONTROL: 4, PORTS: 5 } as const
