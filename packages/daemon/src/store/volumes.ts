import { AppError } from '@dormouse/api/errors.ts'
import type { Database } from './database.ts'
import type { Attachment, InstanceId } from './instance-record.ts'

export interface Volume {
  readonly id: string
  /** Not unique: an id is. */
  readonly name: string
  readonly createdAtMs: number
  readonly bytes: number
  readonly tags: Readonly<Record<string, string>>
  /** Its layers, top first. Empty while an instance writes to it: then that one's attachment has them. */
  readonly disk: readonly string[]
  /** Made with a fork, whose volume it is; until that is whole it goes with it. */
  readonly madeFor?: InstanceId
}

/** Who has a volume. */
export interface Holder extends Attachment {
  readonly instanceId: InstanceId
  readonly instanceName: string
}

type Row = Record<string, string | number | null>

/** The rows of `volumes`, and who has them, which the rows of instances say. */
export class VolumeRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  /** Throws `conflict` when the id is taken. */
  insert({ id, name, createdAtMs, bytes, tags, disk, madeFor }: Volume): void {
    if (this.find(id) !== undefined) throw new AppError('conflict', `There is a volume with the id ${id} already`)
    this.#db
      .prepare('INSERT INTO volumes (id, name, created_at_ms, bytes, tags, disk, made_for) VALUES (?, ?, ?, ?, ?, ?, ?)')
      .run(id, name, createdAtMs, bytes, JSON.stringify(tags), JSON.stringify(disk), madeFor ?? null)
  }

  update({ id, bytes, disk }: Pick<Volume, 'id' | 'bytes' | 'disk'>): void {
    this.#db.prepare('UPDATE volumes SET bytes = ?, disk = ? WHERE id = ?').run(bytes, JSON.stringify(disk), id)
  }

  delete(id: string): void {
    this.#db.prepare('DELETE FROM volumes WHERE id = ?').run(id)
  }

  find(id: string): Volume | undefined {
    const row = this.#db.prepare('SELECT * FROM volumes WHERE id = ?').get(id)
    return row === undefined ? undefined : volumeOf(row as Row)
  }

  /** At most two: enough to know that a name is ambiguous. */
  findByName(name: string): Volume[] {
    return this.#db
      .prepare('SELECT * FROM volumes WHERE name = ? LIMIT 2')
      .all(name)
      .map((row) => volumeOf(row as Row))
  }

  /** Newest first. */
  list(): Volume[] {
    return this.#db
      .prepare('SELECT * FROM volumes ORDER BY created_at_ms DESC, id DESC')
      .all()
      .map((row) => volumeOf(row as Row))
  }

  /** Those that were made with a fork. */
  madeFor(id: InstanceId): Volume[] {
    return this.#db
      .prepare('SELECT * FROM volumes WHERE made_for = ?')
      .all(id)
      .map((row) => volumeOf(row as Row))
  }

  /** Who has it, in the order in which they were made; of all volumes without an id. */
  holders(id?: string): Holder[] {
    return this.#db
      .prepare(
        `SELECT instances.id, instances.name, attached.value FROM instances, json_each(instances.volumes) AS attached
         WHERE ?1 IS NULL OR json_extract(attached.value, '$.volumeId') = ?1 ORDER BY instances.created_at_ms, instances.id`,
      )
      .all(id ?? null)
      .map(({ id: instanceId, name, value }) => ({
        ...(JSON.parse(String(value)) as Attachment),
        instanceId: instanceId as InstanceId,
        instanceName: String(name),
      }))
  }

  sizeBytes(): number {
    return Number(this.#db.prepare('SELECT coalesce(sum(bytes), 0) AS bytes FROM volumes').get()?.bytes)
  }

  /**
   * What they may take of the disk: each its full size, and what instances write over those that they share. A reader whose disk is one layer
   * has a copy of its own.
   */
  demandBytes(): number {
    const volumes = this.#db.prepare('SELECT coalesce(sum(bytes), 0) AS bytes FROM volumes').get()
    const overlays = this.#db
      .prepare(
        `SELECT coalesce(sum(CASE
           WHEN json_extract(attached.value, '$.readOnly') AND json_array_length(attached.value, '$.disk') = 1
           THEN json_extract(attached.value, '$.bytes') ELSE json_extract(attached.value, '$.overlayBytes') END), 0) AS bytes
         FROM instances, json_each(instances.volumes) AS attached`,
      )
      .get()
    return Number(volumes?.bytes) + Number(overlays?.bytes)
  }
}

function volumeOf(row: Row): Volume {
  return {
    id: String(row.id),
    name: String(row.name),
    createdAtMs: Number(row.created_at_ms),
    bytes: Number(row.bytes),
    tags: JSON.parse(String(row.tags)) as Record<string, string>,
    disk: JSON.parse(String(row.disk)) as string[],
    ...(typeof row.made_for === 'string' ? { madeFor: row.made_for as InstanceId } : {}),
  }
}
