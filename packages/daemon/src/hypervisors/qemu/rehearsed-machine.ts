/**
 * A VM that waits for a start:
 *
 *   woken from its golden boot, on disks of its own ─► rehearsed ─► these gone, and seen to be ─► paused, a change of their size pending
 *                                                                     ╰─► `become`: the instance's disks, logs and ports ─► runs, parked
 *
 * What costs an emulated guest is code that runs for the first time in its QEMU. All that lies between "go" and a workload has run
 * here before anyone asked for it.
 */
import path from 'node:path'
import type { Step } from '../../lib/step.ts'
import type { DiskSpec, VmSpec } from '../vm-spec.ts'
import { FD, resizableNode } from './command-line.ts'
import { deviceOf, diskOptions, layerFiles, nodeName } from './disk-nodes.ts'
import { QMP_SOCKET } from './qemu-vm.ts'
import { Qmp } from './qmp.ts'
import { WaitingMachine } from './waiting-machine.ts'

/** A disk for reading only is bound as such, so the order and the kinds are part of what it is. */
const ROLES = ['rootfs', 'overlay', 'modules'] as const

/** Can one that has rehearsed become this one? Room for more memory is there from the boot on, and what waits has none. Pure. */
export const canRehearseFor = ({ nic, disks, hotplugMib }: Pick<VmSpec, 'nic' | 'disks' | 'hotplugMib'>): boolean =>
  nic !== undefined &&
  hotplugMib === undefined &&
  disks.length >= 2 &&
  disks.length <= ROLES.length &&
  disks.every(({ role, readOnly }, slot) => role === ROLES[slot] && readOnly === (role !== 'overlay'))

export class RehearsedMachine extends WaitingMachine {
  /** Takes the rehearsal's own disks out of a VM that has rehearsed and runs. */
  static async takeDisks({ runDir, disks }: VmSpec, step: Step): Promise<void> {
    using qmp = await Qmp.connect(path.join(runDir, QMP_SOCKET), step)
    for (const [slot, disk] of ownDisks(disks)) {
      await qmp.execute('blockdev-add', resizableNode(emptyName(slot)), step)
      await qmp.execute('qom-set', { path: deviceOf(disk.role), property: 'drive', value: emptyName(slot) }, step)
      // The guest is told that a size was set, and looks for itself.
      await qmp.execute('block_resize', { 'node-name': emptyName(slot), size: 0 }, step)
      await qmp.execute('blockdev-del', { 'node-name': nodeName(slot) }, step)
      for (const { set } of layerFiles(disk)) await qmp.execute('remove-fd', { 'fdset-id': set }, step)
    }
  }

  /** Pauses it for as long as it waits. */
  static async park({ runDir, disks }: VmSpec, step: Step): Promise<void> {
    using qmp = await Qmp.connect(path.join(runDir, QMP_SOCKET), step)
    await qmp.execute('stop', undefined, step)
    // Whatever the size: the guest is told when it goes on, and then it looks at the disk that is there.
    for (const [slot] of ownDisks(disks)) await qmp.execute('block_resize', { 'node-name': emptyName(slot), size: 512 }, step)
  }

  /** Puts the disks behind their slots, and lets it run once `ready` is. */
  protected async finish(spec: VmSpec, ready: Promise<unknown>, step: Step): Promise<void> {
    const { runDir, disks } = spec
    const own = ownDisks(disks)
    for (const { path: file, isWritten, set } of own.flatMap(([, disk]) => layerFiles(disk)))
      await this.shim.give(file, isWritten ? 'rw' : 'ro', set, step)
    using qmp = await Qmp.connect(path.join(runDir, QMP_SOCKET), step)
    await Promise.all([
      ...own.flatMap(([slot, disk]) => [
        qmp.execute('blockdev-add', diskOptions(disk), step),
        qmp.execute('qom-set', { path: deviceOf(disk.role), property: 'drive', value: nodeName(slot) }, step),
        qmp.execute('blockdev-del', { 'node-name': emptyName(slot) }, step),
      ]),
      this.limitDisks(spec, qmp, step),
    ])
    await ready
    await Promise.all([qmp.execute('remove-fd', { 'fdset-id': FD.EMPTY }, step), qmp.execute('cont', undefined, step)])
  }
}

/** Those that it gives away with itself, with their slots; the disk of the kernel's modules is the same for all. */
const ownDisks = (disks: readonly DiskSpec[]): [number, DiskSpec][] => [...disks.entries()].filter(([, { role }]) => role !== 'modules')

/** What stands in a slot while no disk does. */
const emptyName = (slot: number): string => `empty${slot}`
