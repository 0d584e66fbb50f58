import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { Readable } from 'node:stream'
import { test } from 'node:test'
import { encodeBatch, type SseBatch, sseStream } from './sse.ts'

const END = ': end\n'

/** What is given as bytes, as text. */
const texts = async (stream: Readable): Promise<string[]> => (await stream.toArray()).map(String)

async function* batches(...data: string[][]): AsyncGenerator<SseBatch> {
  for (const batch of data) yield batch.map((one) => ({ data: one }))
}

test('a stream begins with a comment once its source has found its place, before anything has happened', async () => {
  const found = Promise.withResolvers<void>()
  const happened = Promise.withResolvers<void>()
  async function* source(): AsyncGenerator<SseBatch> {
    await found.promise
    yield []
    await happened.promise
  }
  const stream = sseStream(source())
  const head = once(stream, 'data')
  for (let n = 0; n < 10; n++) await new Promise(setImmediate)
  assert.equal(stream.readableDidRead, false)
  found.resolve()
  assert.deepEqual(await head, [':\n'])
  happened.resolve()
  await once(stream, 'end')
})

test('messages follow the comment', async () => {
  assert.deepEqual(await texts(sseStream(batches(['1'], ['2']))), [':\n', 'data: 1\n\n', 'data: 2\n\n', END])
})

test('what is there together goes out together, and nothing goes out for nothing', async () => {
  assert.deepEqual(await texts(sseStream(batches([], ['1', '2'], [], []))), [':\n', 'data: 1\n\ndata: 2\n\n', END])
})

test('what was written already goes out as it is', async () => {
  const written = encodeBatch([{ data: '1', id: 'a' }])
  const stream = sseStream(
    (async function* () {
      yield written
    })(),
  )
  assert.equal((await stream.toArray())[1], written)
})

test('a source that was cut off is not told to be at its end', async () => {
  assert.deepEqual(await texts(sseStream(batches(['1']), { isCutOff: () => true })), [':\n', 'data: 1\n\n'])
})

test('a comment comes whenever nothing else did for a while', async () => {
  const more = Promise.withResolvers<void>()
  async function* slow(): AsyncGenerator<SseBatch> {
    await more.promise
    yield [{ data: '1' }]
  }
  const seen: string[] = []
  for await (const text of sseStream(slow(), { heartbeatMs: 1 })) {
    seen.push(String(text))
    if (seen.length === 4) more.resolve()
  }
  assert.deepEqual(seen.slice(0, 4), Array(4).fill(':\n'))
  assert.deepEqual(seen.slice(-2), ['data: 1\n\n', END])
})

test('a source is read no faster than its reader reads', async () => {
  let given = 0
  async function* endless(): AsyncGenerator<SseBatch> {
    for (;;) yield [{ data: String(given++) }]
  }
  const stream = sseStream(endless())
  await once(stream, 'readable')
  for (let n = 0; n < 100; n++) await new Promise(setImmediate)
  assert.ok(given <= 2, `${given} were taken`)
  stream.destroy()
})

test('a source that never waits, read by one who never waits, leaves each turn to others as well', async () => {
  let given = 0
  async function* endless(): AsyncGenerator<SseBatch> {
    for (;;) yield given++ % 2 === 0 ? [] : [{ data: '1' }]
  }
  const stream = sseStream(endless()).resume()
  const before = given
  for (let n = 0; n < 100; n++) await new Promise(setImmediate)
  assert.ok(given - before > 50 && given - before <= 101, `${given - before} in 100 turns`)
  stream.destroy()
})

test('comments do not pile up for a peer who takes none', (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] })
  const stream = sseStream(batches())
  t.mock.timers.tick(3_600_000)
  assert.equal(stream.readableLength, 1)
  stream.destroy()
})

test('no comment comes after the end, however late it is taken', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] })
  const stream = sseStream(batches())
  stream.read()
  for (let n = 0; n < 10; n++) await new Promise(setImmediate)
  assert.equal(stream.read(), ':\n')
  t.mock.timers.tick(3_600_000)
  assert.deepEqual(await texts(stream), [END])
})

test('a source that waits is left when the reader has gone, and may fail unseen', async () => {
  const gone = new AbortController()
  let isLeft = false
  async function* waiting(): AsyncGenerator<SseBatch> {
    try {
      yield [{ data: '1' }]
      await once(gone.signal, 'abort')
      throw new Error('too late to be of interest')
    } finally {
      isLeft = true
    }
  }
  const stream = sseStream(waiting(), { heartbeatMs: 5 })
  for await (const text of stream) if (String(text).startsWith('data')) break
  gone.abort()
  while (!isLeft) await new Promise(setImmediate)
})

test('a source that fails ends the stream with its error', async () => {
  async function* failing(): AsyncGenerator<SseBatch> {
    yield [{ data: '1' }]
    throw new Error('broken')
  }
  await assert.rejects(sseStream(failing()).toArray(), /broken/)
})
