/** An event stream that outlives its connection. */
import { AppError } from './errors.ts'
import { pause } from './pause.ts'
import { delayBefore } from './retry.ts'
import type { SseMessage } from './streams.ts'

/** One connection, going on after the message with that id. */
export type OpenStream = (lastEventId: string | undefined) => Promise<AsyncIterable<SseMessage>>

/**
 * The values of a stream, each once. A connection that breaks, or that the daemon ends because it closes, is made anew, after longer
 * and longer waits, for as long as the signal lets it; the first one may fail. Ends when the daemon says that nothing follows, or that
 * what was followed is gone.
 */
export async function* followStream<Value>(open: OpenStream, signal: AbortSignal | undefined): AsyncGenerator<Value, void, undefined> {
  const place = new Place()
  let failures = 0
  for (let hasOpened = false; ; ) {
    if (hasOpened) await pause(delayBefore(failures++, undefined), signal)
    try {
      const messages = await open(place.id)
      hasOpened = true
      place.begin()
      for await (const message of messages) {
        failures = 0
        if (message.isEnd) return
        if (place.isNew(message)) yield JSON.parse(message.data ?? '') as Value
      }
    } catch (error) {
      signal?.throwIfAborted()
      if (!hasOpened) throw error
      if (!(error instanceof AppError) || error.detail?.isWorthARepeat === true) continue
      if (error.code === 'not_found' || error.code === 'log_not_found') return
      throw error
    }
  }
}

/** How far a reader has come: an id, and how many messages he has had since that one. Not every message has an id of its own. */
class Place {
  id: string | undefined
  #since = 0
  #toSkip = 0

  /** A new connection gives again what came after the id. */
  begin(): void {
    this.#toSkip = this.#since
  }

  isNew({ data, id }: SseMessage): boolean {
    const isNew = data !== undefined && this.#toSkip === 0
    if (data !== undefined && !isNew) this.#toSkip--
    if (id !== undefined && id !== this.id) {
      // A place that is told before anything came from it is another than was asked for: that one is no more.
      if (data === undefined) this.#toSkip = 0
      this.id = id
      // Those that are still to be skipped lie after it.
      this.#since = this.#toSkip
    } else if (isNew) this.#since++
    return isNew
  }
}
