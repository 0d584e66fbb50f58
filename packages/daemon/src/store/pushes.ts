import type { Database } from './database.ts'

export type PushStatus = 'queued' | 'pushing' | 'pushed' | 'failed'

/** An image on its way to a registry, or what became of it. */
export interface PushRow {
  readonly id: string
  /** The name that it was asked for by. */
  readonly image: string
  readonly digest: string
  readonly target: string
  readonly insecure: boolean
  /** Its credentials came with the request. */
  readonly needsGiven: boolean
  readonly status: PushStatus
  readonly error: string | undefined
  readonly layers: number | undefined
  readonly bytes: number | undefined
  readonly createdAtMs: number
  readonly completedAtMs: number | undefined
}

type Row = Record<string, unknown>

/** The rows of `pushes`. */
export class PushRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  /** Newest first. */
  all(): PushRow[] {
    return this.#db.prepare('SELECT * FROM pushes ORDER BY created_at_ms DESC, id DESC').all().map(pushOf)
  }

  find(id: string): PushRow | undefined {
    const row = this.#db.prepare('SELECT * FROM pushes WHERE id = ?').get(id)
    return row && pushOf(row)
  }

  /** Those that are not over, oldest first. */
  unfinished(): PushRow[] {
    return this.#db.prepare("SELECT * FROM pushes WHERE status IN ('queued', 'pushing') ORDER BY created_at_ms, id").all().map(pushOf)
  }

  /** Is this image on its way to some registry? */
  isBusy(digest: string): boolean {
    const sql = "SELECT 1 FROM pushes WHERE digest = ? AND status IN ('queued', 'pushing') LIMIT 1"
    return this.#db.prepare(sql).get(digest) !== undefined
  }

  insert(row: PushRow): void {
    this.#db
      .prepare(
        `INSERT INTO pushes (id, image, digest, target, insecure, needs_given, status, error, layers, bytes, created_at_ms, completed_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
      )
      .run(
        row.id,
        row.image,
        row.digest,
        row.target,
        Number(row.insecure),
        Number(row.needsGiven),
        row.status,
        row.error ?? null,
        row.layers ?? null,
        row.bytes ?? null,
        row.createdAtMs,
        row.completedAtMs ?? null,
      )
  }

  setStatus(id: string, status: PushStatus, facts: { error?: string; layers?: number; bytes?: number; completedAtMs?: number } = {}): void {
    this.#db
      .prepare('UPDATE pushes SET status = ?, error = ?, layers = ?, bytes = ?, completed_at_ms = ? WHERE id = ?')
      .run(status, facts.error ?? null, facts.layers ?? null, facts.bytes ?? null, facts.completedAtMs ?? null, id)
  }

  /** Drops the oldest that are over, down to `keep` of them. */
  forgetOld(keep: number): void {
    this.#db
      .prepare(
        `DELETE FROM pushes WHERE id IN (
           SELECT id FROM pushes WHERE status IN ('pushed', 'failed') ORDER BY created_at_ms DESC, id DESC LIMIT -1 OFFSET ?)`,
      )
      .run(keep)
  }
}

const pushOf = (row: Row): PushRow => ({
  id: String(row.id),
  image: String(row.image),
  digest: String(row.digest),
  target: String(row.target),
  insecure: row.insecure === 1,
  needsGiven: row.needs_given === 1,
  status: row.status as PushStatus,
  error: typeof row.error === 'string' ? row.error : undefined,
  layers: row.layers === null ? undefined : Number(row.layers),
  bytes: row.bytes === null ? undefined : Number(row.bytes),
  createdAtMs: Number(row.created_at_ms),
  completedAtMs: row.completed_at_ms === null ? undefined : Number(row.completed_at_ms),
})
