import type { Database } from './database.ts'
import type { InstanceId } from './instance-record.ts'

/** What a daemon that begins has to know of an instance that is to sleep by itself. Goes with its instance. */
export interface IdleRecord {
  readonly instanceId: InstanceId
  readonly idleSinceMs?: number
  /** Someone was connected when it was last looked at. */
  readonly isActive: boolean
  readonly lastActivityMs?: number
  /** Not before then. */
  readonly holdUntilMs?: number
}

const PUT = `INSERT OR REPLACE INTO auto_standby (instance_id, idle_since_ms, is_active, last_activity_ms, hold_until_ms)
  SELECT id, ?, ?, ?, ? FROM instances WHERE id = ?`

/** The rows of `auto_standby`. Nothing here decides; it reads and writes. */
export class AutoStandbyRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  /** Nothing where the instance is gone. */
  put({ instanceId, idleSinceMs, isActive, lastActivityMs, holdUntilMs }: IdleRecord): void {
    this.#db.prepare(PUT).run(idleSinceMs ?? null, Number(isActive), lastActivityMs ?? null, holdUntilMs ?? null, instanceId)
  }

  find(id: InstanceId): IdleRecord | undefined {
    const row = this.#db.prepare('SELECT * FROM auto_standby WHERE instance_id = ?').get(id)
    if (row === undefined) return undefined
    return {
      instanceId: id,
      isActive: row.is_active === 1,
      ...(row.idle_since_ms === null ? {} : { idleSinceMs: Number(row.idle_since_ms) }),
      ...(row.last_activity_ms === null ? {} : { lastActivityMs: Number(row.last_activity_ms) }),
      ...(row.hold_until_ms === null ? {} : { holdUntilMs: Number(row.hold_until_ms) }),
    }
  }
}
