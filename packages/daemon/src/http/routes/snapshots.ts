import type { Instance } from '../../instances/instance.ts'
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
      return show(await instances.restoreSnapshot(instance.id, held.snapshot, body.target_state, body.target_hypervisor))
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
      const fork = await instances.forkSnapshot(held.snapshot, toForkInstance(body), body.target_hypervisor)
      if (query.wait !== undefined) await instances.wait(fork.id, { state: 'Running', timeoutMs, signal })
      return show(instances.get(fork.id))
    },
  }
}
