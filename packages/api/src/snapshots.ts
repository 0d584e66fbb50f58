/** Snapshots: kept, named points in an instance's life. */
import { type Static, Type } from 'typebox'
import { HypervisorKind, SnapshotCompression, TargetState } from './instances.ts'
import { DateTime, Name, nullable, Tags } from './names.ts'

const strict = { additionalProperties: false } as const

export const SnapshotKind = Type.Enum(['Standby', 'Stopped'], {
  $id: 'SnapshotKind',
  description: 'Standby holds memory and disk, Stopped the disk alone',
})

export const Snapshot = Type.Object(
  {
    id: Type.String(),
    name: Type.Optional(nullable(Type.String())),
    kind: SnapshotKind,
    source_instance_id: Type.String(),
    source_instance_name: Type.String(),
    source_hypervisor: HypervisorKind,
    created_at: DateTime,
    size_bytes: Type.Integer(),
    tags: Type.Optional(Type.Record(Type.String(), Type.String())),
    compression_state: Type.Optional(Type.Enum(['none', 'compressing', 'compressed', 'error'])),
    compression_error: Type.Optional(nullable(Type.String())),
    compression: Type.Optional(SnapshotCompression),
    compressed_size_bytes: Type.Optional(nullable(Type.Integer())),
    uncompressed_size_bytes: Type.Optional(nullable(Type.Integer())),
  },
  { $id: 'Snapshot' },
)
export type Snapshot = Static<typeof Snapshot>

export const CreateSnapshotRequest = Type.Object(
  { kind: SnapshotKind, name: Type.Optional(Name), tags: Type.Optional(Tags), compression: Type.Optional(SnapshotCompression) },
  { $id: 'CreateSnapshotRequest', ...strict },
)

export const RestoreSnapshotRequest = Type.Object(
  { target_state: Type.Optional(TargetState), target_hypervisor: Type.Optional(HypervisorKind) },
  { $id: 'RestoreSnapshotRequest', ...strict },
)

export const ForkSnapshotRequest = Type.Object(
  { name: Name, target_state: Type.Optional(TargetState), target_hypervisor: Type.Optional(HypervisorKind) },
  { $id: 'ForkSnapshotRequest', ...strict },
)
export type ForkSnapshotRequest = Static<typeof ForkSnapshotRequest>
