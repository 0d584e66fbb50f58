import type { Step } from '../../lib/step.ts'
import type { Pivot } from '../hypervisor.ts'
import type { DiskLayer, DiskRole } from '../vm-spec.ts'
import { diskOf, dropUnused, freeSet } from './block-graph.ts'
import { layerName, layerNode } from './disk-nodes.ts'
import type { Qmp } from './qmp.ts'

/** How a pivot reaches its VM, one at a time with all others. */
export interface PivotUses {
  /** Hands the layer to QEMU as the set of this number, over a control connection of its own. */
  give(set: number): Promise<void>
  speak<T>(work: (qmp: Qmp) => Promise<T>, step: Step): Promise<T>
  /** The sets of layers that this daemon has prepared and that wait to be used; what else no disk stands on is an earlier daemon's. */
  readonly prepared: Set<number>
}

const UNDO_LIMIT_MS = 5000

/** A layer that QEMU has open and does not use yet. */
export class QemuPivot implements Pivot {
  readonly #uses: PivotUses
  readonly #role: DiskRole
  readonly #set: number

  private constructor(uses: PivotUses, role: DiskRole, set: number) {
    this.#uses = uses
    this.#role = role
    this.#set = set
  }

  static async prepare(uses: PivotUses, role: DiskRole, limit: Pick<DiskLayer, 'limitBytes'>, step: Step): Promise<QemuPivot> {
    const { give, speak, prepared } = uses
    const set = await speak(async (qmp) => {
      await diskOf(qmp, role, step)
      await dropUnused(qmp, prepared, step)
      return await freeSet(qmp, step)
    }, step)
    try {
      await give(set)
      await speak((qmp) => qmp.execute('blockdev-add', layerNode({ set, format: 'qcow2', isWritten: true, ...limit }, null), step), step)
    } catch (error) {
      const undo = { ...step, signal: AbortSignal.timeout(UNDO_LIMIT_MS) }
      await speak((qmp) => dropUnused(qmp, prepared, undo), undo).catch((err: unknown) =>
        step.log.warn({ err }, 'a layer is let go of at the next pivot'),
      )
      throw error
    }
    prepared.add(set)
    return new QemuPivot(uses, role, set)
  }

  commit(step: Step): Promise<void> {
    return this.#uses.speak(async (qmp) => {
      const [top] = (await diskOf(qmp, this.#role, step)).sets
      // It flushes what was the top, or fails.
      if (top !== this.#set) await qmp.execute('blockdev-snapshot', { node: layerName(top), overlay: layerName(this.#set) }, step)
      this.#uses.prepared.delete(this.#set)
    }, step)
  }

  discard(step: Step): Promise<boolean> {
    return this.#uses.speak(async (qmp) => {
      this.#uses.prepared.delete(this.#set)
      const [top] = (await diskOf(qmp, this.#role, step)).sets
      if (top === this.#set) return false
      await dropUnused(qmp, this.#uses.prepared, step)
      return true
    }, step)
  }
}
