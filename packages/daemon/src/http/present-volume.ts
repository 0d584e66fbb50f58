import type { Volume as Shown } from '@dormouse/api/volumes.ts'
import type { Holder, Volume } from '../volumes/volumes.ts'

/** A volume towards the API, with who has it. */
export function presentVolume({ id, name, bytes, createdAtMs, tags }: Volume, holders: readonly Holder[]): Shown {
  return {
    id,
    name,
    // Of a volume that was made with a fork too: whole ones, upwards.
    size_gb: Math.ceil(bytes / 2 ** 30),
    created_at: new Date(createdAtMs).toISOString(),
    ...(Object.keys(tags).length > 0 && { tags }),
    ...(holders.length > 0 && {
      attachments: holders.map(({ instanceId, mountPath, readOnly }) => ({
        instance_id: instanceId,
        mount_path: mountPath,
        readonly: readOnly,
      })),
    }),
  }
}
