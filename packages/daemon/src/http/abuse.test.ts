/** Bytes that mean no good, on a real socket: slow ones, too many, false paths, false headers. The server stays, and answers the next one. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { createLogger } from '../log.ts'
import { type FakeUses, fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

async function house(t: TestContext, options: ConstructorParameters<typeof HttpServer>[1] = {}, more: Partial<FakeUses> = {}) {
  const uses = { ...fakeUses(), ...more }
  uses.instances.add({ name: 'web' })
  const server = new HttpServer(uses, options)
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(async () => {
    await server.close()
    rmSync(dir, { recursive: true, force: true })
  })
  const { tcp } = await server.listen({ socket: { path: join(dir, 's'), mode: 0o600 }, tcp: { host: '127.0.0.1', port: 0 } })
  const { token } = await server.authority.mint({ subject: 'a', ttlMs: 60_000 })
  return { server, port: tcp?.port ?? 0, bearer: `authorization: Bearer ${token}`, uses }
}

/** What came back until the other side closed. */
function exchange(port: number, send: (socket: Socket) => void): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => send(socket))
    let got = ''
    socket.on('data', (chunk) => {
      got += chunk
    })
    socket.on('close', () => resolve(got))
    // A server that has answered may close while more is written.
    socket.on('error', () => undefined)
  })
}

const ask = (port: number, ...lines: string[]) => exchange(port, (socket) => socket.write(`${lines.join('\r\n')}\r\n\r\n`))
const isAlive = async (port: number): Promise<void> =>
  assert.match(await ask(port, 'GET /health HTTP/1.1', 'host: a', 'connection: close'), /^HTTP\/1\.1 200 /)

test('a method that HTTP has and no route takes is 405, also one that cannot do without a content type', async (t) => {
  const { port, bearer } = await house(t)
  for (const method of ['QUERY', 'PROPFIND', 'LOCK', 'TRACE', 'OPTIONS']) {
    const answer = await ask(port, `${method} /instances HTTP/1.1`, 'host: a', bearer, 'connection: close')
    assert.match(answer, /^HTTP\/1\.1 405 /, method)
    assert.match(answer, /^allow: GET, POST\r$/m, method)
  }
  assert.match(await ask(port, 'QUERY /nothing HTTP/1.1', 'host: a', bearer, 'connection: close'), /^HTTP\/1\.1 404 /)
})

test('headers that never end are cut off, and hold no one else up', async (t) => {
  const { port } = await house(t, { headersMs: 300 })
  const slow = Array.from({ length: 20 }, () => exchange(port, (socket) => socket.write('GET /instances HTTP/1.1\r\nhost: a\r\nx-slow: ')))
  await isAlive(port)
  for (const answer of await Promise.all(slow)) assert.match(answer, /^HTTP\/1\.1 408 /)
  await isAlive(port)
})

test('headers that trickle, a byte at a time, are cut off as well', async (t) => {
  const { port } = await house(t, { headersMs: 300 })
  const answer = await exchange(port, (socket) => {
    socket.write('GET /instances HTTP/1.1\r\nhost: a\r\nx-slow: ')
    const drip = setInterval(() => socket.write('x'), 20)
    socket.once('close', () => clearInterval(drip))
  })
  assert.match(answer, /^HTTP\/1\.1 408 /)
})

test('a body that trickles is cut off, however it is framed', async (t) => {
  const { port, bearer } = await house(t, { bodyLimits: { maxBytes: 1000, maxMs: 200 } })
  for (const [framing, drop] of [
    ['content-length: 900', ' '],
    ['transfer-encoding: chunked', '1\r\n \r\n'],
  ] as const) {
    const answer = await exchange(port, (socket) => {
      socket.write(`POST /instances HTTP/1.1\r\nhost: a\r\n${bearer}\r\ncontent-type: application/json\r\n${framing}\r\n\r\n`)
      const drip = setInterval(() => socket.write(drop), 20)
      socket.once('close', () => clearInterval(drip))
    })
    assert.match(answer, /^HTTP\/1\.1 400 .*took longer than 0\.2 s/s, framing)
  }
  await isAlive(port)
})

