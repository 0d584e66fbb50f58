import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { connectTo } from '../host/unix-socket.ts'
import { VmmApi, VmmRefusal } from './vmm-api.ts'

let dir: string
let count = 0
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'vmm-api-'))
})
after(() => rm(dir, { recursive: true, force: true }))

const within = (ms: number) => ({ signal: AbortSignal.timeout(ms) })

async function served(server: net.Server): Promise<AsyncDisposable & { api: VmmApi }> {
  const file = path.join(dir, `${count++}.sock`)
  server.listen(file)
  await once(server, 'listening')
  return { api: new VmmApi((step) => connectTo(file, step)), [Symbol.asyncDispose]: async () => void server.close() }
}

const answering = (
  answer: (request: IncomingMessage, response: ServerResponse, body: string) => void,
): Promise<AsyncDisposable & { api: VmmApi }> =>
  served(
    createServer((request, response) => {
      let body = ''
      request.on('data', (chunk) => {
        body += chunk
      })
      request.on('end', () => answer(request, response, body))
    }),
  )

test('what a VMM answers is parsed, and a silent yes is nothing', async () => {
  const seen: unknown[] = []
  await using vmm = await answering((request, response, body) => {
    seen.push([request.method, request.url, request.headers['content-type'], body])
    if (request.method === 'GET') response.end('{"state":"Running"}')
    else response.writeHead(204).end()
  })
  assert.deepEqual(await vmm.api.ask({ method: 'GET', path: '/api/v1/vm.info' }, within(5000)), { state: 'Running' })
  assert.equal(await vmm.api.ask({ method: 'PUT', path: '/api/v1/vm.pause' }, within(5000)), undefined)
  assert.equal(await vmm.api.ask({ method: 'PUT', path: '/actions', body: { action_type: 'Stop' } }, within(5000)), undefined)
  assert.deepEqual(seen, [
    ['GET', '/api/v1/vm.info', undefined, ''],
    ['PUT', '/api/v1/vm.pause', undefined, ''],
    ['PUT', '/actions', 'application/json', '{"action_type":"Stop"}'],
  ])
})

/** Of no form that is known. */
const OTHERS = ['{"fault_message":{"toString":1}}', '[[1]]', 'null', `${'['.repeat(100_000)}${']'.repeat(100_000)}`]

test('a refusal carries the status and the words, of either kind, and nothing that could end a line', async () => {
  const answers = ['["VM is not running","it was\\nended"]', '{"fault_message":"Invalid request"}', 'plain words', ...OTHERS]
  const words = ['VM is not running: it was ended', 'Invalid request', 'plain words', ...OTHERS.map((text) => text.slice(0, 500))]
  await using vmm = await answering((_request, response) => response.writeHead(400).end(answers.shift()))
  for (const expected of words) {
    const refusal = await vmm.api.ask({ method: 'PUT', path: '/x' }, within(5000)).catch((error: unknown) => error)
    assert.ok(refusal instanceof VmmRefusal)
    assert.equal(refusal.status, 400)
    assert.ok(refusal.message.endsWith(`: ${expected}`), refusal.message)
  }
})

test('one that never answers is given up in time, one that hangs up is an error', async () => {
  await using silent = await served(net.createServer(() => undefined))
  await assert.rejects(silent.api.ask({ method: 'GET', path: '/x' }, within(30)), { code: 'timed_out' })
  await using rude = await served(net.createServer((socket) => socket.destroy()))
  await assert.rejects(rude.api.ask({ method: 'GET', path: '/x' }, within(5000)))
})

test('one that answers with another protocol, or half of an answer, is not waited for', async () => {
  for (const words of ['101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n', '200 OK\r\nContent-Length: 9\r\n\r\nhalf']) {
    await using vmm = await served(
      net.createServer((socket) => void socket.on('error', () => undefined).once('data', () => socket.end(`HTTP/1.1 ${words}`))),
    )
    await assert.rejects(
      vmm.api.ask({ method: 'GET', path: '/x' }, within(60_000)),
      (error: { code?: string }) => error.code !== 'timed_out',
    )
  }
})

test('an answer without end, and one that is no JSON, are not believed', async () => {
  const answers: ((response: ServerResponse) => void)[] = [
    (response) => {
      const more = (): void => {
        while (!response.destroyed && response.write('x'.repeat(65_536)));
      }
      response.on('drain', more).on('error', () => undefined)
      more()
    },
    (response) => response.end('{'),
  ]
  await using vmm = await answering((_request, response) => answers.shift()?.(response))
  await assert.rejects(vmm.api.ask({ method: 'GET', path: '/x' }, within(10_000)), { code: 'internal_error', message: /too long/ })
  await assert.rejects(vmm.api.ask({ method: 'GET', path: '/x' }, within(10_000)), { code: 'internal_error', message: /no JSON/ })
})
