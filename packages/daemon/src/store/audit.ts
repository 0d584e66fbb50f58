import type { AuditResult } from '@dormouse/api/audit.ts'
import type { Database } from './database.ts'

/** A request that changes something, or that was refused. */
export interface AuditRow {
  readonly atMs: number
  /** Undefined: no one proved anything. */
  readonly caller: string | undefined
  readonly tokenId: string | undefined
  readonly address: string | undefined
  readonly operation: string
  /** What stood in the path, the thing itself first. */
  readonly target: Readonly<Record<string, string>>
  /** Id of that thing, however it was called. */
  readonly subjectId?: string | undefined
  readonly requestId: string
  readonly outcome: AuditOutcome
  /** Refused requests before this one that were not written down. */
  readonly skipped: number
}

export interface AuditOutcome {
  readonly result: AuditResult
  readonly status?: number
  readonly code?: string
  readonly resourceId?: string
  readonly durationMs?: number
}

export interface AuditFilter {
  readonly caller?: string
  readonly operation?: string
  readonly target?: string
  readonly result?: AuditResult
  readonly sinceMs?: number
  readonly untilMs?: number
  /** Only rows that are older than the one with this id. */
  readonly beforeId?: number
  readonly limit: number
}

const INSERT = `INSERT INTO audit
  (at_ms, caller, token_id, address, operation, target, target_id, subject_id, request_id, skipped, share, result, status, code, resource_id, duration_ms)
  VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

/** The rows of `audit`. */
export class AuditRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  insert(row: AuditRow): number {
    const { atMs, caller, tokenId, address, operation, target, subjectId, requestId, skipped, outcome } = row
    const { lastInsertRowid } = this.#db
      .prepare(INSERT)
      .run(
        ...[atMs, caller ?? null, tokenId ?? null, address ?? null, operation, JSON.stringify(target)],
        ...[Object.values(target)[0] ?? null, subjectId ?? null, requestId, skipped, shareOf(row), ...valuesOf(outcome)],
      )
    return Number(lastInsertRowid)
  }

  settle(id: number, outcome: AuditOutcome): void {
    this.#db
      .prepare('UPDATE audit SET result = ?, status = ?, code = ?, resource_id = ?, duration_ms = ? WHERE id = ?')
      .run(...valuesOf(outcome), id)
  }

  /** What a daemon that is gone had not answered. */
  interruptUnsettled(): void {
    this.#db.prepare("UPDATE audit SET result = 'interrupted' WHERE result = 'under_way'").run()
  }

  /** Newest first. */
  list(filter: AuditFilter): (AuditRow & { readonly id: number })[] {
    const { caller, operation, target, result, sinceMs, untilMs, beforeId, limit } = filter
    const wanted: readonly (readonly [condition: string, ...values: (string | number | undefined)[]])[] = [
      ['caller = ?', caller],
      ['operation = ?', operation],
      ['(target_id = ? OR subject_id = ? OR resource_id = ?)', target, target, target],
      ['result = ?', result],
      ['at_ms >= ?', sinceMs],
      ['at_ms < ?', untilMs],
      ['id < ?', beforeId],
    ]
    const asked = wanted.filter(([, value]) => value !== undefined)
    const where = asked.length === 0 ? '' : `WHERE ${asked.map(([condition]) => condition).join(' AND ')}`
    return this.#db
      .prepare(`SELECT * FROM audit ${where} ORDER BY id DESC LIMIT ?`)
      .all(...asked.flatMap(([, ...values]) => values as (string | number)[]), limit)
      .map(rowOf)
  }

  /** Drops what is older, and of each share all but so many of the newest. */
  prune(keep: { readonly asked: number; readonly refused: number; readonly own: number; readonly sinceMs: number }): void {
    this.#db.prepare('DELETE FROM audit WHERE at_ms < ?').run(keep.sinceMs)
    for (const share of Object.keys(SHARES) as (keyof typeof SHARES)[]) {
      this.#db
        .prepare(`DELETE FROM audit WHERE share = ?1 AND id <= (SELECT id FROM audit WHERE share = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)`)
        .run(SHARES[share], keep[share])
    }
  }
}

/** The caller of what the daemon does by itself. No token passes for it. */
export const OWN_CALLER = 'system'

/** Rows that are counted by themselves, and push out none of the others. */
const SHARES = { asked: 0, refused: 1, own: 2 } as const

function shareOf({ caller, outcome }: AuditRow): number {
  if (caller === OWN_CALLER) return SHARES.own
  return outcome.result === 'refused' ? SHARES.refused : SHARES.asked
}

const valuesOf = ({ result, status, code, resourceId, durationMs }: AuditOutcome) =>
  [result, status ?? null, code ?? null, resourceId ?? null, durationMs ?? null] as const

function rowOf(row: Record<string, unknown>): AuditRow & { readonly id: number } {
  const text = (value: unknown): string | undefined => (value === null ? undefined : String(value))
  return {
    id: Number(row.id),
    atMs: Number(row.at_ms),
    caller: text(row.caller),
    tokenId: text(row.token_id),
    address: text(row.address),
    operation: String(row.operation),
    target: JSON.parse(String(row.target)) as Record<string, string>,
    subjectId: text(row.subject_id),
    requestId: String(row.request_id),
    skipped: Number(row.skipped),
    outcome: {
      result: row.result as AuditResult,
      ...(row.status !== null && { status: Number(row.status) }),
      ...(row.code !== null && { code: String(row.code) }),
      ...(row.resource_id !== null && { resourceId: String(row.resource_id) }),
      ...(row.duration_ms !== null && { durationMs: Number(row.duration_ms) }),
    },
  }
}
