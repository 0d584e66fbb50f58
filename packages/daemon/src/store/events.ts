import type { EventKind } from '@dormouse/api/events.ts'
import type { Database } from './database.ts'

export interface NewEvent {
  /** `noun.past`, such as `instance.changed`. */
  readonly kind: EventKind
  /** The id of the thing it is about. */
  readonly subject: string
  readonly data: Readonly<Record<string, unknown>>
}

export interface RecordedEvent extends NewEvent {
  readonly id: number
  readonly atMs: number
}

/** The rows of `events`. */
export class EventRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  insert(event: NewEvent, atMs: number): RecordedEvent {
    const { lastInsertRowid } = this.#db
      .prepare('INSERT INTO events (at_ms, kind, subject, data) VALUES (?, ?, ?, ?)')
      .run(atMs, event.kind, event.subject, JSON.stringify(event.data))
    return { ...event, id: Number(lastInsertRowid), atMs }
  }

  /** Oldest first. */
  after(id: number, limit: number): RecordedEvent[] {
    return this.#db
      .prepare('SELECT id, at_ms, kind, subject, data FROM events WHERE id > ? ORDER BY id LIMIT ?')
      .all(id, limit)
      .map((row) => ({
        id: Number(row.id),
        atMs: Number(row.at_ms),
        kind: String(row.kind) as EventKind,
        subject: String(row.subject),
        data: JSON.parse(String(row.data)),
      }))
  }

  latestId(): number {
    // AUTOINCREMENT keeps the highest id ever given, also when the rows are pruned.
    return Number(this.#db.prepare("SELECT seq FROM sqlite_sequence WHERE name = 'events'").get()?.seq ?? 0)
  }

  /** The oldest that is still there; when none is, the one that comes next. */
  oldestId(): number {
    return Number(this.#db.prepare('SELECT min(id) AS id FROM events').get()?.id ?? this.latestId() + 1)
  }

  /** Drops all but the newest `keep`. */
  prune(keep: number): void {
    this.#db.prepare('DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?').run(keep)
  }
}
