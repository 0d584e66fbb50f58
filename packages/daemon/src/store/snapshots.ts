import type { Compression } from '@dormouse/api/compression.ts'
import type { BaseRef } from '../hypervisors/hypervisor.ts'
import type { Database } from './database.ts'
import type { Instance } from './instance-record.ts'

/** A kept point in an instance's life. */
export interface Snapshot {
  readonly id: string
  readonly name?: string
  readonly kind: 'Standby' | 'Stopped'
  readonly createdAtMs: number
  /** The instance as it was: id, name and hypervisor of the source among the rest. */
  readonly instance: Instance
  /** Layers that are never written again, top first. */
  readonly disk: readonly string[]
  /** What its memory stands on; absent where there is the disk alone. */
  readonly base?: BaseRef
  /** Of its directory: another with every change of how it is kept. Absent for the first. */
  readonly generation?: string
  readonly tags: Readonly<Record<string, string>>
  /** On the host's disk: its own directory, and the layers that it names as they were when it was taken. */
  readonly bytes: number
  readonly compression?: Compression
  readonly compressionState: 'none' | 'compressing' | 'compressed' | 'error'
  readonly compressionError?: string
  /** What was compressed: all that its memory holds otherwise than what it stands on. */
  readonly compressedBytes?: number
  readonly uncompressedBytes?: number
  /** Made by the instance's schedule, which counts and deletes it. */
  readonly isScheduled: boolean
}

export interface ListSnapshots {
  readonly sourceId?: string
  readonly kind?: Snapshot['kind']
  readonly name?: string
  readonly tags?: Readonly<Record<string, string>>
}

type Row = Record<string, string | number | null>

/** The rows of `snapshots`. Nothing here decides; it reads and writes. */
export class SnapshotRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  insert(snapshot: Snapshot): void {
    const { id, name, kind, createdAtMs, instance, disk, base, tags, bytes, isScheduled } = snapshot
    this.#db
      .prepare(
        `INSERT INTO snapshots (id, name, kind, created_at_ms, source_id, source_name, instance, disk, base, tags, bytes, is_scheduled)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
      )
      .run(
        ...[id, name ?? null, kind, createdAtMs, instance.id, instance.name, JSON.stringify(instance), JSON.stringify(disk)],
        ...[base ?? null, JSON.stringify(tags), bytes, Number(isScheduled)],
      )
    this.update(snapshot)
  }

  /** How it is kept; what it is of never changes. */
  update(snapshot: Snapshot): void {
    const { id, base, generation, bytes, compression, compressionState, compressionError, compressedBytes, uncompressedBytes } = snapshot
    this.#db
      .prepare(
        `UPDATE snapshots SET base = ?, generation = ?, bytes = ?, compression = ?, compression_state = ?, compression_error = ?,
         compressed_bytes = ?, uncompressed_bytes = ? WHERE id = ?`,
      )
      .run(
        ...[base ?? null, generation ?? null, bytes, compression === undefined ? null : JSON.stringify(compression), compressionState],
        ...[compressionError ?? null, compressedBytes ?? null, uncompressedBytes ?? null, id],
      )
  }

  delete(id: string): void {
    this.#db.prepare('DELETE FROM snapshots WHERE id = ?').run(id)
  }

  find(id: string): Snapshot | undefined {
    const row = this.#db.prepare('SELECT * FROM snapshots WHERE id = ?').get(id)
    return row === undefined ? undefined : snapshotOf(row as Row)
  }

  /** A source has each name once. */
  findByName(sourceId: string, name: string): Snapshot | undefined {
    const row = this.#db.prepare('SELECT * FROM snapshots WHERE source_id = ? AND name = ?').get(sourceId, name)
    return row === undefined ? undefined : snapshotOf(row as Row)
  }

  /** Newest first. */
  list(filter: ListSnapshots = {}): Snapshot[] {
    const { sourceId, kind, name, tags = {} } = filter
    const wanted = Object.entries(tags)
    return this.#db
      .prepare(
        `SELECT * FROM snapshots WHERE (?1 IS NULL OR source_id = ?1) AND (?2 IS NULL OR kind = ?2) AND (?3 IS NULL OR name = ?3)
         ORDER BY created_at_ms DESC, id DESC`,
      )
      .all(sourceId ?? null, kind ?? null, name ?? null)
      .map((row) => snapshotOf(row as Row))
      .filter((snapshot) => wanted.every(([key, value]) => Object.hasOwn(snapshot.tags, key) && snapshot.tags[key] === value))
  }

  /** Newest first by the order of rows, which a clock that was wrong has no part in. */
  listScheduled(sourceId: string): Pick<Snapshot, 'id' | 'name' | 'createdAtMs'>[] {
    return this.#db
      .prepare('SELECT id, name, created_at_ms FROM snapshots WHERE source_id = ? AND is_scheduled = 1 ORDER BY rowid DESC')
      .all(sourceId)
      .map(({ id, name, created_at_ms }) => ({
        id: String(id),
        createdAtMs: Number(created_at_ms),
        ...(typeof name === 'string' ? { name } : {}),
      }))
  }

  standsOn(base: BaseRef): boolean {
    return this.#db.prepare('SELECT 1 FROM snapshots WHERE base = ? LIMIT 1').get(base) !== undefined
  }

  hasImage(digest: string): boolean {
    return this.#db.prepare("SELECT 1 FROM snapshots WHERE json_extract(instance, '$.imageDigest') = ? LIMIT 1").get(digest) !== undefined
  }
}

/** Those of older versions know of no volumes, and of the layers that their instance went on with. */
function instanceOf(row: Row): Instance {
  const instance = JSON.parse(String(row.instance)) as Partial<Instance>
  return { ...instance, disk: JSON.parse(String(row.disk)) as string[], volumes: instance.volumes ?? [] } as Instance
}

function snapshotOf(row: Row): Snapshot {
  const text = (value: unknown): string | undefined => (typeof value === 'string' ? value : undefined)
  const name = text(row.name)
  const base = text(row.base)
  const generation = text(row.generation)
  const compression = text(row.compression)
  const compressionError = text(row.compression_error)
  return {
    id: String(row.id),
    kind: row.kind as Snapshot['kind'],
    createdAtMs: Number(row.created_at_ms),
    instance: instanceOf(row),
    disk: JSON.parse(String(row.disk)) as string[],
    tags: JSON.parse(String(row.tags)) as Record<string, string>,
    bytes: Number(row.bytes),
    compressionState: row.compression_state as Snapshot['compressionState'],
    isScheduled: row.is_scheduled === 1,
    ...(name === undefined ? {} : { name }),
    ...(base === undefined ? {} : { base: base as BaseRef }),
    ...(generation === undefined ? {} : { generation }),
    ...(compression === undefined ? {} : { compression: JSON.parse(compression) as Compression }),
    ...(compressionError === undefined ? {} : { compressionError }),
    ...(row.compressed_bytes === null ? {} : { compressedBytes: Number(row.compressed_bytes) }),
    ...(row.uncompressed_bytes === null ? {} : { uncompressedBytes: Number(row.uncompressed_bytes) }),
  }
}
