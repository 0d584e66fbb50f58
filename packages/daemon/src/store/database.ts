/**
 * The one SQLite file. Work on it is synchronous: nothing awaits inside a transaction, so what one tick of the event loop reads
 * and writes is one consistent whole. `synchronous=FULL` in WAL mode: when `transaction` returns, the change survives a power cut.
 * On a full disk what ends something can still be written, with the room that a ballast gives up.
 */
import { DatabaseSync, type StatementSync } from 'node:sqlite'
import { AppError } from '@dormouse/api/errors.ts'
import { type Ballast, isDiskFull } from './ballast.ts'
import { type Migration, migrations } from './migrations.ts'

export interface DatabaseOptions {
  readonly steps?: readonly Migration[]
  /** What `evenWhenFull` may spend. */
  readonly ballast?: Pick<Ballast, 'spend'>
}

/** Writes along with the transactions of others. */
export interface Rider {
  /** Called before each commit, inside the transaction. What it gives is called once that has become durable. */
  board(): (() => void) | undefined
  /** What it wrote was taken back, alone: the transaction goes on without it. */
  leftBehind(error: unknown): void
}

export class Database implements Disposable {
  readonly #sqlite: DatabaseSync
  readonly #ballast: DatabaseOptions['ballast']
  readonly #statements = new Map<string, StatementSync>()
  #depth = 0
  #afterCommit: (() => void)[] = []
  #rider: Rider | undefined

  private constructor(sqlite: DatabaseSync, ballast: DatabaseOptions['ballast']) {
    this.#sqlite = sqlite
    this.#ballast = ballast
  }

  /** Opens or makes the file (`:memory:` in tests) and brings its schema up to date. Throws when a newer dormouse has written it. */
  static open(path: string, { steps = migrations, ballast }: DatabaseOptions = {}): Database {
    const sqlite = new DatabaseSync(path, { enableForeignKeyConstraints: true, timeout: 5000 })
    try {
      sqlite.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -8000')
      const db = new Database(sqlite, ballast)
      db.#migrate(path, steps)
      return db
    } catch (error) {
      sqlite.close()
      throw error
    }
  }

  /**
   * All of `work` or nothing of it. Inside another transaction it is a savepoint of that one. `work` may not be async: what it
   * would do after its first await would fall outside. Throws `insufficient_resources` on a full disk; what ends something, or tells
   * what has happened, is written `evenWhenFull`, and is then done anew for each piece of the ballast that is given up.
   */
  transaction<T>(work: () => T, { evenWhenFull = false } = {}): T {
    if (this.#depth > 0) return this.#attempt(work)
    try {
      const result = evenWhenFull && this.#ballast ? this.#ballast.spend(() => this.#attempt(work)) : this.#attempt(work)
      this.#announce()
      return result
    } catch (cause) {
      if (!isDiskFull(cause)) throw cause
      throw new AppError('insufficient_resources', 'The disk of the data directory is full: the change could not be written down', {
        hint: 'Make room: dormouse rm, dormouse prune --all',
        cause,
      })
    }
  }

  #attempt<T>(work: () => T): T {
    const outermost = this.#depth === 0
    const savepoint = `s${this.#depth}`
    const announced = this.#afterCommit.length
    this.#sqlite.exec(outermost ? 'BEGIN IMMEDIATE' : `SAVEPOINT ${savepoint}`)
    this.#depth++
    try {
      const result = work()
      if (result instanceof Promise) throw new TypeError('A transaction cannot be async')
      if (outermost) this.#takeRider()
      this.#sqlite.exec(outermost ? 'COMMIT' : `RELEASE ${savepoint}`)
      return result
    } catch (error) {
      this.#afterCommit.length = announced
      // A full disk or an I/O error may have rolled back already.
      if (this.#sqlite.isTransaction) this.#sqlite.exec(outermost ? 'ROLLBACK' : `ROLLBACK TO ${savepoint}; RELEASE ${savepoint}`)
      throw error
    } finally {
      this.#depth--
    }
  }

  /** From now on `rider` writes along with every transaction. There is one at most. */
  ride(rider: Rider): void {
    this.#rider = rider
  }

  /** On a full disk no one gets anywhere; any other trouble is the rider's own. */
  #takeRider(): void {
    const rider = this.#rider
    if (!rider) return
    try {
      const landed = this.#attempt(() => rider.board())
      if (landed) this.#afterCommit.push(landed)
    } catch (error) {
      // An error that has rolled everything back is everyone's.
      if (isDiskFull(error) || !this.#sqlite.isTransaction) throw error
      rider.leftBehind(error)
    }
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
      this.transaction(
        () => {
          this.#sqlite.exec(step.sql)
          this.#sqlite.exec(`PRAGMA user_version = ${version + index + 1}`)
        },
        { evenWhenFull: true },
      )
    })
  }
}
