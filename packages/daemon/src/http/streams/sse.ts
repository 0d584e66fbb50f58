import { Readable } from 'node:stream'
import { encodeSse, SSE_END, SSE_HEARTBEAT, type SseMessage, type SsePlace } from '@dormouse/api/streams.ts'

const HEARTBEAT_MS = 15_000

/**
 * What was there together, and goes out in one write; as bytes where it was written already. Whoever gives a batch bounds it. The first
 * one, which may be empty as any may, says that the source has found its place: what comes into being from then on will be told.
 */
export type SseBatch = readonly (SseMessage | SsePlace)[] | Uint8Array

export const encodeBatch = (messages: readonly (SseMessage | SsePlace)[]): Uint8Array => Buffer.from(messages.map(encodeSse).join(''))

export interface SseOptions {
  readonly heartbeatMs?: number
  /** Asked at the end of the source: has it only been cut off? Then it is not told that nothing follows, and readers come back. */
  readonly isCutOff?: () => boolean
}

/**
 * The bytes of an event stream. Begins with a comment as soon as the source has found its place, so that whoever has the head of
 * the answer misses nothing that happens next; a comment follows whenever nothing else was sent for a while, so that proxies keep the
 * connection and a dead peer is noticed. Reads `source` no faster than the peer does, and one batch in a turn of the event loop: where
 * both are fast, others have their turn all the same. When the peer has left, a source that waits is to be ended by a signal of its
 * own.
 */
export function sseStream(source: AsyncIterable<SseBatch>, options: SseOptions = {}): Readable {
  const batches = source[Symbol.asyncIterator]()
  let isPulling = false
  let hasBegun = false
  const pull = async (): Promise<void> => {
    try {
      const { done, value } = await batches.next()
      if (stream.destroyed) return
      if (!hasBegun) stream.push(SSE_HEARTBEAT)
      hasBegun = true
      if (!done && value.length === 0) return void setImmediate(pull)
      isPulling = false
      if (done) {
        clearInterval(heartbeat)
        if (options.isCutOff?.() !== true) stream.push(SSE_END)
        stream.push(null)
        return
      }
      heartbeat.refresh()
      stream.push(value instanceof Uint8Array ? value : encodeBatch(value))
    } catch (error) {
      stream.destroy(error as Error)
    }
  }
  const stream = new Readable({
    // One batch waits for the peer while the next is fetched, no more.
    objectMode: true,
    highWaterMark: 1,
    read: () => {
      // A heartbeat that goes out while a batch is waited for makes the stream ask again.
      if (isPulling) return
      isPulling = true
      setImmediate(pull)
    },
    destroy: (error, callback) => {
      clearInterval(heartbeat)
      // A source that still waits settles by its signal; what it then says is of no one's interest.
      void batches.return?.().catch(() => undefined)
      callback(error)
    },
  })
  const heartbeat = setInterval(() => {
    // What a slow peer has yet to take keeps the connection as well.
    if (stream.readableLength === 0) stream.push(SSE_HEARTBEAT)
  }, options.heartbeatMs ?? HEARTBEAT_MS)
  return stream
}
