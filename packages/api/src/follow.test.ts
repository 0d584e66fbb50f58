import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import fc from 'fast-check'
import { AppError } from './errors.ts'
import { followStream, type OpenStream } from './follow.ts'
import type { SseMessage } from './streams.ts'

/** Waits are not waited for. */
const quickly = (t: TestContext) => {
  t.mock.timers.enable({ apis: ['setTimeout'] })
  const hurry = setInterval(() => t.mock.timers.tick(60_000), 1)
  return { [Symbol.dispose]: () => clearInterval(hurry) }
}

test('wherever connections break and however the server cuts its batches, each message is had once and in order', async (t) => {
  using _ = quickly(t)
  const plan = fc.record({
    count: fc.nat(20),
    /** After how many messages each connection breaks. */
    breaks: fc.array(fc.nat(6), { maxLength: 12 }),
    batch: fc.integer({ min: 1, max: 5 }),
  })
  await fc.assert(
    fc.asyncProperty(plan, async ({ count, breaks, batch }) => {
      const left = [...breaks]
      const open: OpenStream = async (lastEventId) => {
        const from = Number(lastEventId ?? 0)
        const limit = left.shift() ?? Number.POSITIVE_INFINITY
        return (async function* (): AsyncGenerator<SseMessage> {
          yield { id: String(from) }
          for (let n = from, given = 0; n < count; n++, given++) {
            if (given === limit) throw new Error('broken')
            // Only the last of a batch has an id; batches begin where a connection began.
            const isLast = (n - from + 1) % batch === 0 || n === count - 1
            yield { data: String(n), ...(isLast && { id: String(n + 1) }) }
          }
          yield { isEnd: true }
        })()
      }
      assert.deepEqual(
        await Array.fromAsync(followStream<number>(open, undefined)),
        Array.from({ length: count }, (_, n) => n),
      )
    }),
    { numRuns: 100 },
  )
})

test('a stream that ends without a word is opened again, and one that is gone ends', async (t) => {
  using _ = quickly(t)
  const asked: (string | undefined)[] = []
  const open: OpenStream = async (id) => {
    asked.push(id)
    if (asked.length === 3) throw new TypeError('fetch failed')
    if (asked.length === 4) throw new AppError('shutting_down', 'closing', { detail: { isWorthARepeat: true } })
    if (asked.length === 5) throw new AppError('not_found', 'deleted')
    return (async function* () {
      yield { data: String(asked.length), id: `id-${asked.length}` }
    })()
  }
  assert.deepEqual(await Array.fromAsync(followStream(open, undefined)), [1, 2])
  assert.deepEqual(asked, [undefined, 'id-1', 'id-2', 'id-2', 'id-2'])
})

test('what is refused at first, or for good, is thrown', async (t) => {
  using _ = quickly(t)
  await assert.rejects(Array.fromAsync(followStream(() => Promise.reject(new TypeError('fetch failed')), undefined)), /fetch failed/)
  let count = 0
  const open: OpenStream = async () => {
    if (count++ > 0) throw new AppError('unauthorized', 'The token has expired')
    return (async function* () {})()
  }
  await assert.rejects(Array.fromAsync(followStream(open, undefined)), { code: 'unauthorized' })
})

test('a place that was rotated away begins anew, and nothing of it is passed over', async (t) => {
  using _ = quickly(t)
  let count = 0
  const open: OpenStream = async () => {
    const isFirst = count++ === 0
    return (async function* (): AsyncGenerator<SseMessage> {
      yield { id: isFirst ? 'old' : 'new' }
      yield { data: isFirst ? '"a"' : '"c"' }
      if (isFirst) throw new Error('broken')
      yield { isEnd: true }
    })()
  }
  assert.deepEqual(await Array.fromAsync(followStream(open, undefined)), ['a', 'c'])
})

test('the signal ends it, also between two connections', async () => {
  const end = new AbortController()
  const open: OpenStream = async () => {
    setImmediate(() => end.abort(new Error('enough')))
    return (async function* () {})()
  }
  await assert.rejects(Array.fromAsync(followStream(open, end.signal)), /enough/)
})
