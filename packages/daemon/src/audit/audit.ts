/**
 * Who changed what: a row for each request that changes something, from the moment it is let in, for each that was refused, and for each
 * change that the daemon makes by itself.
 *
 * A commit that waits for the disk costs more than a row, so rows ride along: what is to be written waits for the next transaction,
 * whoever's it is, and is part of it. A request's own first transaction so carries the row that tells of it: nothing that was changed
 * is without one. Where no transaction comes, a timer makes one. What a crash may lose stands in docs/decisions/0108.
 *
 *     begin() ─► waits ─┐                          end() ─► waits ─┐
 *     the request's own transaction ◄──────────────┘  another's, or the timer's ◄─┘
 */
import { randomUUID } from 'node:crypto'
import { errorCodeOf } from '@dormouse/api/errors.ts'
import type { Logger } from '../log.ts'
import { type AuditFilter, type AuditOutcome, type AuditRow, AuditRows, OWN_CALLER } from '../store/audit.ts'
import type { Database } from '../store/database.ts'

export { type AuditFilter, type AuditOutcome, type AuditRow, OWN_CALLER } from '../store/audit.ts'

export interface AuditConfig {
  /** So many rows are kept of what was asked for; those that were refused, and what the daemon did by itself, are counted apart. */
  readonly keep: number
  readonly maxAgeMs: number
}

/** Who asks for what. */
export type AuditFacts = Omit<AuditRow, 'atMs' | 'outcome' | 'skipped'>

/** What the daemon does by itself: an operation of the route table, or `restartInstance`, which no one can ask for. */
export type OwnDoing = Pick<AuditFacts, 'operation' | 'target' | 'subjectId'>

/** As rooms use it that do something unasked. */
export interface OwnDoings {
  /** Does `work`, of which a row tells. Resolves and rejects as that does. `made` is the id of what came of it, where that is another thing. */
  perform<T>(doing: OwnDoing, work: () => Promise<T>, made?: (result: T) => string): Promise<T>
  /** Of what was done already. */
  note(doing: OwnDoing): void
}

/** One that is under way. */
export interface AuditedRequest {
  /** How it went. Only the first time counts. */
  end(outcome: Omit<AuditOutcome, 'durationMs'>): void
}

interface Waiting {
  row: AuditRow
  /** Of the row, once that is written. */
  id: number | undefined
}

const FLUSH_MS = 50
/** When nothing can be written: a full disk stays so for a while. */
const RETRY_MS = 5_000
/** Refused requests have room of their own: however many there are, they push nothing else out. */
const KEEP_REFUSED = 10_000
/** So does what is done unasked: an instance that is restarted all the time, say. */
const KEEP_OWN = 20_000
const PRUNE_EVERY = 1000
/** What can wait while nothing can be written; then the oldest is given up. */
const WAITING_MAX = 10_000
const TEXT_MAX = 1024

export class Audit implements OwnDoings, Disposable {
  readonly #db: Database
  readonly #rows: AuditRows
  readonly #log: Logger
  readonly #config: AuditConfig
  #waiting = new Set<Waiting>()
  #timer: NodeJS.Timeout | undefined
  #skipped = 0
  #isStuck = false
  #sincePrune = 0

  constructor(uses: { db: Database; log: Logger; config: AuditConfig }) {
    this.#db = uses.db
    this.#rows = new AuditRows(uses.db)
    this.#log = uses.log
    this.#config = uses.config
    uses.db.ride({ board: () => this.#board(), leftBehind: (error) => this.#leftBehind(error) })
  }

  /** What the daemon before did not come to answer is told as such, and what is too old goes. Once, at the start. */
  recover(): void {
    this.#db.transaction(
      () => {
        this.#rows.interruptUnsettled()
        this.#prune()
      },
      { evenWhenFull: true },
    )
  }

  /** A request that changes something and has been let in, and what it is about, as far as that is known. Its row is part of the next transaction. */
  begin(facts: AuditFacts, about: Pick<AuditOutcome, 'resourceId'> = {}): AuditedRequest {
    const atMs = Date.now()
    const from = performance.now()
    const waiting: Waiting = { row: { ...bounded(facts), atMs, skipped: 0, outcome: { result: 'under_way', ...about } }, id: undefined }
    this.#write(waiting)
    let isOver = false
    return {
      end: (outcome) => {
        if (isOver) return
        isOver = true
        waiting.row = { ...waiting.row, outcome: { ...about, ...outcome, durationMs: Math.round(performance.now() - from) } }
        this.#write(waiting)
      },
    }
  }

  async perform<T>(doing: OwnDoing, work: () => Promise<T>, made?: (result: T) => string): Promise<T> {
    const own = this.#beginOwn(doing)
    try {
      const result = await work()
      own.end({ result: 'done', ...(made !== undefined && { resourceId: made(result) }) })
      return result
    } catch (error) {
      own.end({ result: 'failed', code: errorCodeOf(error) ?? 'internal_error' })
      throw error
    }
  }

  note(doing: OwnDoing): void {
    this.#beginOwn(doing).end({ result: 'done' })
  }

  #beginOwn(doing: OwnDoing): AuditedRequest {
    const facts = { ...doing, caller: OWN_CALLER, tokenId: undefined, address: undefined, requestId: randomUUID() }
    return this.begin(facts, doing.subjectId === undefined ? {} : { resourceId: doing.subjectId })
  }

