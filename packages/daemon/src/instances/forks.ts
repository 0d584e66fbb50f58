/**
 * Instances that go on from a point in the life of another one: a source that is there, or a snapshot whose source may be gone.
 *
 *     the child's row ─► the point is taken ─► the row stands on it ─► the child goes on to its target
 */
import { AppError } from '@dormouse/api/errors.ts'
import type { BaseRef, HypervisorName } from '../hypervisors/hypervisor.ts'
import type { Snapshot } from '../store/snapshots.ts'
import { followAttachments } from '../volumes/volumes.ts'
import { defaultTargetOf } from './fork-of.ts'
import type { HostRoom } from './host-room.ts'
import type { ForkInstance, Instance, InstanceId } from './instance.ts'
import { layersOf } from './instance-disks.ts'
import type { WorkUses } from './instance-work.ts'
import type { Newcomers } from './newcomers.ts'
import { undoCreate } from './operations/create.ts'
import { fork, type TargetState } from './operations/fork.ts'
import { pointOf, targetOf, variablesOf } from './operations/restore-snapshot.ts'
import { type HeldPoint, Points } from './points.ts'
import type { Workers } from './workers.ts'

export interface ForksUses {
  readonly work: WorkUses
  readonly workers: Workers
  readonly newcomers: Newcomers
  readonly room: HostRoom
  find(id: InstanceId): Instance | undefined
  /** Throws `not_found`. */
  get(id: InstanceId): Instance
  /** The snapshot as one of another hypervisor, if that is wanted. */
  carryOver(snapshot: Snapshot, wanted: HypervisorName | undefined, given: Pick<Instance, 'devices' | 'gpu'>): Promise<Snapshot>
  /** Has what a child sleeps on compressed, when its row says so. */
  compress(id: InstanceId): void
}

export class Forks {
  readonly #uses: ForksUses
  readonly #points: Points

  constructor(uses: ForksUses) {
    this.#uses = uses
    this.#points = new Points({
      paths: uses.work.paths,
      request: async (id, story) => uses.workers.of(uses.get(id)).request('fork', story),
      claim: ({ instance }, takers) => this.#claim(instance, takers),
      sweep: ({ instance }) => this.#sweepUnused(layersOf(instance)),
    })
  }

  /** Does a fork that is under way stand on it? */
  standsOn(base: BaseRef): boolean {
    return this.#points.standsOn(base)
  }

  /** A second instance that goes on from where this one is. Resolves when it is in its target state. */
  async fork(id: InstanceId, request: ForkInstance): Promise<Instance> {
    const { workers, newcomers, get } = this.#uses
    workers.assertOpen()
    const source = get(id)
    const target = request.target ?? defaultTargetOf(source.state)
    workers.assertAdmitted(source, 'fork')
    const child = await newcomers.makeFork(source, request, target)
    const wanted = { fromRunning: request.fromRunning === true, diskOnly: target === 'Stopped' }
    return this.#goOn(child, target, () => this.#points.take(source, child.id, wanted))
  }

  /** A new instance that goes on from a snapshot, whose source may be gone; from its disk alone with another `hypervisor` if that is wanted. */
  async forkSnapshot(kept: Snapshot, request: ForkInstance, hypervisor?: HypervisorName): Promise<Instance> {
    const { work, workers, newcomers, find, carryOver } = this.#uses
    workers.assertOpen()
    const target = targetOf(kept, request.target)
    const { gpu } = kept.instance
    const snapshot = await carryOver(kept, hypervisor, gpu === undefined ? {} : { gpu })
    // Once the source is gone, no one knows more than the snapshot.
    const source = find(kept.instance.id)
    const env = source === undefined ? snapshot.instance.env : variablesOf(snapshot, source)
    const child = await newcomers.makeFork({ ...snapshot.instance, env }, request, target)
    const point = pointOf(snapshot, work.paths.snapshotDir(snapshot.id, snapshot.generation))
    return this.#goOn(child, target, async () => {
      // What was deleted meanwhile cannot be claimed.
      if (work.snapshots.find(snapshot.id) === undefined) throw new AppError('not_found', `There is no snapshot ${snapshot.id} any more`)
      this.#claim(point.instance, [child.id])
      return { point, [Symbol.asyncDispose]: async () => this.#sweepUnused(layersOf(point.instance)) }
    })
  }

  /** A fork's row and its way to `target`; what cannot be taken leaves nothing. */
  async #goOn(child: Instance, target: TargetState, take: () => Promise<HeldPoint>): Promise<Instance> {
    const { workers, room, get, compress } = this.#uses
    let held: HeldPoint
    try {
      held = await take()
    } catch (error) {
      await workers.perform(child.id, 'create', (work) => undoCreate(work, error))
      throw error
    }
    await using point = held
    await workers.perform(child.id, 'create', (work) => fork(work, point.point, { target, admit: room.admitAs }))
    compress(child.id)
    return get(child.id)
  }

  /**
   * Rows of forks name the layers that they will stand on, and have volumes of their own for those that the source writes to. One that was
   * asked something meanwhile has a worker, which follows.
   */
  #claim(source: Instance, takers: readonly InstanceId[]): void {
    const { db, rows, events, volumes } = this.#uses.work
    const claimed = db.transaction(() => {
      const found = takers.flatMap((id) => rows.find(id) ?? [])
      return found.map((before) => {
        const own = source.volumes.map((attachment) => volumes.attachmentOfFork(attachment, before))
        const taker = { ...before, disk: source.disk, volumes: own }
        followAttachments({ rows: volumes.rows, events }, taker, before.volumes, own)
        rows.update(taker)
        return taker
      })
    })
    for (const taker of claimed) {
      const worker = this.#uses.workers.find(taker.id)
      if (worker) worker.instance = taker
    }
  }

  async #sweepUnused(disk: readonly string[]): Promise<void> {
    const { disks, memory } = this.#uses.work
    await disks.release(disk)
    await memory.sweepBases()
  }
}
