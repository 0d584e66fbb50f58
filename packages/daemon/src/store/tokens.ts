import type { Database } from './database.ts'

/** A token that was made here. The token itself is kept nowhere. */
export interface TokenRow {
  /** Its `jti`. */
  readonly id: string
  readonly subject: string
  /** Undefined: everything. */
  readonly scopes: readonly string[] | undefined
  readonly createdAtMs: number
  readonly expiresAtMs: number
  readonly revokedAtMs: number | undefined
}

/** The rows of `tokens` and `token_cutoffs`. */
export class TokenRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  /** Drops those that have expired along with it: they are refused for that. */
  insert(token: Omit<TokenRow, 'revokedAtMs'>): void {
    this.#db.transaction(() => {
      this.#db.prepare('DELETE FROM tokens WHERE expires_at_ms < ?').run(token.createdAtMs)
      this.#db
        .prepare('INSERT INTO tokens (id, subject, scopes, created_at_ms, expires_at_ms) VALUES (?, ?, ?, ?, ?)')
        .run(token.id, token.subject, token.scopes ? JSON.stringify(token.scopes) : null, token.createdAtMs, token.expiresAtMs)
    })
  }

  find(id: string): TokenRow | undefined {
    const row = this.#db.prepare('SELECT * FROM tokens WHERE id = ?').get(id)
    return row && tokenOf(row)
  }

  /** Newest first; without those that expired before `nowMs`. */
  list(nowMs: number): TokenRow[] {
    return this.#db.prepare('SELECT * FROM tokens WHERE expires_at_ms >= ? ORDER BY created_at_ms DESC, id DESC').all(nowMs).map(tokenOf)
  }

  /** Keeps the moment of the first time. False when there is no such token. */
  revoke(id: string, atMs: number): boolean {
    const revoke = () => this.#db.prepare('UPDATE tokens SET revoked_at_ms = coalesce(revoked_at_ms, ?) WHERE id = ?').run(atMs, id)
    return this.#db.transaction(revoke, { evenWhenFull: true }).changes > 0
  }

  /** Every token of `subject` from before `beforeMs`, those that are not known here too. Gives how many of the known it was. */
  revokeAllOf(subject: string, beforeMs: number, atMs: number): number {
    const revoke = (): number => {
      this.#db
        .prepare(
          'INSERT INTO token_cutoffs (subject, before_ms) VALUES (?, ?) ON CONFLICT DO UPDATE SET before_ms = max(before_ms, excluded.before_ms)',
        )
        .run(subject, beforeMs)
      const known = this.#db
        .prepare(
          'UPDATE tokens SET revoked_at_ms = ? WHERE subject = ? AND created_at_ms < ? AND revoked_at_ms IS NULL AND expires_at_ms >= ?',
        )
        .run(atMs, subject, beforeMs, atMs)
      return Number(known.changes)
    }
    return this.#db.transaction(revoke, { evenWhenFull: true })
  }

  /** Tokens of `subject` that are not known here hold only from this moment on; 0 when all do. */
  cutoffOf(subject: string): number {
    return Number(this.#db.prepare('SELECT before_ms FROM token_cutoffs WHERE subject = ?').get(subject)?.before_ms ?? 0)
  }
}

const tokenOf = (row: Record<string, unknown>): TokenRow => ({
  id: String(row.id),
  subject: String(row.subject),
  scopes: row.scopes === null ? undefined : (JSON.parse(String(row.scopes)) as string[]),
  createdAtMs: Number(row.created_at_ms),
  expiresAtMs: Number(row.expires_at_ms),
  revokedAtMs: row.revoked_at_ms === null ? undefined : Number(row.revoked_at_ms),
})
