import { Type } from 'typebox'
import { Instance } from '../instances.ts'
import { CreateSnapshotRequest, ForkSnapshotRequest, RestoreSnapshotRequest, Snapshot, SnapshotKind } from '../snapshots.ts'
import { id, Key, page, rateErrors, sizeErrors, strict, tagFilter, waitQuery } from './params.ts'
import type { Route } from './route.ts'

const instanceSnapshot = Type.Object({ id: Key, snapshotId: Key })
const snapshotId = Type.Object({ snapshotId: Key })

export const snapshotRoutes = {
  createSnapshot: {
    tag: 'snapshots',
    summary: 'Take a snapshot of an instance',
    scope: 'snapshot:write',
    params: id,
    body: CreateSnapshotRequest,
    status: 201,
    answer: Snapshot,
    errors: ['not_found', 'conflict', 'invalid_snapshot_compression', 'ambiguous', 'name_conflict', 'invalid_state', 'snapshot_unusable'],
  },
  restoreSnapshot: {
    tag: 'snapshots',
    summary: 'Take an instance back to a snapshot of its own',
    scope: 'snapshot:write',
    params: instanceSnapshot,
    body: RestoreSnapshotRequest,
    bodyOptional: true,
    status: 200,
    answer: Instance,
    errors: [
      'not_found',
      'invalid_state',
      'snapshot_unusable',
      'insufficient_resources',
      'not_supported',
      'ambiguous',
      'conflict',
      'in_use',
      'port_in_use',
      'device_not_found',
    ],
  },
  listSnapshots: {
    tag: 'snapshots',
    summary: 'List snapshots, newest first',
    scope: 'snapshot:read',
    query: Type.Object(
      {
        source_instance_id: Type.Optional(Key),
        kind: Type.Optional(SnapshotKind),
        name: Type.Optional(Key),
        ...tagFilter,
        ...page,
      },
      strict,
    ),
    status: 200,
    answer: Type.Array(Snapshot),
  },
  getSnapshot: {
    tag: 'snapshots',
    summary: 'Look at a snapshot',
    scope: 'snapshot:read',
    params: snapshotId,
    status: 200,
    answer: Snapshot,
    errors: ['not_found'],
  },
  deleteSnapshot: {
    tag: 'snapshots',
    summary: 'Delete a snapshot',
    scope: 'snapshot:delete',
    params: snapshotId,
    status: 204,
    errors: ['not_found', 'in_use', 'conflict'],
  },
  forkSnapshot: {
    tag: 'snapshots',
    summary: 'Make an instance of a snapshot',
    scope: 'snapshot:write',
    params: snapshotId,
    query: waitQuery,
    body: ForkSnapshotRequest,
    status: 201,
    answer: Instance,
    errors: [
      'not_found',
      'name_conflict',
      'insufficient_resources',
      'snapshot_unusable',
      'not_supported',
      'invalid_timeout',
      'conflict',
      'in_use',
      'port_in_use',
      ...rateErrors,
      ...sizeErrors,
    ],
  },
} as const satisfies Readonly<Record<string, Route>>
