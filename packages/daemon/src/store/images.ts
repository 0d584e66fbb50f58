import type { ErrorCode } from '@dormouse/api/errors.ts'
import type { IMAGE_STATUSES } from '@dormouse/api/images.ts'
import type { Database } from './database.ts'

export type ImageStatus = (typeof IMAGE_STATUSES)[number]

/** One image for one platform. */
export interface ImageRow {
  readonly digest: string
  readonly platform: string
  readonly status: ImageStatus
  readonly errorCode: ErrorCode | undefined
  readonly error: string | undefined
  readonly manifest: Buffer
  readonly config: Buffer
  /** JSON: where it can be pulled from again. */
  readonly origin: string | undefined
  readonly rootfsBytes: number | undefined
  readonly createdAtMs: number
  /** When it was last named, pulled or stood on; the database keeps it. */
  readonly usedAtMs: number
}

/** A name and where it leads: to `digest` now, to `nextDigest` once that is ready. */
export interface ImageNameRow {
  readonly name: string
  readonly platform: string
  readonly digest: string | undefined
  readonly nextDigest: string | undefined
  readonly tags: Readonly<Record<string, string>>
  readonly createdAtMs: number
}

type Row = Record<string, unknown>

/** The rows of `images`, `image_layers` and `image_names`. */
export class ImageRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  find(digest: string): ImageRow | undefined {
    const row = this.#db.prepare('SELECT * FROM images WHERE digest = ?').get(digest)
    return row && imageOf(row)
  }

  all(): ImageRow[] {
    return this.#db.prepare('SELECT * FROM images ORDER BY created_at_ms, digest').all().map(imageOf)
  }

  /** Takes the place of a row with the same digest, and of its layers. */
  put(image: Omit<ImageRow, 'usedAtMs'>, layers: readonly string[]): void {
    this.#db
      .prepare(
        `INSERT INTO images (digest, platform, status, error_code, error, manifest, config, origin, rootfs_bytes, created_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (digest) DO UPDATE SET status = excluded.status, error_code = excluded.error_code, error = excluded.error,
           origin = excluded.origin, rootfs_bytes = excluded.rootfs_bytes`,
      )
      .run(
        image.digest,
        image.platform,
        image.status,
        image.errorCode ?? null,
        image.error ?? null,
        image.manifest,
        image.config,
        image.origin ?? null,
        image.rootfsBytes ?? null,
        image.createdAtMs,
      )
    this.#db.prepare('DELETE FROM image_layers WHERE image_digest = ?').run(image.digest)
    layers.forEach((layer, position) => {
      this.#db.prepare('INSERT INTO image_layers (image_digest, position, digest) VALUES (?, ?, ?)').run(image.digest, position, layer)
    })
  }

  setStatus(digest: string, status: ImageStatus, facts: { errorCode?: ErrorCode; error?: string; rootfsBytes?: number } = {}): void {
    this.#db
      .prepare('UPDATE images SET status = ?, error_code = ?, error = ?, rootfs_bytes = coalesce(?, rootfs_bytes) WHERE digest = ?')
      .run(status, facts.errorCode ?? null, facts.error ?? null, facts.rootfsBytes ?? null, digest)
  }

  /** From the bottom. */
  layersOf(digest: string): string[] {
    const rows = this.#db.prepare('SELECT digest FROM image_layers WHERE image_digest = ? ORDER BY position').all(digest)
    return rows.map((row) => String(row.digest))
  }

  /** The image no longer holds its layers; `put` gives them again. */
  dropLayers(digest: string): void {
    this.#db.prepare('DELETE FROM image_layers WHERE image_digest = ?').run(digest)
  }

  delete(digest: string): void {
    this.#db.prepare('DELETE FROM images WHERE digest = ?').run(digest)
  }

  /** Does some image stand on this layer, or has a repository been given it? */
  isLayerInUse(digest: string): boolean {
    const sql = 'SELECT 1 FROM image_layers WHERE digest = ?1 UNION ALL SELECT 1 FROM registry_blobs WHERE digest = ?1 LIMIT 1'
    return this.#db.prepare(sql).get(digest) !== undefined
  }

  /** Which image has which layer. */
  layers(): { readonly imageDigest: string; readonly digest: string }[] {
    return this.#db
      .prepare('SELECT image_digest, digest FROM image_layers')
      .all()
      .map(({ image_digest, digest }) => ({ imageDigest: String(image_digest), digest: String(digest) }))
  }

  /** Images that no name leads to. */
  unnamed(): ImageRow[] {
    return this.#db
      .prepare(
        'SELECT * FROM images WHERE NOT EXISTS (SELECT 1 FROM image_names n WHERE n.digest = images.digest OR n.next_digest = images.digest)',
      )
      .all()
      .map(imageOf)
  }

  // Names

  /** Newest first; among those of one moment downwards, as pages of lists need it. */
  names(): ImageNameRow[] {
    return this.#db.prepare('SELECT * FROM image_names ORDER BY created_at_ms DESC, name DESC, platform DESC').all().map(nameOf)
  }

  findName(name: string, platform: string): ImageNameRow | undefined {
    const row = this.#db.prepare('SELECT * FROM image_names WHERE name = ? AND platform = ?').get(name, platform)
    return row && nameOf(row)
  }

  namesCalled(name: string): ImageNameRow[] {
    return this.#db.prepare('SELECT * FROM image_names WHERE name = ? ORDER BY platform').all(name).map(nameOf)
  }

  /** Names in a repository, which is written as they are: `docker.io/library/alpine`. */
  namesIn(repository: string): ImageNameRow[] {
    return (
      this.#db
        // Between a colon and what follows it, and the same for an at sign: the index leads there.
        .prepare(
          `SELECT * FROM image_names WHERE (name >= ?1 || ':' AND name < ?1 || ';') OR (name >= ?1 || '@' AND name < ?1 || 'A')
         ORDER BY name, platform`,
        )
        .all(repository)
        .map(nameOf)
    )
  }

  namesLeadingTo(digest: string): ImageNameRow[] {
    return this.#db
      .prepare('SELECT * FROM image_names WHERE digest = ? OR next_digest = ? ORDER BY name, platform')
      .all(digest, digest)
      .map(nameOf)
  }

  putName(row: ImageNameRow): void {
    this.#db
      .prepare(
        `INSERT INTO image_names (name, platform, digest, next_digest, tags, created_at_ms) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (name, platform) DO UPDATE SET digest = excluded.digest, next_digest = excluded.next_digest, tags = excluded.tags,
           created_at_ms = excluded.created_at_ms`,
      )
      .run(row.name, row.platform, row.digest ?? null, row.nextDigest ?? null, JSON.stringify(row.tags), row.createdAtMs)
  }

  /** Every name that waited for `digest` leads to it now. */
  moveNames(digest: string): void {
    this.#db.prepare('UPDATE image_names SET digest = next_digest, next_digest = NULL WHERE next_digest = ?').run(digest)
  }

  deleteName(name: string, platform: string): void {
    this.#db.prepare('DELETE FROM image_names WHERE name = ? AND platform = ?').run(name, platform)
  }
}

const imageOf = (row: Row): ImageRow => ({
  digest: String(row.digest),
  platform: String(row.platform),
  status: row.status as ImageStatus,
  errorCode: (row.error_code ?? undefined) as ErrorCode | undefined,
  error: textOf(row.error),
  manifest: Buffer.from(row.manifest as Uint8Array),
  config: Buffer.from(row.config as Uint8Array),
  origin: textOf(row.origin),
  rootfsBytes: row.rootfs_bytes === null ? undefined : Number(row.rootfs_bytes),
  createdAtMs: Number(row.created_at_ms),
  usedAtMs: Number(row.used_at_ms),
})

const nameOf = (row: Row): ImageNameRow => ({
  name: String(row.name),
  platform: String(row.platform),
  digest: textOf(row.digest),
  nextDigest: textOf(row.next_digest),
  tags: JSON.parse(String(row.tags)),
  createdAtMs: Number(row.created_at_ms),
})

const textOf = (value: unknown): string | undefined => (typeof value === 'string' ? value : undefined)
