import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { type ClientRequest, type IncomingMessage, request } from 'node:http'
import { connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { endpoint, type RouteId } from '@dormouse/api/endpoints.ts'
import { ROUTE_IDS, type Route, routes } from '@dormouse/api/routes.ts'
import type { InjectOptions } from 'fastify'
import { checkInput } from './check-input.ts'
import { type FakeUses, fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

interface House {
  readonly uses: FakeUses
  readonly server: HttpServer
  /** On the unix socket's side: no token asked for. */
  ask(method: InjectOptions['method'], url: string, body?: unknown, headers?: Record<string, string>): Promise<Told>
}

interface Told {
  readonly status: number
  readonly headers: Record<string, string | string[] | number | undefined>
  readonly text: string
  // biome-ignore lint/suspicious/noExplicitAny: a test reads what it expects
  readonly json: any
}

function house(t: TestContext, options: ConstructorParameters<typeof HttpServer>[1] = {}): House {
  const uses = fakeUses()
  const server = new HttpServer(uses, options)
  t.after(() => server.close())
  return {
    uses,
    server,
    ask: async (method = 'GET', url, body, headers = {}) => {
      const answer = await server.host.inject({ method, url, headers, ...(body !== undefined && { payload: body as object }) })
      const isJson = String(answer.headers['content-type']).startsWith('application/json') && answer.body !== ''
      return { status: answer.statusCode, headers: answer.headers, text: answer.body, json: isJson ? JSON.parse(answer.body) : undefined }
    },
  }
}

const good = { name: 'web', image: 'alpine' }

test('an instance goes from create to delete, and every answer is what the route table says', async (t) => {
  const { ask } = house(t)
  const steps: readonly (readonly [RouteId, string, unknown?])[] = [
    [
      'createInstance',
      '/instances',
      { ...good, size: '512MB', tags: { team: 'a' }, network: { ports: [{ host_port: 8080, guest_port: 80 }] } },
    ],
    ['listInstances', '/instances?tags[team]=a&state=Initializing'],
    ['getInstance', '/instances/web'],
    ['updateInstance', '/instances/web', { tags: { team: 'b' } }],
    ['startInstance', '/instances/web/start', {}],
    ['waitForInstance', '/instances/web/wait?state=Running&timeout=5s'],
    ['getInstanceStats', '/instances/web/stats'],
    ['statInstancePath', '/instances/web/stat?path=/etc/hosts'],
    ['setSnapshotSchedule', '/instances/web/snapshot-schedule', { interval: '1h', retention: { max_count: 3 } }],
    ['getSnapshotSchedule', '/instances/web/snapshot-schedule'],
    ['deleteSnapshotSchedule', '/instances/web/snapshot-schedule'],
    ['stopInstance', '/instances/web/stop'],
    ['deleteInstance', '/instances/web?graceful_shutdown=false'],
    ['getHealth', '/health'],
    ['getCapabilities', '/capabilities'],
    ['getResources', '/resources'],
    ['createToken', '/tokens', { scopes: ['instance:read'], ttl: '1h' }],
    ['pullImage', '/images', { name: 'docker.io/library/alpine:3' }],
    ['getImage', '/images/docker.io%2Flibrary%2Falpine:3'],
    ['tagImage', '/images/docker.io%2Flibrary%2Falpine:3/tag', { target: 'mine:1' }],
    ['listImages', '/images?limit=1'],
    ['createPush', '/pushes', { image: 'docker.io/library/alpine:3', target: 'registry.example.com/a:1' }],
    ['listPushes', '/pushes?limit=1'],
    ['pruneImages', '/images/prune'],
    ['deleteImage', '/images/mine:1'],
  ]
  for (const [id, url, body] of steps) {
    const route: Route = routes[id]
    const told = await ask(endpoint(id).method, url, body)
    assert.equal(told.status, route.status, `${id}: ${told.text}`)
    if (route.answer) checkInput(route.answer, told.json, `The answer of ${id}`)
    else assert.equal(told.text, '', id)
  }
})

test('an instance is shown with sizes that can be sent back and nulls where the contract has them', async (t) => {
  const { ask } = house(t)
  const { json } = await ask('POST', '/instances', { ...good, size: '1.5GB' })
  assert.equal(json.size, '1536MB')
  for (const field of ['state_error', 'started_at', 'stopped_at', 'expires_at', 'exit_code']) assert.equal(json[field], null, field)
  for (const field of ['exit_message', 'operation', 'hotplug_size', 'gpu', 'auto_standby']) assert.ok(!(field in json), field)
  assert.deepEqual(json.network, { enabled: true, name: 'default', ip: null, mac: null, ports: [] })
})

test('lists come newest first in pages, with the cursor in a header', async (t) => {
  const { ask, uses } = house(t)
  for (let n = 0; n < 5; n++) uses.instances.add({ name: `i${n}`, createdAtMs: 1e12 + n })
  const first = await ask('GET', '/instances?limit=3')
  assert.deepEqual(
    first.json.map((one: { name: string }) => one.name),
    ['i4', 'i3', 'i2'],
  )
  const second = await ask('GET', `/instances?limit=3&cursor=${first.headers['x-next-cursor']}`)
  assert.deepEqual(
    second.json.map((one: { name: string }) => one.name),
    ['i1', 'i0'],
  )
  assert.equal(second.headers['x-next-cursor'], undefined)
})

test('a long list comes whole to one who reads slowly, whoever else asks or hangs up meanwhile', async (t) => {
  const { server, uses } = house(t)
  for (let n = 0; n < 2000; n++) uses.instances.add({ name: `old-${n}` })
  const { socket } = await listening(t, server)
  const namesIn = async (answer: IncomingMessage): Promise<string[]> => {
    const text = Buffer.concat(await answer.toArray()).toString()
    return JSON.parse(text).map(({ name }: { name: string }) => name)
  }
  const slow = await opened(socket, '/instances')
  const gone = await opened(socket, '/instances')
  gone.sent.destroy()
  uses.instances.rows.forEach((row, at, rows) => {
    rows[at] = { ...row, name: row.name.replace('old', 'new') }
  })
  for (let time = 0; time < 3; time++) {
    const names = await namesIn((await opened(socket, '/instances')).answer)
    assert.deepEqual([names.length, names[0], names.at(-1)], [2000, 'new-1999', 'new-0'])
  }
  const names = await namesIn(slow.answer)
  assert.deepEqual([names.length, names[0], names.at(-1)], [2000, 'old-1999', 'old-0'])
})

test('a query is typed by its schema, and what does not fit or is unknown is refused', async (t) => {
  const { ask } = house(t)
  for (const [url, message] of [
    ['/instances?limit=abc', '`limit` must be a whole number'],
    ['/instances?limit=0', '`limit` must be at least 1'],
    ['/instances?state=running', '`state` must be one of Created,'],
    ['/instances?state=Running&state=Stopped', '`state` must be one of'],
    ['/instances?colour=red', 'The query has no field `colour`: it takes state,'],
    ['/instances?tags=x', '`tags` must be an object'],
    ['/instances?cursor=x', 'The cursor is not one'],
    ['/health?x=1', 'This takes no query'],
    ['/instances/a/logs?follow=maybe', '`follow` must be true or false'],
    ['/instances/a/logs?tail=-1', '`tail` must be at least 0'],
    ['/instances/a/stat', '`path` is missing'],
  ] as const) {
    const told = await ask('GET', url)
    assert.equal(told.status, 400, url)
    assert.equal(told.json.code, 'invalid_request', url)
    assert.ok(told.json.message.startsWith(message), `${url}: ${told.json.message}`)
    assert.equal(told.headers['x-should-retry'], 'false', url)
  }
})

test('bodies: nothing is a body where one is optional, and what is no JSON object is refused in words', async (t) => {
  const { ask, uses } = house(t)
  uses.instances.add({ name: 'web' })
  const json = { 'content-type': 'application/json' }
  for (const [body, headers] of [
    [undefined, {}],
    ['', json],
    ['{}', json],
    ['null', json],
    ['{}', { 'content-type': 'application/json; charset=utf-8' }],
    ['{}', { 'content-type': 'application/json;Charset="UTF-8"', 'content-encoding': 'identity' }],
    ['{}', { 'content-type': 'application/merge-patch+json' }],
    ['', { 'content-type': 'text/plain', 'content-length': '0' }],
  ] as const) {
    assert.equal((await ask('POST', '/instances/web/start', body, headers)).status, 200, `${body} ${JSON.stringify(headers)}`)
  }
  for (const [status, body, headers] of [
    [400, '{', json],
    [400, '[]', json],
    [400, '"text"', json],
    [400, Buffer.from([0x22, 0xff, 0x22]), json],
    [415, '{}', { 'content-type': 'text/plain' }],
    [415, 'a=1', { 'content-type': 'application/x-www-form-urlencoded' }],
    [415, '<a/>', { 'content-type': 'application/xml' }],
    [415, '{}', { 'content-type': 'application/json', 'content-encoding': 'gzip' }],
    [415, Buffer.from('{}', 'utf16le'), { 'content-type': 'application/json; charset=utf-16' }],
    [415, '{}', { 'content-type': 'application/json;charset="iso-8859-1"' }],
  ] as const) {
    const told = await ask('POST', '/instances/web/start', body, headers)
    assert.equal(told.status, status, String(body))
    assert.equal(told.json.code, 'invalid_request')
  }
  const missing = await ask('POST', '/instances')
  assert.deepEqual([missing.status, missing.json.message], [400, 'This needs a JSON body'])
})

test('a body that is too large, or trickles, is cut off', async (t) => {
  const { ask, server } = house(t, { bodyLimits: { maxBytes: 1000, maxMs: 200 } })
  const told = await ask('POST', '/instances', { ...good, env: { A: 'x'.repeat(2000) } })
  assert.deepEqual([told.status, told.json.code], [413, 'invalid_request'])
  const { socket } = await listening(t, server)
  const answer = await rawRequest(
    socket,
    'POST /instances HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"name"',
  )
  assert.match(answer, /^HTTP\/1\.1 400 /)
  assert.match(answer, /took longer than 0\.2 s/)
})

test('paths: long parts, bad encoding, unknown ones and wrong methods each get an answer of their own', async (t) => {
  const { ask } = house(t)
  for (const [method, url, status, code] of [
    ['GET', `/instances/${'x'.repeat(127)}`, 404, 'not_found'],
    ['GET', `/instances/${'x'.repeat(200)}`, 400, 'invalid_request'],
    ['GET', `/images/${'x'.repeat(900)}`, 404, 'not_found'],
    ['GET', `/instances/${'x'.repeat(9000)}`, 400, 'invalid_request'],
    ['GET', '/instances/%zz', 400, 'invalid_request'],
    ['GET', '/instances/%00', 404, 'not_found'],
    ['GET', '/instances/..%2f..%2fetc%2fpasswd', 404, 'not_found'],
    ['GET', '/instances/../../etc/passwd', 404, 'not_found'],
    ['GET', '/images/..%2f..%2fetc', 404, 'not_found'],
    ['GET', '/', 404, 'not_found'],
    ['GET', '/instances/', 400, 'invalid_request'],
    ['PUT', '/instances', 405, 'method_not_allowed'],
    ['HEAD', '/instances', 405, undefined],
    ['DELETE', '/health', 405, 'method_not_allowed'],
  ] as const) {
    const told = await ask(method, url)
    assert.equal(told.status, status, `${method} ${url.slice(0, 60)}: ${told.text}`)
    if (code !== undefined) assert.equal(told.json.code, code, url)
  }
  assert.equal((await ask('PUT', '/instances')).headers.allow, 'GET, POST')
})

test('what is not built yet answers 501 on its own route, and is not sent twice', async (t) => {
  const { ask } = house(t)
  for (const id of ROUTE_IDS) {
    const route: Route = routes[id]
    if (route.later === undefined) continue
    const { method, path } = endpoint(id)
    const told = await ask(method, path.replace(/\{\w+\}/g, 'x'))
    assert.deepEqual([told.status, told.json.code, told.headers['x-should-retry']], [501, 'not_supported', 'false'], id)
    assert.match(told.json.message, /not built/, id)
  }
})

test('a request id is kept when it is a plain one and made anew when it is not', async (t) => {
  const { ask } = house(t)
  assert.equal((await ask('GET', '/health', undefined, { 'x-request-id': 'abc-1' })).headers['x-request-id'], 'abc-1')
  for (const id of ['a b', 'x'.repeat(65), 'a\tb', '<script>']) {
    assert.match(String((await ask('GET', '/health', undefined, { 'x-request-id': id })).headers['x-request-id']), /^[0-9a-f-]{36}$/)
  }
  assert.equal((await ask('GET', '/nothing', undefined, { 'x-request-id': 'abc-2' })).headers['x-request-id'], 'abc-2')
})

test('a fault of ours is logged and answers 500 without its inside', async (t) => {
  const { ask, uses } = house(t)
  uses.instances.list = () => {
    throw new Error('SQLITE_CORRUPT: /var/lib/x')
  }
  const told = await ask('GET', '/instances')
  assert.equal(told.status, 500)
  assert.doesNotMatch(told.text, /SQLITE/)
})

test('what the registry asks for is passed on', async (t) => {
  const { ask } = house(t)
  const told = await ask('POST', '/images', { name: 'limited' })
  assert.deepEqual([told.status, told.json.code, told.headers['retry-after']], [429, 'rate_limited', '7'])
})

test('an upload is streamed, and only its own types are taken', async (t) => {
  const { ask, uses } = house(t)
  const told = await ask('POST', '/images/import?name=mine:1', Buffer.alloc(100_000), { 'content-type': 'application/x-tar' })
  assert.deepEqual([told.status, told.json.name, uses.images.uploaded], [201, 'mine:1', 100_000])
  for (const type of ['application/json', 'text/plain']) {
    assert.equal((await ask('POST', '/images/import', Buffer.from('{}'), { 'content-type': type })).status, 415, type)
  }
})

test('a token holds for a second up to ten years', async (t) => {
  const { ask } = house(t)
  for (const ttl of ['99999999999h', '87601h', '999ms', '-1h', '0', 'ever', '']) {
    const told = await ask('POST', '/tokens', { ttl })
    assert.deepEqual([told.status, told.json.code], [400, 'invalid_ttl'], ttl)
  }
  for (const ttl of ['1s', '1500.5ms', '87600h']) assert.equal((await ask('POST', '/tokens', { ttl })).status, 201, ttl)
})

test('a state that nothing can be waited into is a bad request with the code of a state, here alone', async (t) => {
  const { ask, uses } = house(t)
  uses.instances.add({ name: 'web', state: 'Stopped' })
  const told = await ask('GET', '/instances/web/wait?state=Unknown')
  assert.deepEqual([told.status, told.json.code, told.headers['x-should-retry']], [400, 'invalid_state', 'false'])
  const elsewhere = await ask('GET', '/instances/web/stat?path=/')
  assert.deepEqual([elsewhere.status, elsewhere.json.code], [409, 'invalid_state'])
  const document = (await ask('GET', '/openapi.json')).json
  assert.match(document.paths['/instances/{id}/wait'].get.responses['400'].description, /invalid_state/)
  assert.equal(document.paths['/instances/{id}/wait'].get.responses['409'].description.includes('invalid_state'), false)
})

test('logs are lines of JSON after a comment', async (t) => {
  const { ask, uses } = house(t)
  uses.instances.add({ name: 'web' })
  uses.instances.lines = ['one', 'two\r\nthree', '\u2028 "quoted"']
  const told = await ask('GET', '/instances/web/logs?tail=2')
  assert.equal(told.headers['content-type'], 'text/event-stream')
  assert.equal(told.headers['x-accel-buffering'], 'no')
  const [two, quoted] = ['two\r\nthree', '\u2028 "quoted"'].map((line) => JSON.stringify(line))
  assert.equal(told.text, `:\ndata: ${two}\n\nid: log-0\ndata: ${quoted}\n\n: end\n`)
  assert.equal((await ask('GET', '/instances/web/logs?source=hypeman')).status, 200)
})

test('over TCP everything needs a token but health and the OpenAPI document', async (t) => {
  const { server } = house(t)
  for (const [n, id] of ROUTE_IDS.entries()) {
    const { method, path } = endpoint(id)
    // Each from an address of its own: none is refused too often.
    const answer = await server.tcp.inject({ method, url: path.replace(/\{\w+\}/g, 'x'), remoteAddress: `192.0.2.${n}` })
    assert.equal(answer.statusCode, id === 'getHealth' ? 200 : 401, id)
    if (answer.statusCode === 401) assert.equal(answer.headers['www-authenticate'], 'Bearer', id)
  }
  for (const url of ['/openapi.json', '/spec.json', '/spec.yaml']) assert.equal((await server.tcp.inject(url)).json().openapi, '3.1.0')
  const page = await server.tcp.inject('/swagger')
  assert.deepEqual([page.statusCode, page.headers['content-type']], [200, 'text/html; charset=utf-8'])
  for (const id of ROUTE_IDS) assert.ok(page.body.includes(`<tr id="${id}">`), id)
  assert.doesNotMatch(page.body, /<script/)
})

test('a token opens what its scopes name, route by route', async (t) => {
  const { server, uses } = house(t)
  uses.instances.add({ name: 'web' })
  const as = async (scopes: string[] | undefined, method: 'GET' | 'POST' | 'DELETE', url: string) => {
    const { token } = await server.authority.mint({ subject: 'a', ttlMs: 60_000, ...(scopes && { scopes }) })
    return (await server.tcp.inject({ method, url, headers: { authorization: `Bearer ${token}` } })).statusCode
  }
  assert.equal(await as(['instance:read'], 'GET', '/instances/web'), 200)
  assert.equal(await as(['instance:read'], 'POST', '/instances/web/stop'), 403)
  assert.equal(await as(['instance:read', 'instance:write'], 'DELETE', '/instances/web'), 403)
  assert.equal(await as(['image:read'], 'GET', '/instances'), 403)
  assert.equal(await as(['*'], 'POST', '/tokens'), 403)
  assert.equal(await as(undefined, 'DELETE', '/instances/web'), 204)
})

test('the unix socket has the mode that was asked for from its first moment, and goes with the server', async (t) => {
  const { server } = house(t)
  const { socket } = await listening(t, server)
  assert.equal(statSync(socket).mode & 0o777, 0o660)
  assert.equal((await overSocket(socket, '/health')).statusCode, 200)
  await server.close()
  assert.equal(existsSync(socket), false)
})

test('a socket file that a dead daemon left is replaced, a living daemon is not', async (t) => {
  const { server } = house(t)
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const path = join(dir, 's')
  writeFileSync(path, '')
  await server.listen({ socket: { path, mode: 0o600 } })
  const second = house(t)
  await assert.rejects(second.server.listen({ socket: { path, mode: 0o600 } }), { code: 'conflict', message: /Another daemon/ })
  assert.equal((await overSocket(path, '/health')).statusCode, 200)
})

test('a TCP port that is taken is told as such', async (t) => {
  const taken = createServer().listen(0, '127.0.0.1')
  t.after(() => taken.close())
  await new Promise((resolve) => taken.once('listening', resolve))
  const { server } = house(t)
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const { port } = taken.address() as { port: number }
  await assert.rejects(server.listen({ socket: { path: join(dir, 's'), mode: 0o600 }, tcp: { host: '127.0.0.1', port } }), {
    code: 'port_in_use',
  })
})

test('a close ends followed logs, events and waits, and lets answers out', async (t) => {
  const { server, uses } = house(t)
  uses.instances.add({ name: 'web', state: 'Stopped' })
  const { socket } = await listening(t, server)
  const logs = overSocket(socket, '/instances/web/logs?follow=true')
  const events = overSocket(socket, '/events')
  const wait = overSocket(socket, '/instances/web/wait?state=Running&timeout=60s')
  await Promise.all([logs, events, uses.instances.waiting.promise])
  const began = performance.now()
  await server.close()
  assert.equal((await wait).statusCode, 200)
  assert.ok(performance.now() - began < 30_000)
})

test('a reader who hangs up ends the following', async (t) => {
  const { server, uses } = house(t)
  uses.instances.add({ name: 'web' })
  const { socket } = await listening(t, server)
  const { answer, sent } = await opened(socket, '/instances/web/logs?follow=true')
  await new Promise((resolve) => answer.once('data', resolve))
  sent.destroy()
  await uses.instances.followed.promise
})

test('events go on after the one that was seen last', async (t) => {
  const rows = [1, 2, 3].map((id) => ({ id, kind: 'instance.changed', subject: id === 2 ? 'b' : 'a', atMs: 0, data: { n: id } }))
  const uses = fakeUses(rows as never)
  const server = new HttpServer(uses)
  t.after(() => server.close())
  const { socket } = await listening(t, server)
  // Where he began no longer counts.
  const { answer } = await opened(socket, '/events?subject=a&after=0', { 'last-event-id': '1' })
  const text = await new Promise<string>((resolve) => {
    let all = ''
    answer.on('data', (chunk) => {
      all += chunk
      if (all.includes('data:')) resolve(all)
    })
  })
  assert.match(
    text,
    /^:\nid: 1\n\nid: 3\ndata: \{"id":3,"kind":"instance\.changed","at":"1970-01-01T00:00:00\.000Z","subject":"a","data":\{"n":3\}\}/,
  )
})

test('what is no HTTP is answered and cut off', async (t) => {
  const { server } = house(t)
  const { socket } = await listening(t, server)
  assert.match(await rawRequest(socket, 'hello\r\n\r\n'), /^HTTP\/1\.1 400 .*invalid_request/s)
  const tooLong = await rawRequest(socket, `GET /health HTTP/1.1\r\nhost: a\r\nx: ${'y'.repeat(70_000)}\r\n\r\n`)
  assert.match(tooLong, /^HTTP\/1\.1 431 /)
  assert.match(tooLong, /^x-should-retry: false\r$/m)
  const smuggled = 'POST /instances HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n'
  assert.match(await rawRequest(socket, smuggled), /^HTTP\/1\.1 400 /)
})

test('figures are there for Prometheus, with labels of our own making only', async (t) => {
  const { ask, uses } = house(t)
  uses.instances.add({ name: 'web' })
  await ask('GET', '/instances/evil%22%0A')
  const { text } = await ask('GET', '/metrics')
  assert.match(text, /dormouse_instances\{state="Running"\} 1/)
  assert.match(text, /dormouse_http_requests_total\{route="getInstance",status="404"\} 1/)
  assert.doesNotMatch(text, /evil/)
})

async function listening(t: TestContext, server: HttpServer): Promise<{ socket: string; port: number }> {
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  const socket = join(dir, 's')
  const { tcp } = await server.listen({ socket: { path: socket, mode: 0o660 }, tcp: { host: '127.0.0.1', port: 0 } })
  return { socket, port: tcp?.port ?? 0 }
}

function opened(
  socketPath: string,
  path: string,
  headers: Record<string, string> = {},
): Promise<{ answer: IncomingMessage; sent: ClientRequest }> {
  return new Promise((resolve, reject) => {
    const sent = request({ socketPath, path, headers, agent: false }, (answer) => {
      answer.on('error', () => undefined)
      resolve({ answer, sent })
    })
    sent.on('error', reject)
    sent.end()
  })
}

const overSocket = async (socketPath: string, path: string): Promise<IncomingMessage> => {
  const { answer } = await opened(socketPath, path)
  answer.resume()
  return answer
}

/** Everything that comes back until the other side closes. */
function rawRequest(path: string, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket: Socket = connect(path, () => socket.write(text))
    let got = ''
    socket.on('data', (chunk) => {
      got += chunk
    })
    socket.on('close', () => resolve(got))
    socket.on('error', (error: NodeJS.ErrnoException) =>
      error.code === 'ECONNRESET' || error.code === 'EPIPE' ? resolve(got) : reject(error),
    )
  })
}

test('a push is answered with where it is found and when to look, and with 409 for an image that is not ready', async (t) => {
  const { ask, uses } = house(t)
  uses.images.add('ready:1')
  const made = await ask('POST', '/pushes', { image: 'ready:1', target: 'registry.example.com/a:1', insecure: true, credentials: {} })
  assert.equal(made.status, 202)
  assert.equal(made.headers.location, `/pushes/${made.json.id}`)
  assert.equal(made.headers['retry-after'], '2')
  assert.deepEqual((await ask('GET', String(made.headers.location))).json, made.json)
  assert.deepEqual((await ask('GET', '/pushes')).json, [made.json])
  assert.equal((await ask('GET', '/pushes/absent')).status, 404)
  uses.images.rows.set('slow:1', { ...uses.images.add('slow:1'), status: 'pulling' })
  const early = await ask('POST', '/pushes', { image: 'slow:1', target: 'registry.example.com/a:1' })
  assert.deepEqual([early.status, early.json.code], [409, 'image_not_ready'])
  assert.equal((await ask('POST', '/pushes', { image: 'ready:1' })).status, 400)
})
