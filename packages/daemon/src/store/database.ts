/**
 * The one SQLite file. Work on it is synchronous: nothing awaits inside a transaction, so what one tick of the event loop reads
 * and writes is one consistent whole. `synchronous=FULL` in WAL mode: when `transaction` returns, the change survives a power cut.
 */
import { DatabaseSync, type StatementSync } from 'node:sqlite'
import { AppError } from '@dormouse/api/errors.ts'
import { type Migration, migrations } from './migrations.ts'

export class Database implements Disposable {
  readonly #sqlite: DatabaseSync
  readonly #statements = new Map<string, StatementSync>()
  #depth = 0
  #afterCommit: (() => void)[] = []

  private constructor(sqlite: DatabaseSync) {
    this.#sqlite = sqlite
  }

  /** Opens or makes the file (`:memory:` in tests) and brings its schema up to date. Throws when a newer dormouse has written it. */
  static open(path: string, steps: readonly Migration[] = migrations): Database {
    const sqlite = new DatabaseSync(path, { enableForeignKeyConstraints: true, timeout: 5000 })
    try {
      sqlite.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -8000')
      const db = new Database(sqlite)
      db.#migrate(path, steps)
      return db
    } catch (error) {
      sqlite.close()
      throw error
    }
  }

  /**
   * All of `work` or nothing of it. Inside another transaction it is a savepoint of that one. `work` may not be async: what it
   * would do after its first await would fall outside.
   */
  transaction<T>(work: () => T): T {
    const outermost = this.#depth === 0
    const savepoint = `s${this.#depth}`
    const announced = this.#afterCommit.length
    this.#sqlite.exec(outermost ? 'BEGIN IMMEDIATE' : `SAVEPOINT ${savepoint}`)
    this.#depth++
    let result: T
    try {
      result = work()
      if (result instanceof Promise) throw new TypeError('A transaction cannot be async')
      this.#sqlite.exec(outermost ? 'COMMIT' : `RELEASE ${savepoint}`)
    } catch (error) {
      this.#afterCommit.length = announced
      // A full disk or an I/O error may have rolled back already.
      if (this.#sqlite.isTransaction) this.#sqlite.exec(outermost ? 'ROLLBACK' : `ROLLBACK TO ${savepoint}; RELEASE ${savepoint}`)
      throw error
    } finally {
      this.#depth--
    }
    if (outermost) this.#announce()
    return result
  }

  /** Runs `then` once the transaction that is open now has become durable, or at once when none is open. Dropped on rollback. */
  afterCommit(then: () => void): void {
    if (this.#depth > 0) this.#afterCommit.push(then)
    else then()
  }

  /** The statement for `sql`, prepared once. */
  prepare(sql: string): StatementSync {
    let statement = this.#statements.get(sql)
    if (!statement) {
      statement = this.#sqlite.prepare(sql)
      this.#statements.set(sql, statement)
    }
    return statement
  }

  /** Repeat is harmless. Leaves one whole file: the write-ahead log is folded in. */
  close(): void {
    if (!this.#sqlite.isOpen) return
    this.#statements.clear()
    this.#sqlite.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #announce(): void {
    const announcements = this.#afterCommit
    this.#afterCommit = []
    for (const announce of announcements) announce()
  }

  #migrate(path: string, steps: readonly Migration[]): void {
    const version = Number(this.#sqlite.prepare('PRAGMA user_version').get()?.user_version ?? 0)
    if (version > steps.length) {
      throw new AppError(
        'conflict',
        `The database ${path} was written by a newer dormouse (schema ${version}, this one knows ${steps.length})`,
        {
          hint: 'Install the newer version again, or start with another data directory',
        },
      )
    }
    steps.slice(version).forEach((step, index) => {
      this.transaction(() => {
        this.#sqlite.exec(step.sql)
        this.#sqlite.exec(`PRAGMA user_version = ${version + index + 1}`)
      })
    })
  }
}
