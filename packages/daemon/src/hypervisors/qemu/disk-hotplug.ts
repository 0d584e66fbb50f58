/**
 * Disks into and out of a VM that runs. No board of ours plugs devices: every slot has one from the start, and what stands behind it is
 * exchanged. A guest is told of a change of size, and of nothing else, that its disk is another (parked-machine.ts); the size of what is
 * there is set to what it is, which tells it.
 */
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../../lib/step.ts'
import type { DiskHotplug } from '../hypervisor.ts'
import type { DiskRole, DiskSpec } from '../vm-spec.ts'
import { diskOf, dropUnused, freeSet, hasDisk } from './block-graph.ts'
import { deviceOf, layerName, layerNode, layersFrom, slotOf } from './disk-nodes.ts'
import type { Qmp } from './qmp.ts'

export interface HotplugUses {
  /** Hands a file to QEMU as the set of this number, over a control connection of its own. */
  give(path: string, access: 'ro' | 'rw', set: number): Promise<void>
  speak<T>(work: (qmp: Qmp) => Promise<T>, step: Step): Promise<T>
  readonly prepared: ReadonlySet<number>
}

export class QemuDiskHotplug implements DiskHotplug {
  readonly #uses: (step: Step) => HotplugUses

  constructor(uses: (step: Step) => HotplugUses) {
    this.#uses = uses
  }

  async insertDisk(disk: DiskSpec, step: Step): Promise<void> {
    const { give, speak, prepared } = this.#uses(step)
    const first = await speak(async (qmp) => {
      if (await hasDisk(qmp, disk.role, step)) return undefined
      await dropUnused(qmp, prepared, step)
      return await freeSet(qmp, step)
    }, step)
    if (first === undefined) return
    const layers = layersFrom(disk, first)
    try {
      for (const { path, isWritten, set } of layers) await give(path, isWritten ? 'rw' : 'ro', set)
      await speak(async (qmp) => {
        const node = layers.reduceRight<Record<string, unknown> | null>((below, layer) => layerNode(layer, below), null)
        await qmp.execute('blockdev-add', node ?? {}, step)
        await qmp.execute('qom-set', { path: deviceOf(disk.role), property: 'drive', value: layerName(first) }, step)
        await tellSize(qmp, disk.role, step)
        // What stood there while no disk did.
        await qmp.execute('blockdev-del', { 'node-name': emptyName(disk.role) }, step).catch(() => undefined)
      }, step)
    } catch (error) {
      const undo = { ...step, signal: AbortSignal.timeout(UNDO_LIMIT_MS) }
      await this.ejectDisk(disk.role, undo).catch((err: unknown) => step.log.warn({ err }, 'a disk is let go of at the next pivot'))
      throw error
    }
  }

  async ejectDisk(role: DiskRole, step: Step): Promise<void> {
    const { speak, prepared } = this.#uses(step)
    await speak(async (qmp) => {
      if (await hasDisk(qmp, role, step)) await eject(qmp, role, step)
      await dropUnused(qmp, prepared, step)
    }, step)
  }

  async growDisk(role: DiskRole, bytes: number, step: Step): Promise<void> {
    const { speak } = this.#uses(step)
    await speak(async (qmp) => {
      const { sets, bytes: has } = await diskOf(qmp, role, step)
      if (has > bytes) throw new AppError('invalid_size', 'A disk cannot be made smaller')
      await qmp.execute('block_resize', { 'node-name': layerName(sets[0]), size: bytes }, step)
    }, step)
  }
}

const UNDO_LIMIT_MS = 5000

/** While it stands still: the guest reads the size once it goes on, and not in between. */
async function eject(qmp: Qmp, role: DiskRole, step: Step): Promise<void> {
  const name = emptyName(role)
  await qmp.execute('blockdev-del', { 'node-name': name }, step).catch(() => undefined)
  await qmp.execute('blockdev-add', { driver: 'null-co', 'node-name': name, size: 0, 'read-zeroes': true }, step)
  await qmp.execute('stop', undefined, step)
  try {
    await tellSize(qmp, role, step)
    await qmp.execute('qom-set', { path: deviceOf(role), property: 'drive', value: name }, step)
  } finally {
    await qmp.execute('cont', undefined, step)
  }
}

async function tellSize(qmp: Qmp, role: DiskRole, step: Step): Promise<void> {
  const { sets, bytes } = await diskOf(qmp, role, step)
  await qmp.execute('block_resize', { 'node-name': layerName(sets[0]), size: bytes }, step)
}

const emptyName = (role: DiskRole): string => `none${slotOf(role)}`
