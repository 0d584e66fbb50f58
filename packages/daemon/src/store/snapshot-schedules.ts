import type { Database } from './database.ts'
import type { InstanceId } from './instance-record.ts'

/** When snapshots of an instance are taken by themselves, and which of them are kept. */
export interface SnapshotSchedule {
  readonly instanceId: InstanceId
  readonly intervalMs: number
  readonly retention: Retention
  /** What its snapshots' names begin with. */
  readonly namePrefix?: string
  /** Tags that its snapshots are given. */
  readonly metadata: Readonly<Record<string, string>>
  readonly nextRunAtMs: number
  /** When the last run was begun, what it made, and what went wrong. A run that made nothing and names no error is under way. */
  readonly lastRunAtMs?: number
  readonly lastSnapshotId?: string
  readonly lastError?: string
  readonly createdAtMs: number
  readonly updatedAtMs: number
}

export interface Retention {
  /** So many are kept, the newest; 0 keeps all. */
  readonly maxCount: number
  /** What is older goes; absent keeps all. */
  readonly maxAgeMs?: number
}

type Row = Record<string, string | number | null>

const COLUMNS = [
  ...['instance_id', 'interval_ms', 'max_count', 'max_age_ms', 'name_prefix', 'metadata', 'next_run_at_ms'],
  ...['last_run_at_ms', 'last_snapshot_id', 'last_error', 'created_at_ms', 'updated_at_ms'],
]
const PUT = `INSERT OR REPLACE INTO snapshot_schedules (${COLUMNS.join(', ')}) VALUES (${COLUMNS.map(() => '?').join(', ')})`

/** The rows of `snapshot_schedules`. Nothing here decides; it reads and writes. */
export class SnapshotScheduleRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  /** Writes the whole record, over the stored one if there is one. */
  put(schedule: SnapshotSchedule): void {
    const { instanceId, intervalMs, retention, namePrefix, metadata, nextRunAtMs } = schedule
    const { lastRunAtMs, lastSnapshotId, lastError, createdAtMs, updatedAtMs } = schedule
    this.#db
      .prepare(PUT)
      .run(
        ...[instanceId, intervalMs, retention.maxCount, retention.maxAgeMs ?? null, namePrefix ?? null, JSON.stringify(metadata)],
        ...[nextRunAtMs, lastRunAtMs ?? null, lastSnapshotId ?? null, lastError ?? null, createdAtMs, updatedAtMs],
      )
  }

  delete(id: InstanceId): void {
    this.#db.prepare('DELETE FROM snapshot_schedules WHERE instance_id = ?').run(id)
  }

  find(id: InstanceId): SnapshotSchedule | undefined {
    return this.#list('WHERE instance_id = ?', id)[0]
  }

  /** Those whose time has come, the longest overdue first. */
  listDue(nowMs: number): SnapshotSchedule[] {
    return this.#list('WHERE next_run_at_ms <= ? ORDER BY next_run_at_ms, instance_id', nowMs)
  }

  /** Those that would wait for longer than their interval. */
  listFarAhead(nowMs: number): SnapshotSchedule[] {
    return this.#list('WHERE next_run_at_ms > ? + interval_ms', nowMs)
  }

  /** Those whose last run has neither made anything nor failed. */
  listUnderWay(): SnapshotSchedule[] {
    return this.#list('WHERE last_run_at_ms IS NOT NULL AND last_snapshot_id IS NULL AND last_error IS NULL')
  }

  /** When the first one after `nowMs` is due; undefined when there is none. */
  nextRunAfter(nowMs: number): number | undefined {
    const row = this.#db.prepare('SELECT min(next_run_at_ms) AS at_ms FROM snapshot_schedules WHERE next_run_at_ms > ?').get(nowMs)
    return typeof row?.at_ms === 'number' ? row.at_ms : undefined
  }

  isEmpty(): boolean {
    return this.#db.prepare('SELECT 1 FROM snapshot_schedules LIMIT 1').get() === undefined
  }

  #list(where: string, ...values: (string | number)[]): SnapshotSchedule[] {
    return this.#db
      .prepare(`SELECT * FROM snapshot_schedules ${where}`)
      .all(...values)
      .map((row) => scheduleOf(row as Row))
  }
}

const scheduleOf = (row: Row): SnapshotSchedule => ({
  instanceId: row.instance_id as InstanceId,
  intervalMs: Number(row.interval_ms),
  retention: { maxCount: Number(row.max_count), ...(row.max_age_ms === null ? {} : { maxAgeMs: Number(row.max_age_ms) }) },
  metadata: JSON.parse(String(row.metadata)) as Record<string, string>,
  nextRunAtMs: Number(row.next_run_at_ms),
  createdAtMs: Number(row.created_at_ms),
  updatedAtMs: Number(row.updated_at_ms),
  ...(row.name_prefix === null ? {} : { namePrefix: String(row.name_prefix) }),
  ...(row.last_run_at_ms === null ? {} : { lastRunAtMs: Number(row.last_run_at_ms) }),
  ...(row.last_snapshot_id === null ? {} : { lastSnapshotId: String(row.last_snapshot_id) }),
  ...(row.last_error === null ? {} : { lastError: String(row.last_error) }),
})