test('a body that is cut off is no fault of ours', async (t) => {
  const lines: string[] = []
  const log = createLogger({ level: 'info', destination: { write: (line) => void lines.push(line) } })
  const { port, bearer, server } = await house(t, {}, { log })
  for (const [path, type] of [
    ['/instances', 'application/json'],
    ['/v2/team/app/manifests/1', 'application/vnd.oci.image.manifest.v1+json'],
  ]) {
    const method = path?.includes('manifests') ? 'PUT' : 'POST'
    const head = [`${method} ${path} HTTP/1.1`, 'host: a', bearer, `content-type: ${type}`, 'content-length: 500']
    const asked = once(server.tcp.server, 'request')
    const socket = connect(port, '127.0.0.1', () => socket.write(`${head.join('\r\n')}\r\n\r\n{"name"`))
    const [request] = await asked
    // Once the body is being read.
    while (request.listenerCount('data') === 0 && !request.destroyed) await new Promise(setImmediate)
    socket.destroy()
    await once(request.socket, 'close')
    for (let n = 0; n < 20; n++) await new Promise(setImmediate)
  }
  const faults = lines.filter((line) => line.includes('request failed'))
  assert.deepEqual(faults, [])
})

test('a body is not read before it is known who asks', async (t) => {
  const { port } = await house(t)
  // Nothing of the megabytes that it announces is waited for.
  const answer = await ask(port, 'POST /images/import HTTP/1.1', 'host: a', 'content-type: application/x-tar', 'content-length: 99999999')
  assert.match(answer, /^HTTP\/1\.1 401 /)
  assert.match(answer, /connection: close/i)
})

test('too large a body is refused by what it says, and by what comes', async (t) => {
  const { port, bearer } = await house(t, { bodyLimits: { maxBytes: 1000, maxMs: 60_000 } })
  const head = `POST /instances HTTP/1.1\r\nhost: a\r\n${bearer}\r\ncontent-type: application/json\r\n`
  const chunk = `3e8\r\n${' '.repeat(1000)}\r\n`
  for (const body of [`content-length: 2000\r\n\r\n${' '.repeat(2000)}`, `transfer-encoding: chunked\r\n\r\n${chunk}${chunk}`]) {
    assert.match(await exchange(port, (socket) => socket.write(head + body)), /^HTTP\/1\.1 413 /)
  }
  await isAlive(port)
})

test('messages that two servers would take apart differently are refused', async (t) => {
  const { port, bearer } = await house(t)
  const post = 'POST /instances/web/stop HTTP/1.1'
  for (const lines of [
    [post, 'host: a', bearer, 'content-length: 2', 'transfer-encoding: chunked', '', '0'],
    [post, 'host: a', bearer, 'content-length: 2', 'content-length: 3', '', '{}'],
    [post, 'host: a', bearer, 'content-length: +2', '', '{}'],
    [post, 'host: a', bearer, 'transfer-encoding: xchunked', '', '0'],
    [post, 'host: a', bearer, 'transfer-encoding : chunked', '', '0'],
    [post, 'host: a', 'authorization', bearer],
    ['GET /instances HTTP/1.1', bearer, 'connection: close'],
    ['GET /instances HTTP/9.9', 'host: a', bearer],
    ['GET\t/instances\tHTTP/1.1', 'host: a', bearer],
    ['GE\0T /instances HTTP/1.1', 'host: a', bearer],
    ['GET /instances HTTP/1.1', 'host: a', 'x: a\0b', bearer],
    ['GET /instances HTTP/1.1', 'host: a', 'x: a\rb', bearer],
  ]) {
    assert.match(await ask(port, ...lines), /^HTTP\/1\.1 4\d\d /, JSON.stringify(lines))
  }
  await isAlive(port)
})

test('many headers, long ones and two of one kind prove nothing more', async (t) => {
  const { port, bearer } = await house(t)
  const get = 'GET /instances HTTP/1.1'
  const many = Array.from({ length: 3000 }, (_, n) => `x-${n}: y`)
  assert.match(await ask(port, get, 'host: a', ...many), /^HTTP\/1\.1 4(01|31) /)
  assert.match(await ask(port, get, 'host: a', `authorization: Bearer ${'a'.repeat(12_000)}`, 'connection: close'), /^HTTP\/1\.1 401 /)
  // The first counts, not the better one.
  assert.match(await ask(port, get, 'host: a', 'authorization: Bearer a.b.c', bearer, 'connection: close'), /^HTTP\/1\.1 401 /)
  for (const name of [
    'x-forwarded-user: host',
    'x-original-url: /tokens',
    'x-http-method-override: DELETE',
    'x-forwarded-for: 127.0.0.1',
  ]) {
    assert.match(await ask(port, get, 'host: a', name, 'connection: close'), /^HTTP\/1\.1 401 /, name)
  }
})

