import type { Database } from './database.ts'

/** A manifest or an index as it was pushed. */
export interface PushedManifest {
  readonly repository: string
  readonly digest: string
  readonly mediaType: string
  readonly document: Buffer
}

/** Is `name` in `repository`? Both as names of images are written. */
const IN_REPOSITORY = `substr(n.name, 1, length(m.repository) + 1) IN (m.repository || ':', m.repository || '@')`

/** The rows of `registry_manifests`, `registry_references`, `registry_tags` and `registry_blobs`. */
export class RegistryRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  // Manifests

  findManifest(repository: string, digest: string): PushedManifest | undefined {
    const row = this.#db.prepare('SELECT * FROM registry_manifests WHERE repository = ? AND digest = ?').get(repository, digest)
    return (
      row && {
        repository: String(row.repository),
        digest: String(row.digest),
        mediaType: String(row.media_type),
        document: Buffer.from(row.document as Uint8Array),
      }
    )
  }

  /** Was it pushed, to whichever repository? */
  hasManifest(digest: string): boolean {
    return this.#db.prepare('SELECT 1 FROM registry_manifests WHERE digest = ? LIMIT 1').get(digest) !== undefined
  }

  /** Takes the place of the same manifest. From now on it holds what it stands on; it is held itself until `wantedUntilMs`, or a tag or an index holds it. */
  putManifest(
    { repository, digest, mediaType, document }: PushedManifest,
    standsOn: readonly string[],
    wantedUntilMs: number | null,
  ): void {
    this.#db
      .prepare(
        `INSERT INTO registry_manifests (repository, digest, media_type, document, wanted_until_ms) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (repository, digest) DO UPDATE SET media_type = excluded.media_type, wanted_until_ms = excluded.wanted_until_ms`,
      )
      .run(repository, digest, mediaType, document, wantedUntilMs)
    for (const one of new Set(standsOn)) {
      this.#db
        .prepare('INSERT OR IGNORE INTO registry_references (repository, manifest, digest) VALUES (?, ?, ?)')
        .run(repository, digest, one)
      this.#db.prepare('UPDATE registry_manifests SET wanted_until_ms = NULL WHERE repository = ? AND digest = ?').run(repository, one)
      this.#db.prepare('UPDATE registry_blobs SET wanted_until_ms = NULL WHERE repository = ? AND digest = ?').run(repository, one)
    }
  }

  /** What manifests take that nothing leads to yet. */
  waitingBytes(): number {
    const sql = 'SELECT coalesce(sum(length(document)), 0) AS bytes FROM registry_manifests WHERE wanted_until_ms IS NOT NULL'
    return Number(this.#db.prepare(sql).get()?.bytes)
  }

  deleteManifest(repository: string, digest: string): void {
    this.#db.prepare('DELETE FROM registry_manifests WHERE repository = ? AND digest = ?').run(repository, digest)
  }

  /** Does a manifest of the repository stand on it? */
  isReferenced(repository: string, digest: string): boolean {
    const sql = 'SELECT 1 FROM registry_references WHERE repository = ? AND digest = ? LIMIT 1'
    return this.#db.prepare(sql).get(repository, digest) !== undefined
  }

  // Tags

  /** What was pushed as `name`, unless the name leads elsewhere by now. */
  findTagged(name: string): PushedManifest | undefined {
    const row = this.#db.prepare(`SELECT t.repository, t.digest FROM registry_tags t WHERE t.name = ? AND ${IS_LED_TO}`).get(name)
    return row && this.findManifest(String(row.repository), String(row.digest))
  }

  /** Names of the repository that lead to this manifest. */
  namesTagged(repository: string, digest: string): string[] {
    return this.#db
      .prepare(`SELECT t.name FROM registry_tags t WHERE t.repository = ? AND t.digest = ? AND ${IS_LED_TO} ORDER BY t.name`)
      .all(repository, digest)
      .map(({ name }) => String(name))
  }

  putTag(name: string, repository: string, digest: string): void {
    this.#db
      .prepare(
        `INSERT INTO registry_tags (name, repository, digest) VALUES (?, ?, ?)
         ON CONFLICT (name) DO UPDATE SET repository = excluded.repository, digest = excluded.digest`,
      )
      .run(name, repository, digest)
  }

  // Blobs

  hasBlob(repository: string, digest: string): boolean {
    return this.#db.prepare('SELECT 1 FROM registry_blobs WHERE repository = ? AND digest = ?').get(repository, digest) !== undefined
  }

  /** The repository has the blob from now on, until then in any case. One that a manifest holds stays held. */
  putBlob(repository: string, digest: string, wantedUntilMs: number): void {
    const isHeld = this.isReferenced(repository, digest)
    this.#db
      .prepare(
        `INSERT INTO registry_blobs (repository, digest, wanted_until_ms) VALUES (?, ?, ?)
         ON CONFLICT (repository, digest) DO UPDATE SET wanted_until_ms = excluded.wanted_until_ms`,
      )
      .run(repository, digest, isHeld ? null : wantedUntilMs)
  }

  deleteBlob(repository: string, digest: string): void {
    this.#db.prepare('DELETE FROM registry_blobs WHERE repository = ? AND digest = ?').run(repository, digest)
  }

  // All of it

  /**
   * Drops what nothing leads to and no one waits for: tags whose name leads elsewhere, manifests without tag, index or image, blobs
   * without manifest. Except blobs that `isHeld`.
   */
  collect(nowMs: number, isHeld: (digest: string) => boolean): void {
    this.#db.transaction(
      () => {
        this.#db.prepare(`DELETE FROM registry_tags AS t WHERE NOT ${IS_LED_TO}`).run()
        // An index may have held what is free only now.
        while (this.#db.prepare(DELETE_FREE_MANIFESTS).run(nowMs).changes > 0);
        for (const { repository, digest } of this.#db.prepare(FREE_BLOBS).all(nowMs)) {
          if (!isHeld(String(digest))) this.deleteBlob(String(repository), String(digest))
        }
      },
      { evenWhenFull: true },
    )
  }
}

const IS_LED_TO = `EXISTS (
  SELECT 1 FROM image_names n WHERE n.name = t.name AND (
    t.digest IN (n.digest, n.next_digest) OR EXISTS (
      SELECT 1 FROM registry_references r
      WHERE r.repository = t.repository AND r.manifest = t.digest AND r.digest IN (n.digest, n.next_digest))))`

// An image that lost its names stays until it is pruned; so does what it was pushed as.
const DELETE_FREE_MANIFESTS = `DELETE FROM registry_manifests AS m WHERE coalesce(m.wanted_until_ms, 0) < ?
  AND NOT EXISTS (SELECT 1 FROM registry_tags t WHERE t.repository = m.repository AND t.digest = m.digest)
  AND NOT EXISTS (SELECT 1 FROM registry_references r WHERE r.repository = m.repository AND r.digest = m.digest)
  AND NOT EXISTS (SELECT 1 FROM image_names n WHERE (n.digest = m.digest OR n.next_digest = m.digest) AND ${IN_REPOSITORY})
  AND NOT (EXISTS (SELECT 1 FROM images i WHERE i.digest = m.digest)
    AND NOT EXISTS (SELECT 1 FROM image_names n WHERE (n.digest = m.digest OR n.next_digest = m.digest)))`

const FREE_BLOBS = `SELECT b.repository, b.digest FROM registry_blobs b WHERE coalesce(b.wanted_until_ms, 0) < ?
  AND NOT EXISTS (SELECT 1 FROM registry_references r WHERE r.repository = b.repository AND r.digest = b.digest)`
