import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Client, type FetchAnswer, type FetchInit } from './client.ts'
import { AppError } from './errors.ts'

interface Sent {
  readonly url: string
  readonly init: FetchInit
}

function clientThatHears(status: number, body: string, headers: Record<string, string> = {}) {
  const sent: Sent[] = []
  const client = new Client({
    baseUrl: 'http://localhost:4973/',
    token: 't',
    fetch: async (url, init): Promise<FetchAnswer> => {
      sent.push({ url, init })
      return {
        status,
        headers: { get: (name) => headers[name] ?? null },
        body: (async function* () {
          yield new TextEncoder().encode(body)
        })(),
      }
    },
  })
  return { client, sent }
}

test('a call spells path, query and body from the table', async () => {
  const { client, sent } = clientThatHears(200, '{"name":"a"}')
  const image = await client.call('tagImage', { params: { name: 'docker.io/library/alpine:3' }, body: { target: 'mine:1' } })
  assert.equal(image.name, 'a')
  assert.equal(sent[0]?.url, 'http://localhost:4973/images/docker.io%2Flibrary%2Falpine%3A3/tag')
  assert.equal(sent[0]?.init.method, 'POST')
  assert.equal(sent[0]?.init.body, '{"target":"mine:1"}')
  assert.equal(sent[0]?.init.headers.authorization, 'Bearer t')
})

test('a refusal arrives as the error that it was', async () => {
  const { client } = clientThatHears(409, '{"code":"name_conflict","message":"Taken","hint":"Take another"}', {
    'retry-after': '3',
    'x-request-id': 'r1',
  })
  await assert.rejects(client.call('getInstance', { params: { id: 'a' } }), (error) => {
    assert.ok(error instanceof AppError)
    assert.deepEqual([error.code, error.message, error.hint, error.retryAfterSeconds], ['name_conflict', 'Taken', 'Take another', 3])
    assert.equal(error.detail?.status, 409)
    assert.equal(error.detail?.requestId, 'r1')
    return true
  })
})

test('an answer that is none of ours is told by its status', async () => {
  const { client } = clientThatHears(502, '<html>Bad Gateway</html>')
  await assert.rejects(client.call('getHealth'), { code: 'internal_error', message: 'The server answered 502: <html>Bad Gateway</html>' })
})

test('names that a URL would swallow are refused before they are sent', async () => {
  const { client, sent } = clientThatHears(200, '{}')
  for (const id of ['', '.', '..']) await assert.rejects(client.call('getInstance', { params: { id } }), { code: 'invalid_name' })
  assert.equal(sent.length, 0)
})

test('a stream gives each message as the value that it holds', async () => {
  const { client, sent } = clientThatHears(200, ': \n\ndata: "one"\n\ndata: "two"\n\n')
  const lines = await Array.fromAsync(client.stream('getInstanceLogs', { params: { id: 'a' }, query: { tail: 2 } }))
  assert.deepEqual(lines, ['one', 'two'])
  assert.equal(sent[0]?.init.headers.accept, 'text/event-stream')
})

test('a page tells where the next one begins', async () => {
  const { client } = clientThatHears(200, '[]', { 'x-next-cursor': 'abc' })
  assert.deepEqual(await client.page('listInstances', { query: { limit: 1 } }), { items: [], nextCursor: 'abc' })
})

test('who dials a WebSocket gets its address and headers', () => {
  const { client } = clientThatHears(200, '')
  assert.deepEqual(client.dial('execInstance', { params: { id: 'a b' } }), {
    url: 'ws://localhost:4973/instances/a%20b/exec',
    headers: { authorization: 'Bearer t' },
  })
})