test('no spelling of a path gets by its scope', async (t) => {
  const { server, port, uses } = await house(t)
  const { token } = await server.authority.mint({ subject: 'a', scopes: ['image:read'], ttlMs: 60_000 })
  for (const url of [
    '/instances/web/',
    '//instances/web',
    '/INSTANCES/web',
    '/images/../instances/web',
    '/images/%2e%2e/instances/web',
    '/images/..%2finstances%2fweb',
    '/images;/../instances/web',
    '/instances%2fweb',
    '/%69nstances/web',
    '/instances/web%00',
    '/instances/web%2f..',
    '/instances/web?scope=instance:read',
    '/instances/web#/images',
    'http://a/instances/web',
    '/instances/web\\..\\..\\images',
  ]) {
    // As it is, on the wire: a client's URL would straighten it out.
    const answer = await ask(port, `GET ${url} HTTP/1.1`, 'host: a', `authorization: Bearer ${token}`, 'connection: close')
    assert.match(answer, /^HTTP\/1\.1 40[0345] /, url)
    assert.equal(answer.includes(String(uses.instances.rows[0]?.id)), false, url)
  }
  // And no method that stands for another.
  for (const method of ['HEAD', 'OPTIONS', 'TRACE', 'PROPFIND', 'SEARCH'] as const) {
    const answer = await server.tcp.inject({ method: method as 'HEAD', url: '/instances/web' })
    assert.ok([401, 404, 405].includes(answer.statusCode), `${method}: ${answer.statusCode}`)
  }
})

test('requests in one go are each looked at by themselves', async (t) => {
  const { port, bearer } = await house(t)
  const answer = await exchange(port, (socket) =>
    socket.write(
      `GET /instances HTTP/1.1\r\nhost: a\r\n${bearer}\r\n\r\nGET /instances HTTP/1.1\r\nhost: a\r\n\r\nGET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n`,
    ),
  )
  assert.deepEqual(
    [...answer.matchAll(/HTTP\/1\.1 (\d+) /g)].map(([, status]) => status),
    ['200', '401', '200'],
  )
})

/** Sixteen bytes, as a WebSocket begins with. */
const KEY = Buffer.alloc(16).toString('base64')

test('a wish to upgrade is heard at the two WebSockets alone, and answered by who asks first', async (t) => {
  const { port, bearer } = await house(t)
  const upgrade = ['host: a', 'connection: upgrade', 'upgrade: websocket', 'sec-websocket-version: 13', `sec-websocket-key: ${KEY}`]
  const statusOf = async (line: string, ...more: string[]) => {
    const { promise, resolve } = Promise.withResolvers<string>()
    const socket = connect(port, '127.0.0.1', () => socket.write(`${[line, ...upgrade, ...more].join('\r\n')}\r\n\r\n`))
    t.after(() => socket.destroy())
    socket.once('data', (head) => resolve(head.toString().slice(9, 12)))
    return promise
  }
  for (const [path, status] of [
    ['/v2/a/exec', '401'],
    ['/v2/a/cp', '401'],
    ['/health?x=/exec', '400'],
    ['/openapi.json?a=/instances/web/cp', '200'],
    ['/instances/web?x=/exec', '401'],
    ['/a/instances/web/exec', '404'],
    ['/instances/web/exec', '401'],
  ]) {
    assert.equal(await statusOf(`GET ${path} HTTP/1.1`), status, path)
  }
  assert.equal(await statusOf('POST /instances/web/exec HTTP/1.1', bearer, 'content-length: 0'), '405')
  assert.equal(await statusOf('GET /instances/web/exec?x=/ HTTP/1.1', bearer), '101')
})

test('what HTTP itself does not allow is refused in our words as well', async (t) => {
  const { port, bearer } = await house(t)
  const upgrade = ['GET /instances/web/exec HTTP/1.1', 'host: a', bearer, 'connection: upgrade', 'upgrade: websocket']
  for (const [status, ...lines] of [
    [400, 'GET /health HTTP/1.1', 'connection: close'],
    [417, 'GET /health HTTP/1.1', 'host: a', 'expect: the-unexpected'],
    [400, ...upgrade, 'sec-websocket-version: 13', 'sec-websocket-key: x'],
    [400, ...upgrade, `sec-websocket-key: ${KEY}`, 'sec-websocket-version: 12'],
    [400, ...upgrade],
  ] as const) {
    const answer = await ask(port, ...lines)
    assert.match(answer, new RegExp(`^HTTP/1\\.1 ${status} `), lines.join())
    assert.match(answer, /^content-type: application\/json/im, lines.join())
    assert.equal(JSON.parse(answer.slice(answer.indexOf('{'), answer.lastIndexOf('}') + 1)).code, 'invalid_request', lines.join())
  }
  await isAlive(port)
})
