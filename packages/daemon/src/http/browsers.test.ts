/** What browsers do that no other client does: Origin, preflights, and streams that can carry no header. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { type IncomingMessage, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import WebSocket from 'ws'
import { createLogger } from '../log.ts'
import { type FakeUses, fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

const CONSOLE = 'https://console.example'

interface House {
  readonly uses: FakeUses
  readonly server: HttpServer
  readonly port: number
  readonly socket: string
  /** Every line of the log so far. */
  readonly lines: readonly string[]
  token(...scopes: string[]): Promise<{ token: string; id: string }>
  ticket(token: string, path: string): Promise<{ status: number; ticket: string; code: string }>
  get(path: string, headers?: Record<string, string>, method?: string): Promise<IncomingMessage>
}

async function house(t: TestContext): Promise<House> {
  const lines: string[] = []
  const log = createLogger({ level: 'trace', destination: { write: (line) => void lines.push(line) } })
  const uses = { ...fakeUses(), allowedOrigins: [CONSOLE], log }
  uses.instances.add({ name: 'web' })
  const server = new HttpServer(uses)
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(async () => {
    await server.close()
    rmSync(dir, { recursive: true, force: true })
  })
  const socket = join(dir, 's')
  const { tcp } = await server.listen({ socket: { path: socket, mode: 0o600 }, tcp: { host: '127.0.0.1', port: 0 } })
  const port = tcp?.port ?? 0
  return {
    ...{ uses, server, port, socket, lines },
    token: (...scopes) => server.authority.mint({ subject: 'page', scopes, ttlMs: 60_000 }),
    ticket: async (token, path) => {
      const answer = await server.tcp.inject({
        method: 'POST',
        url: '/tickets',
        payload: { path },
        headers: { authorization: `Bearer ${token}` },
      })
      return { status: answer.statusCode, ...answer.json() }
    },
    get: (path, headers = {}, method = 'GET') =>
      new Promise((resolve, reject) => {
        const sent = request({ host: '127.0.0.1', port, path, headers, method, agent: false }, (answer) => {
          answer.on('error', () => undefined)
          t.after(() => sent.destroy())
          resolve(answer)
        })
        sent.on('error', reject)
        sent.end()
      }),
  }
}

/** How it went: opened, or the status of the refusal. */
const dial = (url: string, options: WebSocket.ClientOptions = {}): Promise<{ status: number; socket: WebSocket }> =>
  new Promise((resolve, reject) => {
    const socket = new WebSocket(url, options)
    socket.on('open', () => resolve({ status: 101, socket }))
    socket.on('unexpected-response', (sent, answer) => {
      sent.destroy()
      resolve({ status: answer.statusCode ?? 0, socket })
    })
    socket.on('error', reject)
  })

const ended = (socket: WebSocket): Promise<unknown> => new Promise((resolve) => socket.on('close', resolve))

test('a ticket opens one WebSocket, once', async (t) => {
  const { uses, token, ticket, port } = await house(t)
  uses.instances.oneGuest.run = () => undefined
  const { token: bearer } = await token('instance:write')
  const { ticket: paper } = await ticket(bearer, '/instances/web/exec')
  const url = `ws://127.0.0.1:${port}/instances/web/exec?ticket=${paper}`
  const first = await dial(url, { origin: CONSOLE })
  assert.equal(first.status, 101)
  assert.equal((await dial(url, { origin: CONSOLE })).status, 401)
  first.socket.terminate()
})

test('a ticket opens one event stream, and leaves no trace in the log', async (t) => {
  const { token, ticket, get, lines } = await house(t)
  const { token: bearer } = await token('instance:read')
  const { ticket: paper } = await ticket(bearer, '/instances/web/logs')
  const answer = await get(`/instances/web/logs?tail=1&ticket=${paper}`)
  assert.equal(answer.statusCode, 200)
  let text = ''
  for await (const chunk of answer) text += chunk
  assert.match(text, /data: "two"/)
  assert.equal((await get(`/instances/web/logs?tail=1&ticket=${paper}`)).statusCode, 401)
  assert.equal((await get(`/instances/none/logs?ticket=${paper}`)).statusCode, 401)
  assert.ok(lines.some((line) => line.includes('getInstanceLogs')))
  assert.deepEqual(
    lines.filter((line) => line.includes(paper) || line.includes(bearer)),
    [],
  )
})

test('a ticket is for what its maker may do, on a stream that there is, and for nothing else', async (t) => {
  const { token, ticket, server } = await house(t)
  const { token: reader } = await token('instance:read')
  const refused = await ticket(reader, '/instances/web/exec')
  assert.deepEqual([refused.status, refused.code], [403, 'forbidden'])
  for (const path of [
    '/instances',
    '/instances/web',
    '/tokens',
    '/nothing',
    '/instances/web/exec?x=1',
    '//events',
    '/instances/a/b/logs',
  ]) {
    assert.deepEqual([(await ticket(reader, path)).status, (await ticket(reader, path)).code], [404, 'not_found'], path)
  }
  // It does not open what is no stream, where it is no parameter either.
  const { ticket: paper } = await ticket(reader, '/instances/web/logs')
  const answer = await server.tcp.inject(`/instances/web?ticket=${paper}`)
  assert.equal(answer.statusCode, 401)
  for (const url of ['/instances/web/logs?ticket=', `/instances/web/logs?ticket=a&ticket=b`, '/instances/web/logs?ticket[a]=b']) {
    assert.equal((await server.tcp.inject(url)).statusCode, 401, url)
  }
})

test('a ticket of a token that was revoked since opens nothing', async (t) => {
  const { token, ticket, server } = await house(t)
  const made = await token('instance:read')
  const { ticket: paper } = await ticket(made.token, '/events')
  server.authority.revoke(made.id)
  const answer = await server.tcp.inject(`/events?ticket=${paper}`)
  assert.deepEqual([answer.statusCode, answer.json().message], [401, 'The token has been revoked'])
})

