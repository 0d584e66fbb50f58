/** Snapshot schedules: one for an instance at most. */
import { type Static, Type } from 'typebox'
import { DateTime, NAME_PATTERN, nullable, Tags } from './names.ts'

export const SnapshotScheduleRetention = Type.Object(
  {
    max_count: Type.Optional(Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1, description: 'Keep the newest so many; 0 keeps all' })),
    max_age: Type.Optional(
      Type.String({ maxLength: 64, description: 'Delete what is older than this duration, such as 168h; 0s keeps all' }),
    ),
  },
  {
    $id: 'SnapshotScheduleRetention',
    additionalProperties: false,
    description: 'What is cleaned up after each run; at least one of the two is above 0',
  },
)

const NamePrefix = nullable(
  Type.String({
    pattern: NAME_PATTERN,
    minLength: 1,
    maxLength: 47,
    description: 'What names of its snapshots begin with, `scheduled` when left out: lower-case letters, digits and dashes, at most 47',
  }),
)

export const SetSnapshotScheduleRequest = Type.Object(
  {
    interval: Type.String({ maxLength: 64, description: 'A duration of at least 1m' }),
    retention: SnapshotScheduleRetention,
    name_prefix: Type.Optional(NamePrefix),
    metadata: Type.Optional(Tags),
  },
  { $id: 'SetSnapshotScheduleRequest', additionalProperties: false },
)
export type SetSnapshotScheduleRequest = Static<typeof SetSnapshotScheduleRequest>

export const SnapshotSchedule = Type.Object(
  {
    instance_id: Type.String(),
    interval: Type.String(),
    retention: SnapshotScheduleRetention,
    name_prefix: Type.Optional(nullable(Type.String())),
    metadata: Type.Optional(Type.Record(Type.String(), Type.String())),
    next_run_at: DateTime,
    last_run_at: Type.Optional(nullable(DateTime)),
    last_snapshot_id: Type.Optional(nullable(Type.String())),
    last_error: Type.Optional(nullable(Type.String())),
    created_at: DateTime,
    updated_at: DateTime,
  },
  { $id: 'SnapshotSchedule' },
)
export type SnapshotSchedule = Static<typeof SnapshotSchedule>
