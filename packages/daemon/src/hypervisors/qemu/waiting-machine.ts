/**
 * A VM that waits to become an instance's:
 *
 *   woken from its golden boot, on disks of its own ─► rehearsed ─► these gone, and seen to be ─► paused, a change of their size pending
 *                                                                     ╰─► `become`: the instance's disks, logs and ports ─► runs, parked
 *
 * What costs an emulated guest is code that runs for the first time in its QEMU. All that lies between "go" and a workload has run
 * here before anyone asked for it.
 */
import { rename, rm } from 'node:fs/promises'
import path from 'node:path'
import type { Step } from '../../lib/step.ts'
import type { VmHandle } from '../hypervisor.ts'
import { NetworkHelper } from '../network-helper.ts'
import type { Shim } from '../shim.ts'
import type { DiskSpec, VmSpec } from '../vm-spec.ts'
import { FD, resizableNode } from './command-line.ts'
import { devicePath, diskOptions, layerFiles, nodeName } from './disk-nodes.ts'
import { clearRunDir } from './parked-machine.ts'
import type { Waiting } from './pool.ts'
import { QMP_SOCKET } from './qemu-vm.ts'
import { Qmp } from './qmp.ts'

/** A disk for reading only is bound as such, so the order and the kinds are part of what it is. */
const ROLES = ['rootfs', 'overlay', 'modules'] as const

/** Can a VM that waits become this one? Pure. */
export const canWaitFor = ({ nic, disks }: Pick<VmSpec, 'nic' | 'disks'>): boolean =>
  nic?.backend === 'user' &&
  disks.length >= 2 &&
  disks.length <= ROLES.length &&
  disks.every(({ role, readOnly }, slot) => role === ROLES[slot] && readOnly === (role !== 'overlay'))

export class WaitingMachine implements Waiting {
  readonly shim: Shim
  readonly handle: VmHandle
  readonly ended: Promise<unknown>
  readonly #files: readonly string[]

  /** `files`: of its rehearsal, beside its run directory. */
  constructor(shim: Shim, handle: VmHandle, files: readonly string[]) {
    this.shim = shim
    this.handle = handle
    this.ended = shim.ended
    this.#files = files
  }

  /** Takes the rehearsal's own disks out of a VM that has rehearsed and runs. */
  static async takeDisks({ runDir, disks }: VmSpec, step: Step): Promise<void> {
    using qmp = await Qmp.connect(path.join(runDir, QMP_SOCKET), step)
    for (const [slot, disk] of ownDisks(disks)) {
      await qmp.execute('blockdev-add', resizableNode(emptyName(slot)), step)
      await qmp.execute('qom-set', { path: devicePath(disk), property: 'drive', value: emptyName(slot) }, step)
      // The guest is told that a size was set, and looks for itself.
      await qmp.execute('block_resize', { 'node-name': emptyName(slot), size: 0 }, step)
      await qmp.execute('blockdev-del', { 'node-name': nodeName(slot) }, step)
      for (const { set } of layerFiles(disk, slot)) await qmp.execute('remove-fd', { 'fdset-id': set }, step)
    }
  }

  /** Pauses it for as long as it waits. */
  static async park({ runDir, disks }: VmSpec, step: Step): Promise<void> {
    using qmp = await Qmp.connect(path.join(runDir, QMP_SOCKET), step)
    await qmp.execute('stop', undefined, step)
    // Whatever the size: the guest is told when it goes on, and then it looks at the disk that is there.
    for (const [slot] of ownDisks(disks)) await qmp.execute('block_resize', { 'node-name': emptyName(slot), size: 512 }, step)
  }

  /** Becomes the VM of `spec` and runs. When it throws it is of no use any more. */
  async become(spec: VmSpec, step: Step): Promise<VmHandle> {
    await clearRunDir(spec.runDir)
    await rename(this.handle.runDir, spec.runDir)
    this.shim.moved(spec.runDir)
    const { app, vmm, journal } = spec.logs
    const ports = spec.nic?.ports ?? []
    const ready = Promise.all([
      this.shim.claim({ app, vmm, journal }, step),
      ...(ports.length === 0 ? [] : [new NetworkHelper(spec.runDir).setPorts(ports, step)]),
    ])
    await Promise.all([this.#run(spec, ready, step), ready])
    // A start takes away what is left of them, and this one is not to wait for a disk.
    void this.#removeFiles().catch((error: unknown) => step.log.warn({ err: error }, 'files of a VM that waited could not be removed'))
    return { ...this.handle, runDir: spec.runDir, startedAtMs: Date.now() }
  }

  async end(): Promise<void> {
    await this.shim.kill()
    this.shim[Symbol.dispose]()
    await this.#removeFiles()
    await rm(this.shim.runDir, { recursive: true, force: true })
  }

  /** Puts the disks behind their slots, and lets it run once `ready` is. */
  async #run({ runDir, disks }: VmSpec, ready: Promise<unknown>, step: Step): Promise<void> {
    const own = ownDisks(disks)
    for (const { path: file, isWritten, set } of own.flatMap(([slot, disk]) => layerFiles(disk, slot)))
      await this.shim.give(file, isWritten ? 'rw' : 'ro', set, step)
    using qmp = await Qmp.connect(path.join(runDir, QMP_SOCKET), step)
    await Promise.all(
      own.flatMap(([slot, disk]) => [
        qmp.execute('blockdev-add', diskOptions(disk, slot), step),
        qmp.execute('qom-set', { path: devicePath(disk), property: 'drive', value: nodeName(slot) }, step),
        qmp.execute('blockdev-del', { 'node-name': emptyName(slot) }, step),
      ]),
    )
    await ready
    await Promise.all([qmp.execute('remove-fd', { 'fdset-id': FD.EMPTY }, step), qmp.execute('cont', undefined, step)])
  }

  async #removeFiles(): Promise<void> {
    await Promise.all(this.#files.map((file) => rm(file, { force: true })))
  }
}

/** Those that it gives away with itself, with their slots; the disk of the kernel's modules is the same for all. */
const ownDisks = (disks: readonly DiskSpec[]): [number, DiskSpec][] => [...disks.entries()].filter(([, { role }]) => role !== 'modules')

/** What stands in a slot while no disk does. */
const emptyName = (slot: number): string => `empty${slot}`