test('streams end when the token that opened them is revoked', async (t) => {
  const { uses, token, get, port, server } = await house(t)
  uses.instances.oneGuest.run = () => undefined
  const made = await token('instance:read', 'instance:write')
  const headers = { authorization: `Bearer ${made.token}` }
  const events = await get('/events', headers)
  const { socket } = await dial(`ws://127.0.0.1:${port}/instances/web/exec`, { headers })
  socket.send(JSON.stringify({ command: ['sleep'] }))
  const over = Promise.all([ended(socket), new Promise((resolve) => events.on('end', resolve).resume())])
  server.authority.revoke(made.id)
  await over
})

test('a page of elsewhere may do nothing, over a WebSocket either, not even where no token is asked for', async (t) => {
  const { token, get, port, socket } = await house(t)
  const { token: bearer } = await token('instance:read', 'instance:write')
  const authorization = `Bearer ${bearer}`
  for (const origin of [
    'https://evil.example',
    'null',
    `http://127.0.0.1:${port + 1}`,
    'http://127.0.0.1',
    `${CONSOLE}.evil.example`,
    'x',
  ]) {
    assert.equal((await get('/instances', { authorization, origin })).statusCode, 403, origin)
    assert.equal((await dial(`ws://127.0.0.1:${port}/instances/web/exec`, { headers: { authorization }, origin })).status, 403, origin)
    assert.equal((await dial(`ws+unix:${socket}:/instances/web/exec`, { origin })).status, 403, origin)
  }
})

test('a page of the server itself may, and one of an origin that is configured may read the answers too', async (t) => {
  const { token, get, port } = await house(t)
  const { token: bearer } = await token('instance:read', 'instance:write')
  const authorization = `Bearer ${bearer}`
  const own = await get('/instances', { authorization, origin: `http://127.0.0.1:${port}` })
  assert.deepEqual([own.statusCode, own.headers['access-control-allow-origin']], [200, undefined])
  const other = await get('/instances', { authorization, origin: CONSOLE })
  assert.deepEqual(
    [other.statusCode, other.headers['access-control-allow-origin'], other.headers.vary, other.headers['access-control-allow-credentials']],
    [200, CONSOLE, 'origin', undefined],
  )
  assert.match(String(other.headers['access-control-expose-headers']), /x-next-cursor/)
  // Why it was refused is for it to read as well.
  const refused = await get('/images', { authorization, origin: CONSOLE })
  assert.deepEqual([refused.statusCode, refused.headers['access-control-allow-origin']], [403, CONSOLE])
  for (const origin of [`http://127.0.0.1:${port}`, CONSOLE]) {
    const { status, socket } = await dial(`ws://127.0.0.1:${port}/instances/web/exec`, { headers: { authorization }, origin })
    assert.equal(status, 101, origin)
    socket.terminate()
  }
})

test('whatever is answered to a page that may ask is for it to read', async (t) => {
  const { get, server } = await house(t)
  const told = async (path: string, method?: string) => {
    const { statusCode, headers } = await get(path, { origin: CONSOLE }, method)
    return [statusCode, headers['access-control-allow-origin'], headers.vary]
  }
  for (const [status, path, method] of [
    [200, '/health'],
    [200, '/openapi.json'],
    [401, '/instances'],
    [401, '/v2/'],
    [404, '/nothing'],
    [405, '/health', 'PUT'],
    [400, '/instances/%zz'],
  ] as const) {
    assert.deepEqual(await told(path, method), [status, CONSOLE, 'origin'], path)
  }
  assert.equal((await get('/health', { origin: 'https://evil.example' })).headers['access-control-allow-origin'], undefined)
  const closing = server.close()
  const { statusCode, headers } = await server.tcp.inject({ url: '/health', headers: { origin: CONSOLE } })
  assert.deepEqual([statusCode, headers['access-control-allow-origin']], [503, CONSOLE])
  await closing
})

test('a preflight is answered for pages that may ask, without a token', async (t) => {
  const { get } = await house(t)
  const asks = { 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization,content-type,x-stainless-os' }
  const yes = await get('/instances', { ...asks, origin: CONSOLE }, 'OPTIONS')
  assert.equal(yes.statusCode, 204)
  assert.equal(yes.headers['access-control-allow-origin'], CONSOLE)
  assert.equal(yes.headers['access-control-allow-headers'], 'authorization,content-type,x-stainless-os')
  assert.match(String(yes.headers['access-control-allow-methods']), /POST/)
  const no = await get('/instances', { ...asks, origin: 'https://evil.example' }, 'OPTIONS')
  assert.deepEqual([no.statusCode, no.headers['access-control-allow-origin']], [403, undefined])
  assert.equal((await get('/instances', {}, 'OPTIONS')).statusCode, 405)
})

test('bad tokens from one address are answered 429 after a while, a good one from there goes on', async (t) => {
  const { server, token } = await house(t)
  const { token: bearer } = await token('instance:read')
  const ask = (authorization?: string) =>
    server.tcp.inject({ url: '/instances', remoteAddress: '192.0.2.7', headers: authorization === undefined ? {} : { authorization } })
  const answers = []
  for (let n = 0; n < 40; n++) answers.push(await ask(n % 2 === 0 ? undefined : 'Bearer a.b.c'))
  assert.equal(answers[0]?.statusCode, 401)
  const last = answers.at(-1)
  assert.deepEqual([last?.statusCode, last?.json().code, last?.headers['retry-after']], [429, 'rate_limited', '3'])
  assert.equal((await ask(`Bearer ${bearer}`)).statusCode, 200)
})
