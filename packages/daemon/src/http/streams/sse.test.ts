import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import type { SseMessage } from '@dormouse/api/streams.ts'
import { sseStream } from './sse.ts'

async function* messages(...data: string[]): AsyncGenerator<SseMessage> {
  for (const one of data) yield { data: one }
}

test('a stream begins with a comment, so that its head is sent before anything has happened', async () => {
  assert.deepEqual(await sseStream(messages('1', '2')).toArray(), [': \n\n', 'data: 1\n\n', 'data: 2\n\n'])
})

test('a comment comes whenever nothing else did for a while', async () => {
  const more = Promise.withResolvers<void>()
  async function* slow(): AsyncGenerator<SseMessage> {
    await more.promise
    yield { data: '1' }
  }
  const seen: string[] = []
  for await (const text of sseStream(slow(), { heartbeatMs: 1 })) {
    seen.push(text)
    if (seen.length === 4) more.resolve()
  }
  assert.deepEqual(seen.slice(0, 4), Array(4).fill(': \n\n'))
  assert.equal(seen.at(-1), 'data: 1\n\n')
})

test('a source is read no faster than its reader reads', async () => {
  let given = 0
  async function* endless(): AsyncGenerator<SseMessage> {
    for (;;) yield { data: String(given++) }
  }
  const stream = sseStream(endless())
  await once(stream, 'readable')
  for (let n = 0; n < 100; n++) await new Promise(setImmediate)
  assert.ok(given < 100, `${given} were taken`)
  stream.destroy()
})

test('a source that waits is left when the reader has gone, and may fail unseen', async () => {
  const gone = new AbortController()
  let isLeft = false
  async function* waiting(): AsyncGenerator<SseMessage> {
    try {
      yield { data: '1' }
      await once(gone.signal, 'abort')
      throw new Error('too late to be of interest')
    } finally {
      isLeft = true
    }
  }
  const stream = sseStream(waiting(), { heartbeatMs: 5 })
  for await (const text of stream) if (text.startsWith('data')) break
  gone.abort()
  while (!isLeft) await new Promise(setImmediate)
})

test('a source that fails ends the stream with its error', async () => {
  async function* failing(): AsyncGenerator<SseMessage> {
    yield { data: '1' }
    throw new Error('broken')
  }
  await assert.rejects(sseStream(failing()).toArray(), /broken/)
})
