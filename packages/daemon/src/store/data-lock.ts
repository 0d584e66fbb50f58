/**
 * One daemon per data directory. SQLite's own file lock is what is held (Node has no flock): it goes with the process, however that
 * ends. Others can read who holds it, which is why the holder is written before the lock is taken for good.
 */
import { chmodSync, closeSync, openSync } from 'node:fs'
import { DatabaseSync } from 'node:sqlite'
import { AppError } from '@dormouse/api/errors.ts'

export class DataLock implements Disposable {
  readonly #sqlite: DatabaseSync

  private constructor(sqlite: DatabaseSync) {
    this.#sqlite = sqlite
  }

  /** Throws `conflict` saying who holds it. */
  static take(path: string): DataLock {
    // Whoever may read it could hold a lock of its own on it, and keep a daemon from starting.
    closeSync(openSync(path, 'a', 0o600))
    chmodSync(path, 0o600)
    const sqlite = new DatabaseSync(path, { timeout: 200 })
    try {
      sqlite.exec('BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS holder (pid INTEGER NOT NULL, since TEXT NOT NULL); DELETE FROM holder')
      sqlite.prepare('INSERT INTO holder VALUES (?, ?)').run(process.pid, new Date().toISOString())
      sqlite.exec('COMMIT; BEGIN IMMEDIATE')
      return new DataLock(sqlite)
    } catch (cause) {
      const holder = holderOf(sqlite)
      sqlite.close()
      if ((cause as { errcode?: number }).errcode !== SQLITE_BUSY) throw cause
      throw new AppError('conflict', `Another daemon has this data directory${holder}`, {
        hint: 'Stop it first, or set another directory with DORMOUSE_DATA_DIR and DORMOUSE_RUN_DIR',
        cause,
      })
    }
  }

  [Symbol.dispose](): void {
    if (this.#sqlite.isOpen) this.#sqlite.close()
  }
}

const SQLITE_BUSY = 5

function holderOf(sqlite: DatabaseSync): string {
  try {
    const row = sqlite.prepare('SELECT pid, since FROM holder').get()
    return row === undefined ? '' : `: process ${row.pid}, since ${row.since}`
  } catch {
    return ''
  }
}
