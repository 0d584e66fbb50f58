/**
 * Kept points in instances' lives: found, verified, deleted. Taking one, and going on from one, is the instances' affair. A snapshot
 * outlives its source; what others stand on outlives the snapshot: layers and bases go when no row names them. Its memory is compressed
 * afterwards, when its row asks for it.
 */
import { rename, rm } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'
import type { Disks } from '../disks/disks.ts'
import type { Events } from '../events/events.ts'
import type { BackgroundJobs } from '../lib/background-jobs.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import type { LayeredMemory } from '../memory/memory.ts'
import type { Paths } from '../paths.ts'
import type { Database } from '../store/database.ts'
import { type ListSnapshots, type Snapshot, SnapshotRows } from '../store/snapshots.ts'
import { SnapshotCompressions, type SnapshotCompressionsUses } from './compressions.ts'

export type { ListSnapshots, Snapshot } from '../store/snapshots.ts'

export interface SnapshotsUses {
  readonly db: Database
  readonly events: Events
  readonly disks: Pick<Disks, 'release' | 'isWhole'>
  readonly memory: LayeredMemory
  readonly paths: Paths
  readonly log: Logger
  /** Where memories are compressed. Taken down by whoever made it. */
  readonly compressing: BackgroundJobs
  readonly crashPoint?: SnapshotCompressionsUses['crashPoint']
}

export class Snapshots {
  readonly #uses: SnapshotsUses
  readonly #rows: SnapshotRows
  readonly #held = new Map<string, number>()
  /** Who waits until it is not held. */
  readonly #waiting = new Map<string, (() => void)[]>()
  readonly #compressions: SnapshotCompressions

  constructor(uses: SnapshotsUses) {
    this.#uses = uses
    this.#rows = new SnapshotRows(uses.db)
    const { crashPoint = async () => undefined, compressing: jobs, ...rest } = uses
    this.#compressions = new SnapshotCompressions({
      ...rest,
      rows: this.#rows,
      jobs,
      crashPoint,
      isHeld: (id) => this.#held.has(id),
      whenReleased: (id) => this.#whenReleased(id),
    })
    uses.events.listen(({ kind, subject }) => kind === 'snapshot.published' && this.#compressions.begin(subject))
  }

  /** Goes on with what the last daemon left half done. Once, when what belongs to no one has been swept. */
  recover(): void {
    for (const { id, compressionState } of this.#rows.list()) if (compressionState === 'compressing') this.#compressions.begin(id)
  }

  /** Newest first. */
  list(filter: ListSnapshots = {}): readonly Snapshot[] {
    return this.#rows.list(filter)
  }

  /** Those that a schedule made of the instance, in the order in which they were made, newest first, whatever their times say. */
  listScheduled(sourceId: string): readonly Pick<Snapshot, 'id' | 'name' | 'createdAtMs'>[] {
    return this.#rows.listScheduled(sourceId)
  }

  /** Throws `not_found`. */
  get(id: string): Snapshot {
    const snapshot = this.#rows.find(id)
    if (snapshot) return snapshot
    throw new AppError('not_found', `There is no snapshot ${JSON.stringify(id.slice(0, 80))}`, {
      hint: 'List them with: dormouse snapshot ls',
    })
  }

  /** While it is held it cannot be deleted. Throws `not_found`. */
  hold(id: string): { readonly snapshot: Snapshot } & Disposable {
    const snapshot = this.get(id)
    this.#held.set(id, (this.#held.get(id) ?? 0) + 1)
    return {
      snapshot,
      [Symbol.dispose]: () => {
        const left = (this.#held.get(id) ?? 1) - 1
        if (left > 0) return void this.#held.set(id, left)
        this.#held.delete(id)
        const waiting = this.#waiting.get(id) ?? []
        this.#waiting.delete(id)
        for (const wake of waiting) wake()
      },
    }
  }

  /**
   * Reads all of its memory, and looks whether its disks are there: layers have no checksums. Throws `snapshot_unusable` when it is not
   * whole.
   */
  async verify(id: string, step: Step): Promise<void> {
    using held = this.hold(id)
    const { base, disk, generation, instance } = held.snapshot
    const chains = [disk, ...instance.volumes.map((attachment) => attachment.disk)]
    if (!chains.every((chain) => this.#uses.disks.isWhole(chain)))
      throw new AppError('snapshot_unusable', `A layer of a disk of the snapshot ${id} is missing`)
    if (base === undefined) return
    await this.#uses.memory.verify({ dir: this.#uses.paths.snapshotDir(id, generation), base }, step)
  }

  /** When the last who holds it lets go of it. */
  #whenReleased(id: string): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#waiting.set(id, [...(this.#waiting.get(id) ?? []), resolve])
    return promise
  }

  #assertFree(id: string): void {
    if (!this.#held.has(id)) return
    throw new AppError('in_use', `The snapshot ${id} is being restored or forked`, {
      hint: 'Wait until that is done',
      retryAfterSeconds: 1,
    })
  }

  /** Its row is the commit point; what it alone stood on goes with it. Throws `in_use` while someone is going on from it. */
  async delete(id: string): Promise<void> {
    this.get(id)
    this.#assertFree(id)
    await this.#compressions.cancel(id)
    const { disk, instance, name, generation } = this.get(id)
    const volumeDisks = instance.volumes.map((attachment) => attachment.disk)
    try {
      this.#assertFree(id)
    } catch (error) {
      // Someone was quicker, and it stays: so does what is to become of it.
      this.#compressions.begin(id)
      throw error
    }
    const { db, events, paths, disks, memory } = this.#uses
    db.transaction(
      () => {
        this.#rows.delete(id)
        events.record({ kind: 'snapshot.deleted', subject: id, data: { instance: instance.id, name } })
      },
      { evenWhenFull: true },
    )
    const dir = paths.snapshotDir(id, generation)
    // What no row names is swept when a daemon starts, also under this name.
    await rename(dir, `${dir}.draft`).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error
    })
    await rm(`${dir}.draft`, { recursive: true, force: true })
    await disks.release([disk, ...volumeDisks].flat())
    await memory.sweepBases()
  }
}
