import type { Database } from './database.ts'

/** Which address of the bridge's subnet is whose. A lease goes with its instance's row. */
export class LeaseRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  /** The host number that the instance holds. */
  find(id: string): number | undefined {
    const row = this.#db.prepare('SELECT host FROM leases WHERE instance_id = ?').get(id)
    return row === undefined ? undefined : Number(row.host)
  }

  taken(): ReadonlySet<number> {
    return new Set(
      this.#db
        .prepare('SELECT host FROM leases')
        .all()
        .map(({ host }) => Number(host)),
    )
  }

  /** The instance's row is there. One that held another address holds this one now. */
  put(id: string, host: number): void {
    this.#db
      .prepare('INSERT INTO leases (instance_id, host) VALUES (?, ?) ON CONFLICT (instance_id) DO UPDATE SET host = excluded.host')
      .run(id, host)
  }
}