  /** A request that was refused. Whoever calls bounds how often; what it leaves out it counts with `skip`. */
  refuse(facts: AuditFacts, outcome: { readonly status: number; readonly code: string }): void {
    const row = { ...bounded(facts), atMs: Date.now(), skipped: this.#skipped, outcome: { result: 'refused', ...outcome } } as const
    this.#skipped = 0
    this.#write({ row, id: undefined })
  }

  /** A refused request that is not written down. The next one that is tells how many there were. */
  skip(): void {
    this.#skipped += 1
  }

  /** Newest first, with what waits to be written. */
  list(filter: AuditFilter): readonly (AuditRow & { readonly id: number })[] {
    this.flush()
    const sinceMs = Math.max(filter.sinceMs ?? 0, Date.now() - this.#config.maxAgeMs)
    return this.#rows.list({ ...filter, sinceMs })
  }

  /** Writes what waits. Does nothing when nothing does. */
  flush(): void {
    if (this.#waiting.size === 0) return
    try {
      this.#db.transaction(() => undefined)
    } catch (error) {
      if (!this.#isStuck)
        this.#log.warn({ err: error, waiting: this.#waiting.size }, 'the audit log cannot be written; what it would hold waits')
      this.#isStuck = true
      this.#setTimer()
    }
  }

  [Symbol.dispose](): void {
    this.flush()
    clearTimeout(this.#timer)
  }

  #write(waiting: Waiting): void {
    this.#waiting.add(waiting)
    if (this.#waiting.size > WAITING_MAX) {
      const [oldest] = this.#waiting
      if (oldest) this.#waiting.delete(oldest)
    }
    this.#setTimer()
  }

  #setTimer(): void {
    const ms = this.#isStuck ? RETRY_MS : FLUSH_MS
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined
      this.flush()
    }, ms)
  }

  /** Inside someone's transaction; what it gives is called once that has become durable. */
  #board(): (() => void) | undefined {
    if (this.#waiting.size === 0) return undefined
    const written: [Waiting, number][] = []
    for (const waiting of this.#waiting) {
      const { id, row } = waiting
      if (id === undefined) written.push([waiting, this.#rows.insert(row)])
      else {
        this.#rows.settle(id, row.outcome)
        written.push([waiting, id])
      }
    }
    const isTimeToPrune = this.#sincePrune + written.length >= PRUNE_EVERY
    if (isTimeToPrune) this.#prune()
    return () => {
      for (const [waiting, id] of written) {
        waiting.id = id
        this.#waiting.delete(waiting)
      }
      this.#sincePrune = isTimeToPrune ? 0 : this.#sincePrune + written.length
      this.#isStuck = false
      clearTimeout(this.#timer)
      this.#timer = undefined
    }
  }

  /** Something is wrong with a row: no one's change may fail for it. */
  #leftBehind(error: unknown): void {
    this.#log.error({ err: error, rows: [...this.#waiting].map(({ row }) => row).slice(0, 10) }, 'rows of the audit log were given up')
    this.#waiting = new Set()
  }

  #prune(): void {
    const { keep, maxAgeMs } = this.#config
    this.#rows.prune({
      asked: keep,
      refused: Math.min(keep, KEEP_REFUSED),
      own: Math.min(keep, KEEP_OWN),
      sinceMs: Date.now() - maxAgeMs,
    })
  }
}

/** Texts of a caller's choice take only so much room. */
function bounded(facts: AuditFacts): AuditFacts {
  const cut = (text: string): string => (text.length > TEXT_MAX ? `${text.slice(0, TEXT_MAX)}…` : text).toWellFormed()
  return {
    ...facts,
    caller: facts.caller === undefined ? undefined : cut(facts.caller),
    tokenId: facts.tokenId === undefined ? undefined : cut(facts.tokenId),
    target: Object.fromEntries(Object.entries(facts.target).map(([name, value]) => [name, cut(value)])),
  }
}
