import { errorCodeOf } from '@dormouse/api/errors.ts'
import type { OwnDoings } from '../audit/audit.ts'
import type { Instance, InstanceId } from '../instances/instance.ts'
import type { Instances } from '../instances/instances.ts'
import type { Step } from '../lib/step.ts'
import type { Snapshots } from '../snapshots/snapshots.ts'
import type { MadeSnapshot } from './retention.ts'

/** What schedules need of the rooms that make and keep snapshots. */
export interface ScheduledSnapshots {
  /** Resolves when it is whole on disk; counts as scheduled from then on. */
  create(id: InstanceId, request: ScheduledRequest): Promise<{ readonly id: string }>
  /** The scheduled ones of an instance, which may be gone, in the order in which they were made, newest first, whatever their times say. */
  listScheduled(id: InstanceId): readonly NamedSnapshot[]
  /** Reads all of it that can be checked, off the event loop. Throws when it cannot be found out. */
  verify(snapshotId: string, step: Step): Promise<'whole' | 'damaged'>
  /** Throws `not_found` when it is gone already, `in_use` while someone is going on from it. */
  delete(snapshotId: string): Promise<void>
}

export interface NamedSnapshot extends MadeSnapshot {
  readonly name?: string
}

export interface ScheduledRequest {
  readonly kind: 'Standby' | 'Stopped'
  readonly name: string
  readonly tags: Readonly<Record<string, string>>
}

export interface FindInstance {
  find(id: InstanceId): Instance | undefined
}

/** The rooms as schedules use them. */
export const scheduledSnapshots = (
  instances: Pick<Instances, 'snapshot'>,
  snapshots: Pick<Snapshots, 'get' | 'listScheduled' | 'verify' | 'delete'>,
  audit: Pick<OwnDoings, 'perform'>,
): ScheduledSnapshots => ({
  create: (id, request) =>
    audit.perform(
      { operation: 'createSnapshot', target: { id }, subjectId: id },
      () => instances.snapshot(id, { ...request, isScheduled: true }),
      (snapshot) => snapshot.id,
    ),
  listScheduled: (id) => snapshots.listScheduled(id),
  verify: async (id, step) => {
    try {
      await snapshots.verify(id, step)
      return 'whole'
    } catch (error) {
      if (errorCodeOf(error) !== 'snapshot_unusable') throw error
      // Deleted while it was read it is not damaged: this says so then.
      snapshots.get(id)
      return 'damaged'
    }
  },
  delete: (id) => audit.perform({ operation: 'deleteSnapshot', target: { snapshotId: id }, subjectId: id }, () => snapshots.delete(id)),
})
