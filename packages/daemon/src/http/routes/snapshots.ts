import { AppError } from '@dormouse/api/errors.ts'
import type { HypervisorName } from '../../hypervisors/hypervisor.ts'
import type { Instance } from '../../instances/instance.ts'
import type { Snapshot } from '../../snapshots/snapshots.ts'
import type { Handlers } from '../handler.ts'
import { toForkInstance, waitLimitMs } from '../instance-requests.ts'
import { type PlaceOf, pageOf } from '../list-page.ts'
import { presentInstance } from '../present-instance.ts'
import { presentSnapshot } from '../present-snapshot.ts'
import { toCompression } from '../snapshot-requests.ts'
import type { ServerUses } from '../uses.ts'

type SnapshotRoutes = Pick<
  Handlers,
  'createSnapshot' | 'restoreSnapshot' | 'listSnapshots' | 'getSnapshot' | 'deleteSnapshot' | 'forkSnapshot'
>

const PLACE: PlaceOf<ReturnType<typeof presentSnapshot>> = { key: ({ id }) => id, createdAt: ({ created_at }) => created_at }

export function snapshotRoutes({
  instances,
  snapshots,
  supervision,
}: Pick<ServerUses, 'instances' | 'snapshots' | 'supervision'>): SnapshotRoutes {
  const show = (instance: Instance) => presentInstance(instance, Date.now(), supervision.of(instance, Date.now()))

  return {
    createSnapshot: async ({ params, body }) => {
      const { kind, name, tags = {} } = body
      const compression = toCompression(body.compression, kind)
      const { id } = instances.resolve(params.id)
      const options = { kind, tags, isScheduled: false, ...(name && { name }), ...(compression && { compression }) }
      return presentSnapshot(await instances.snapshot(id, options))
    },

    restoreSnapshot: async ({ params, body }) => {
      const instance = instances.resolve(params.id)
      using held = snapshots.hold(params.snapshotId)
      assertSameHypervisor(held.snapshot, body.target_hypervisor)
      return show(await instances.restoreSnapshot(instance.id, held.snapshot, body.target_state))
    },

    listSnapshots: ({ query, setHeader }) => {
      const { source_instance_id: sourceId, kind, name, tags, limit, cursor } = query
      const filter = { ...(sourceId && { sourceId }), ...(kind && { kind }), ...(name && { name }), ...(tags && { tags }) }
      const page = pageOf(snapshots.list(filter).map(presentSnapshot), PLACE, { limit, cursor })
      if (page.nextCursor !== undefined) setHeader('x-next-cursor', page.nextCursor)
      return [...page.items]
    },

    getSnapshot: ({ params }) => presentSnapshot(snapshots.get(params.snapshotId)),

    deleteSnapshot: async ({ params }) => {
      await snapshots.delete(params.snapshotId)
      return undefined
    },

    forkSnapshot: async ({ params, query, body, signal }) => {
      const timeoutMs = waitLimitMs(query.timeout)
      using held = snapshots.hold(params.snapshotId)
      assertSameHypervisor(held.snapshot, body.target_hypervisor)
      const fork = await instances.forkSnapshot(held.snapshot, toForkInstance(body))
      if (query.wait !== undefined) await instances.wait(fork.id, { state: 'Running', timeoutMs, signal })
      return show(instances.get(fork.id))
    },
  }
}

/** Memory and devices are one hypervisor's own; a disk alone could go to another, which is not built. */
function assertSameHypervisor({ kind, instance }: Snapshot, wanted: HypervisorName | undefined): void {
  if (wanted === undefined || wanted === instance.hypervisor) return
  if (kind === 'Standby') {
    throw new AppError(
      'invalid_request',
      `A snapshot of the kind Standby goes on with the hypervisor that it was taken with, ${instance.hypervisor}`,
    )
  }
  throw new AppError('not_supported', `A snapshot of ${instance.hypervisor} cannot be given to ${wanted} yet`)
}
