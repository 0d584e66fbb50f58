/**
 * Events are rows first: `record` writes one in the transaction of the change that it tells of, so neither is ever there without
 * the other. A subscriber is given the rows after the id it last saw (backfill), then what is recorded from then on (live), with
 * no gap and no repeat at the seam:
 *
 *     rows ──────────────┐ read page by page until caught up
 *     record() ─► row ─► │ ─► live buffer, bounded ─► subscriber
 *
 * A subscriber that reads too slowly loses its live buffer, not its events: it falls back to reading rows. Rows that were pruned before it had
 * read them leave a gap, which it is told of by an event that no row has.
 */
import { EVENTS_LOST } from '@dormouse/api/events.ts'
import type { Database } from '../store/database.ts'
import { EventRows, type NewEvent, type RecordedEvent } from '../store/events.ts'

export type { NewEvent, RecordedEvent } from '../store/events.ts'

export interface EventsConfig {
  /** Older rows are pruned once there are more than this. */
  readonly keep: number
  /** Events a slow subscriber may lag behind before it is sent back to the rows. */
  readonly liveBuffer: number
}

const DEFAULTS: EventsConfig = { keep: 100_000, liveBuffer: 256 }
const PAGE = 200
// A prune costs a delete; once in so many records keeps it off the path of a change.
const PRUNE_EVERY = 1000

export class Events {
  readonly #db: Database
  readonly #rows: EventRows
  readonly #config: EventsConfig
  readonly #listeners = new Set<(event: RecordedEvent) => void>()
  #sincePrune = 0

  constructor(uses: { db: Database; config?: Partial<EventsConfig> }) {
    this.#db = uses.db
    this.#rows = new EventRows(uses.db)
    this.#config = { ...DEFAULTS, ...uses.config }
  }

  /** Call inside the transaction of the change. Subscribers hear of it once that has become durable. */
  record(event: NewEvent): void {
    const recorded = this.#rows.insert(event, Date.now())
    if (++this.#sincePrune >= PRUNE_EVERY) {
      this.#sincePrune = 0
      this.#rows.prune(this.#config.keep)
    }
    this.#db.afterCommit(() => {
      for (const listener of this.#listeners) listener(recorded)
    })
  }

  /** The id of the newest event; 0 when there is none. */
  latestId(): number {
    return this.#rows.latestId()
  }

  /** Calls `listener` for each event from now on, in order, in the tick in which it became durable. It must be quick and not throw. */
  listen(listener: (event: RecordedEvent) => void): Disposable {
    this.#listeners.add(listener)
    return { [Symbol.dispose]: () => this.#listeners.delete(listener) }
  }

  /**
   * Every event after `after` (a Last-Event-ID; default: only what is yet to come), then the live ones, until `signal` aborts or
   * the reader leaves; those that are there together come together, a page or a full buffer at most. The first batch is an empty one,
   * by which "from now on" begins. Of those that were pruned an `events.lost` tells, whose id is that of the last of them. An id of the
   * future gives what is yet to come.
   */
  async *subscribe(options: { after?: number; signal?: AbortSignal } = {}): AsyncGenerator<readonly RecordedEvent[], void, void> {
    let last = options.after ?? this.latestId()
    // An id from another database file: waiting for it to be reached would hide everything until then.
    if (last > this.latestId()) last = this.latestId()

    let live: RecordedEvent[] = []
    let overflowed = false
    let wake: (() => void) | undefined
    using _listening = this.listen((event) => {
      if (live.length < this.#config.liveBuffer) live.push(event)
      else overflowed = true
      wake?.()
    })
    const onAbort = () => wake?.()
    options.signal?.addEventListener('abort', onAbort, { once: true })
    try {
      yield []
      let behind = true
      while (!options.signal?.aborted) {
        if (behind || overflowed) {
          // What is in the live buffer is also in the rows.
          live = []
          overflowed = false
          const oldest = this.#rows.oldestId()
          if (last < oldest - 1) {
            const lost = lostBetween(last, oldest)
            last = lost.id
            yield [lost]
            continue
          }
          const page = this.#rows.after(last, PAGE)
          behind = page.length === PAGE
          last = page.at(-1)?.id ?? last
          if (page.length > 0) yield page
          continue
        }
        // Those that a page holds already were recorded while it was being read.
        const batch = live.filter(({ id }) => id > last)
        live = []
        last = batch.at(-1)?.id ?? last
        if (batch.length > 0) yield batch
        if (live.length === 0 && !overflowed && !options.signal?.aborted) {
          await new Promise<void>((resolve) => {
            wake = resolve
          })
          wake = undefined
        }
      }
    } finally {
      options.signal?.removeEventListener('abort', onAbort)
    }
  }
}

const lostBetween = (after: number, oldest: number): RecordedEvent => ({
  ...{ id: oldest - 1, atMs: Date.now(), kind: EVENTS_LOST, subject: 'events' },
  data: { after, oldest },
})
