import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Client, type FetchAnswer } from './client.ts'
import { delayBefore, isWorthARepeat } from './retry.ts'

const refused = (status: number, headers: Record<string, string> = {}) => ({
  status,
  headers: { get: (name: string) => headers[name] ?? null },
})

test('what the server says of a repeat counts, then what its status says', () => {
  assert.deepEqual(
    [400, 404, 408, 409, 422, 429, 500, 501, 503].filter((status) => isWorthARepeat(refused(status))),
    [408, 409, 429, 500, 501, 503],
  )
  assert.equal(isWorthARepeat(refused(409, { 'x-should-retry': 'false' })), false)
  assert.equal(isWorthARepeat(refused(400, { 'x-should-retry': 'true' })), true)
})

test('waits grow up to eight seconds, unless the server asks for another', () => {
  assert.deepEqual(
    [0, 1, 2, 3, 4, 5, 60].map((repeats) => delayBefore(repeats, undefined, 0)),
    [500, 1000, 2000, 4000, 8000, 8000, 8000],
  )
  assert.equal(delayBefore(0, undefined, 1), 375)
  assert.equal(delayBefore(9, refused(503, { 'retry-after': '2' })), 2000)
  assert.equal(delayBefore(9, refused(503, { 'retry-after': '2', 'retry-after-ms': '7' })), 7)
  assert.equal(delayBefore(0, refused(503, { 'retry-after': '3600' }), 0), 500)
  assert.equal(delayBefore(0, refused(503, { 'retry-after': 'Wed, 21 Oct 2026 07:28:00 GMT' }), 0), 500)
})

function clientOf(answers: (FetchAnswer | Error)[], retries = 2) {
  const sent: string[] = []
  const client = new Client({
    baseUrl: 'http://d',
    retries,
    fetch: async (_, { method }) => {
      sent.push(method)
      const next = answers.shift()
      if (next instanceof Error) throw next
      return next ?? { ...refused(200), body: null }
    },
  })
  return { client, sent }
}
const busy = (): FetchAnswer => ({ ...refused(503, { 'retry-after': '0' }), body: null })
const conflict = (): FetchAnswer => ({ ...refused(409, { 'x-should-retry': 'false' }), body: null })
const params = { id: 'a' }

test('a request is sent again as often as was said, and no more', async () => {
  const { client, sent } = clientOf([busy(), busy()])
  await client.call('stopInstance', { params })
  assert.equal(sent.length, 3)
  const other = clientOf([busy(), busy(), busy()])
  await assert.rejects(other.client.call('stopInstance', { params }), { code: 'internal_error' })
  assert.equal(other.sent.length, 3)
  const never = clientOf([busy()], 0)
  await assert.rejects(never.client.call('stopInstance', { params }))
  assert.equal(never.sent.length, 1)
})

test('what will be the same next time is sent once', async () => {
  const { client, sent } = clientOf([conflict()])
  await assert.rejects(client.call('stopInstance', { params }))
  assert.equal(sent.length, 1)
})

test('without an answer only what may be done twice is sent again', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] })
  const hurry = setInterval(() => t.mock.timers.tick(10_000), 1)
  t.after(() => clearInterval(hurry))
  const broken = () => new TypeError('fetch failed')
  const reading = clientOf([broken(), broken()])
  await reading.client.call('getInstance', { params })
  assert.equal(reading.sent.length, 3)
  const writing = clientOf([broken()])
  await assert.rejects(writing.client.call('stopInstance', { params }), /fetch failed/)
  assert.equal(writing.sent.length, 1)
})

test('an upload that streams is sent once, one that is held again', async () => {
  const stream = clientOf([busy()])
  await assert.rejects(
    stream.client.call('importImage', { query: {}, upload: { type: 'application/x-tar', bytes: (async function* () {})() } }),
  )
  assert.equal(stream.sent.length, 1)
  const held = clientOf([busy()])
  await held.client.call('importImage', { query: {}, upload: { type: 'application/x-tar', bytes: new Blob(['x']) } })
  assert.equal(held.sent.length, 2)
})

test('a wait between two is ended by the signal', async () => {
  const end = new AbortController()
  const { client, sent } = clientOf([{ ...refused(503, { 'retry-after': '50' }), body: null }])
  const asked = client.call('getInstance', { params, signal: end.signal })
  setImmediate(() => end.abort(new Error('enough')))
  await assert.rejects(asked, /enough/)
  assert.equal(sent.length, 1)
})
