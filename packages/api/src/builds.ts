/** Builds and the builders that do them. */
import { type Static, Type } from 'typebox'
import { DateTime, nullable, Tags } from './names.ts'

export const BuildStatus = Type.Enum(['queued', 'building', 'pushing', 'ready', 'failed', 'cancelled'], { $id: 'BuildStatus' })

export const Build = Type.Object(
  {
    id: Type.String(),
    status: BuildStatus,
    created_at: DateTime,
    started_at: Type.Optional(nullable(DateTime)),
    completed_at: Type.Optional(nullable(DateTime)),
    duration_ms: Type.Optional(nullable(Type.Integer())),
    queue_position: Type.Optional(nullable(Type.Integer())),
    image_ref: Type.Optional(nullable(Type.String())),
    image_digest: Type.Optional(nullable(Type.String())),
    error: Type.Optional(nullable(Type.String())),
    builder_id: Type.Optional(nullable(Type.String())),
    builder_instance_id: Type.Optional(nullable(Type.String())),
    provenance: Type.Optional(
      Type.Object({
        base_image_digest: Type.Optional(Type.String()),
        source_hash: Type.Optional(Type.String()),
        lockfile_hashes: Type.Optional(Type.Record(Type.String(), Type.String())),
        buildkit_version: Type.Optional(Type.String()),
        timestamp: Type.Optional(DateTime),
      }),
    ),
    tags: Type.Optional(Type.Record(Type.String(), Type.String())),
  },
  { $id: 'Build' },
)
export type Build = Static<typeof Build>

export const BuildEvent = Type.Object(
  {
    type: Type.Enum(['log', 'status', 'heartbeat']),
    timestamp: DateTime,
    content: Type.Optional(Type.String()),
    status: Type.Optional(BuildStatus),
  },
  { $id: 'BuildEvent' },
)

export const Builder = Type.Object(
  {
    id: Type.String(),
    name: Type.Optional(Type.String()),
    status: Type.Enum(['ready', 'pruning', 'deleting', 'error']),
    disk_size_gb: Type.Integer(),
    max_concurrency: Type.Integer(),
    queued_builds: Type.Array(Type.String()),
    active_build_id: Type.Optional(nullable(Type.String())),
    last_used_at: Type.Optional(nullable(DateTime)),
    created_at: DateTime,
    tags: Type.Optional(Type.Record(Type.String(), Type.String())),
  },
  { $id: 'Builder' },
)
export type Builder = Static<typeof Builder>

export const CreateBuilderRequest = Type.Object(
  {
    id: Type.Optional(Type.String({ minLength: 1, maxLength: 64 })),
    name: Type.Optional(Type.String({ maxLength: 128 })),
    disk_size_gb: Type.Optional(Type.Integer({ minimum: 1 })),
    tags: Type.Optional(Tags),
  },
  { $id: 'CreateBuilderRequest', additionalProperties: false },
)
