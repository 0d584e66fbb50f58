import { Readable } from 'node:stream'
import { encodeSse, SSE_HEARTBEAT, type SseMessage } from '@dormouse/api/streams.ts'

const HEARTBEAT_MS = 15_000

/**
 * The bytes of an event stream. Begins with a comment, so that the head goes out before the first message; a comment follows
 * whenever nothing else was sent for a while, so that proxies keep the connection and a dead peer is noticed. Reads `source` no
 * faster than the peer does. `gone` must fire when the peer has left: a source that waits is ended by it.
 */
export function sseStream(source: AsyncIterable<SseMessage>, options: { heartbeatMs?: number } = {}): Readable {
  return Readable.from(withHeartbeats(source, options.heartbeatMs ?? HEARTBEAT_MS), { objectMode: true, highWaterMark: 16 })
}

async function* withHeartbeats(source: AsyncIterable<SseMessage>, everyMs: number): AsyncGenerator<string> {
  yield SSE_HEARTBEAT
  const iterator = source[Symbol.asyncIterator]()
  let next = iterator.next()
  try {
    while (true) {
      const result = await settledWithin(next, everyMs)
      if (result === undefined) {
        yield SSE_HEARTBEAT
        continue
      }
      if (result.done) return
      yield encodeSse(result.value)
      next = iterator.next()
    }
  } finally {
    // A source that still waits settles by the request's signal; what it then says is of no one's interest.
    next.catch(() => undefined)
    void iterator.return?.().catch(() => undefined)
  }
}

/** The value of `promise`, or undefined when it takes longer. */
async function settledWithin<T>(promise: Promise<T>, ms: number): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(resolve, ms, undefined)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}
