/** What lies on the host's disk for us, what of it can be missed, and giving that up. */
import { type Static, Type } from 'typebox'
import { DateTime, Duration } from './names.ts'

export const GARBAGE_KINDS = ['images', 'layers', 'golden_boots', 'memory_bases', 'drafts', 'logs'] as const
export type GarbageKind = (typeof GARBAGE_KINDS)[number]

const Kind = Type.Enum([...GARBAGE_KINDS])

export const PruneRequest = Type.Object(
  {
    kinds: Type.Optional(
      Type.Array(Kind, {
        minItems: 1,
        maxItems: GARBAGE_KINDS.length,
        description:
          'Of what; everything when left out, logs with `all` alone. With `all`, `images` by name also takes those that were pushed here or imported',
      }),
    ),
    all: Type.Optional(
      Type.Boolean({
        default: false,
        description:
          'Not only what no one can miss, but all that can be had again: images that were pulled and that no instance stands on, golden boots that nothing stands on, the logs of the boot before',
      }),
    ),
    older_than: Type.Optional({ ...Duration, description: 'Only what was not used, or not written, for so long, such as 720h' }),
    dry_run: Type.Optional(Type.Boolean({ default: false, description: 'Says what would go' })),
  },
  { $id: 'PruneRequest', additionalProperties: false },
)
export type PruneRequest = Static<typeof PruneRequest>

export const PruneResponse = Type.Object(
  {
    dry_run: Type.Boolean(),
    freed_bytes: Type.Integer({ description: 'Of all kinds, in blocks of the disk' }),
    kinds: Type.Array(
      Type.Object({
        kind: Kind,
        freed_bytes: Type.Integer(),
        names: Type.Array(Type.String(), { description: 'Of images their names, else what the files are called' }),
        error: Type.Optional(Type.String({ description: 'Why not all of it could be removed' })),
      }),
    ),
  },
  { $id: 'PruneResponse' },
)
export type PruneResponse = Static<typeof PruneResponse>

export const DISK_KINDS = [
  'images',
  'layers',
  'rootfs',
  'golden_boots',
  'memory_bases',
  'deltas',
  'overlays',
  'volumes',
  'snapshots',
  'logs',
  'drafts',
  'other',
] as const
export type DiskKind = (typeof DISK_KINDS)[number]

export const DiskUsage = Type.Object(
  {
    total_bytes: Type.Integer({ description: 'Of the file system that the data directory is on' }),
    free_bytes: Type.Integer({ description: 'Free there' }),
    used_bytes: Type.Integer({ description: 'What all kinds take together' }),
    reclaimable_bytes: Type.Integer({
      description:
        'What `POST /prune` with `all` would free of it; of images also those that were pushed here or imported, which it takes when `kinds` names them',
    }),
    measured_at: DateTime,
    kinds: Type.Array(
      Type.Object({
        kind: Type.Enum([...DISK_KINDS]),
        part_of: Type.Optional(Type.Enum(['images'], { description: 'Counted there, too' })),
        count: Type.Integer(),
        in_use: Type.Integer({ description: 'How many of them an instance, a snapshot or a volume needs' }),
        bytes: Type.Integer({ description: 'Blocks on the disk: holes do not count, and what has several names counts once' }),
        shared_bytes: Type.Integer({ description: 'Of these, what more than one stands on' }),
        reclaimable_bytes: Type.Integer(),
      }),
    ),
  },
  { $id: 'DiskUsage' },
)
export type DiskUsage = Static<typeof DiskUsage>
