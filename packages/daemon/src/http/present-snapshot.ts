import type { Snapshot as Shown } from '@dormouse/api/snapshots.ts'
import type { Snapshot } from '../snapshots/snapshots.ts'

/** A snapshot towards the API. */
export function presentSnapshot(snapshot: Snapshot): Shown {
  const { instance, compression, compressedBytes, uncompressedBytes } = snapshot
  return {
    id: snapshot.id,
    name: snapshot.name ?? null,
    kind: snapshot.kind,
    source_instance_id: instance.id,
    source_instance_name: instance.name,
    source_hypervisor: instance.hypervisor,
    created_at: new Date(snapshot.createdAtMs).toISOString(),
    size_bytes: snapshot.bytes,
    tags: snapshot.tags,
    compression_state: snapshot.compressionState,
    compression_error: snapshot.compressionError ?? null,
    ...(compression !== undefined && { compression: { enabled: true, ...compression } }),
    compressed_size_bytes: compressedBytes ?? null,
    uncompressed_size_bytes: uncompressedBytes ?? null,
  }
}
