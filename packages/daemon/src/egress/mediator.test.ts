/** The proxy on loopback: a guest's connections on one side, hosts with certificates of their own on the other. */
import assert from 'node:assert/strict'
import type { LookupAddress } from 'node:dns'
import { once } from 'node:events'
import { createServer as createHttp, type IncomingMessage, request as requestHttp, type ServerResponse } from 'node:http'
import { createServer as createHttps } from 'node:https'
import { type AddressInfo, connect as connectTcp, createServer as createTcp, type Server, type Socket } from 'node:net'
import { type TestContext, test } from 'node:test'
import { connect as connectTls, type TLSSocket } from 'node:tls'
import { type Authority, Issuer, makeAuthority } from './certificates.ts'
import type { Credentials } from './credentials.ts'
import { type Mediation, Mediator } from './mediator.ts'

const SECRET = 's3cret-of-the-host'
const outside = makeAuthority('outside', undefined, Date.now())
const own = makeAuthority('web', ['api.example.com'], Date.now())
const credentials: Credentials = {
  KEY: { source: 'REAL_KEY', inject: [{ header: 'authorization', format: `Bearer \${value}`, hosts: ['api.example.com'] }] },
}
const mediation = (value = SECRET): Mediation => ({ authority: own, credentials, values: { REAL_KEY: value } })

interface Seen {
  readonly method: string
  readonly url: string
  readonly headers: IncomingMessage['headers']
  readonly body: string
  readonly port: number | undefined
}

async function listen(t: TestContext, server: Server): Promise<number> {
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined).on('close', () => sockets.delete(socket))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.close()
    for (const socket of sockets) socket.destroy()
  })
  return (server.address() as AddressInfo).port
}

/** A host that tells what it was asked, over TLS with a certificate for `name`, or in the clear. */
async function hostOf(t: TestContext, name: string | undefined) {
  const seen: Seen[] = []
  const issuer = new Issuer(outside)
  const onRequest: Parameters<typeof createHttp>[1] = async (request, response) => {
    const body = Buffer.concat(await Array.fromAsync(request as AsyncIterable<Buffer>)).toString()
    const { method = '', url = '', headers, socket } = request
    seen.push({ method, url, headers, body, port: socket.remotePort })
    response.writeHead(207, 'Many Things', { 'x-of-host': ['1', '2'], connection: 'close, x-hop', 'x-hop': 'y', trailer: 'x-late' })
    response.end(`${method} ${url} ${body}`)
  }
  const server =
    name === undefined ? createHttp(onRequest) : createHttps({ key: issuer.key, cert: issuer.issue(name, Date.now()) }, onRequest)
  server.on('upgrade', (request, socket: Socket) => {
    seen.push({ method: 'GET', url: request.url ?? '', headers: request.headers, body: '', port: undefined })
    socket.write('HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n')
    socket.pipe(socket)
  })
  return { port: await listen(t, server), seen, server }
}

/** A proxy whose names are all on loopback, but for `closed.example.com`, which is where no instance goes. */
async function proxyOf(t: TestContext, { knows = mediation() }: { knows?: Mediation | 'nothing' } = {}) {
  const lookup = (name: string, _options: unknown, callback: (error: null, addresses: LookupAddress[]) => void) =>
    callback(null, [{ address: name === 'closed.example.com' ? '127.0.0.9' : '127.0.0.1', family: 4 }])
  const mediator = new Mediator({
    mayReach: (address) => address === '127.0.0.1',
    trusted: [outside.certificate],
    lookup: lookup as unknown as NonNullable<ConstructorParameters<typeof Mediator>[0]['lookup']>,
  })
  if (knows !== 'nothing') mediator.configure(knows)
  const port = await listen(
    t,
    createTcp({ allowHalfOpen: true }, (socket) => mediator.accept(socket)),
  )
  t.after(() => mediator[Symbol.dispose]())
  return { mediator, port }
}

/** CONNECT, as a guest's client says it: the status, and the socket that is a tunnel when it is 200. */
async function tunnel(port: number, authority: string): Promise<{ status: number | undefined; text: string; socket: Socket }> {
  const asking = requestHttp({ port, host: '127.0.0.1', method: 'CONNECT', path: authority, agent: false })
  asking.end()
  const [response, socket, head] = (await once(asking, 'connect')) as [IncomingMessage, Socket, Buffer]
  socket.on('error', () => undefined)
  const text = response.statusCode === 200 ? '' : [head, ...(await Array.fromAsync(socket as AsyncIterable<Buffer>))].join('')
  return { status: response.statusCode, text, socket }
}

async function secured(port: number, authority: string, trusted: Authority = own): Promise<TLSSocket> {
  const { status, socket } = await tunnel(port, authority)
  assert.equal(status, 200)
  const tls = connectTls({ socket, servername: authority.replace(/:\d+$/, ''), ca: trusted.certificate, ALPNProtocols: ['h2', 'http/1.1'] })
  await once(tls, 'secureConnect')
  tls.on('error', () => undefined)
  return tls
}

interface Answer {
  readonly status: number | undefined
  readonly message: string | undefined
  readonly headers: IncomingMessage['headers']
  readonly text: string
}

async function ask(
  line: Socket,
  options: { method?: string; path?: string; headers: Record<string, string | string[]>; body?: string[] },
): Promise<Answer> {
  const { body = [], ...rest } = options
  const asking = requestHttp({ createConnection: () => line, ...rest })
  const answered = once(asking, 'response')
  for (const part of body) asking.write(part)
  asking.end()
  const [response] = (await answered) as [IncomingMessage]
  const text = Buffer.concat(await Array.fromAsync(response as AsyncIterable<Buffer>)).toString()
  return { status: response.statusCode, message: response.statusMessage, headers: response.headers, text }
}

test('a request to a host with a credential goes there with the real value, whatever the guest said itself', async (t) => {
  const host = await hostOf(t, 'api.example.com')
  const { port } = await proxyOf(t)
  const named = `api.example.com:${host.port}`
  const line = await secured(port, named)
  assert.equal(line.alpnProtocol, 'http/1.1')
  const headers = {
    host: named,
    authorization: 'Bearer mock-KEY',
    connection: 'keep-alive, authorization, x-private',
    'x-private': 'p',
    'x-many': ['1', '2'],
  }
  const answer = await ask(line, { method: 'POST', path: '/v1/things?q=1', headers, body: ['one', 'two'] })
  assert.deepEqual([answer.status, answer.message, answer.text], [207, 'Many Things', 'POST /v1/things?q=1 onetwo'])
  assert.deepEqual([answer.headers['x-of-host'], answer.headers['x-hop'], answer.headers.trailer], ['1, 2', undefined, undefined])
  const [seen] = host.seen
  assert.equal(seen?.headers.authorization, `Bearer ${SECRET}`)
  assert.deepEqual([seen?.headers['x-many'], seen?.headers['x-private'], seen?.headers.host], ['1, 2', undefined, named])
  assert.ok(!JSON.stringify(answer).includes(SECRET))
})

test('a value that is rotated is in the next request, on connections that are open too', async (t) => {
  const host = await hostOf(t, 'api.example.com')
  const { mediator, port } = await proxyOf(t)
  const named = `api.example.com:${host.port}`
  const line = await secured(port, named)
  const { socket } = await tunnel(port, named)
  await ask(line, { path: '/', headers: { host: named, connection: 'keep-alive' } })
  mediator.configure(mediation('other'))
  // The tunnel was there before; what is asked in it is asked after.
  const tls = connectTls({ socket, servername: 'api.example.com', ca: own.certificate })
  await once(tls, 'secureConnect')
  await ask(tls, { path: '/', headers: { host: named } })
  assert.deepEqual(
    host.seen.map(({ headers }) => headers.authorization),
    [`Bearer ${SECRET}`, 'Bearer other'],
  )
})

test('a value goes to who has proved to be the host, in a request that names it, and nowhere else', async (t) => {
  const impostor = await hostOf(t, 'evil.example.net')
  const host = await hostOf(t, 'api.example.com')
  const { port } = await proxyOf(t)
  const wrong = await ask(await secured(port, `api.example.com:${impostor.port}`), {
    headers: { host: `api.example.com:${impostor.port}` },
  })
  assert.deepEqual([wrong.status, wrong.text], [502, 'dormouse: api.example.com could not be reached: ERR_TLS_CERT_ALTNAME_INVALID\n'])
  assert.deepEqual(impostor.seen, [])
  for (const named of ['evil.example.net', 'api.example.com:1', 'sub.api.example.com', 'api.example.com@evil.net']) {
    const line = await secured(port, `api.example.com:${host.port}`)
    assert.equal((await ask(line, { headers: { host: named } })).status, 421, named)
  }
  const line = await secured(port, `api.example.com:${host.port}`)
  assert.equal((await ask(line, { method: 'TRACE', headers: { host: `api.example.com:${host.port}` } })).status, 405)
  const other = await secured(port, `api.example.com:${host.port}`)
  assert.equal((await ask(other, { path: 'https://evil.example.net/', headers: { host: `api.example.com:${host.port}` } })).status, 400)
  assert.deepEqual(host.seen, [])
})

test('what no credential is for is passed on unread, and its host is seen as it is', async (t) => {
  const host = await hostOf(t, 'www.example.com')
  const { port } = await proxyOf(t)
  const named = `www.example.com:${host.port}`
  const line = await secured(port, named, outside)
  assert.equal((await ask(line, { path: '/x', headers: { host: named, authorization: 'Bearer mine' } })).status, 207)
  assert.equal(host.seen[0]?.headers.authorization, 'Bearer mine')
  // A pattern's own host, by its address: no certificate could name it, and no value is for it.
  const { status, socket } = await tunnel(port, `127.0.0.1:${host.port}`)
  assert.equal(status, 200)
  const tls = connectTls({ socket, servername: 'www.example.com', ca: outside.certificate })
  await once(tls, 'secureConnect')
})

test('a tunnel carries TLS and nothing else', async (t) => {
  let received = ''
  const port = await listen(
    t,
    createTcp((socket) => {
      socket.on('data', (data) => {
        received += data
      })
    }),
  )
  const proxy = await proxyOf(t)
  const { status, socket } = await tunnel(proxy.port, `www.example.com:${port}`)
  assert.equal(status, 200)
  socket.write('SSH-2.0-OpenSSH_9.2\r\n')
  await once(socket, 'close')
  assert.equal(received, '')
})

test('what is not encrypted is passed on as it is, without a value', async (t) => {
  const host = await hostOf(t, undefined)
  const { port } = await proxyOf(t)
  const plain = (path: string, headers = {}) =>
    ask(connectTcp(port, '127.0.0.1'), { path, headers: { host: 'wrong.example.com', ...headers } })
  const named = `api.example.com:${host.port}`
  const answer = await plain(`http://${named}/a?b`, { authorization: 'Bearer mock-KEY', 'proxy-authorization': 'Basic x' })
  assert.deepEqual([answer.status, answer.text], [207, 'GET /a?b '])
  const { headers } = host.seen[0] as Seen
  assert.deepEqual([headers.host, headers.authorization, headers['proxy-authorization']], [named, 'Bearer mock-KEY', undefined])
  for (const path of [`https://${named}/`, '/', 'ftp://x/', 'http://u:p@api.example.com/', '*'])
    assert.equal((await plain(path)).status, 400, path)
  assert.equal(host.seen.length, 1)
})

test('no guest goes where it may not by way of its proxy, by name or by address', async (t) => {
  const { port } = await proxyOf(t)
  for (const authority of ['closed.example.com:443', '127.0.0.9:443', '[::1]:443', '[::ffff:127.0.0.1]:443']) {
    const { status, text } = await tunnel(port, authority)
    assert.equal(status, 403, authority)
    assert.match(text, /is closed to instances/)
  }
  for (const path of ['http://closed.example.com/', 'http://127.0.0.9/', 'http://[::1]:1/', 'http://2130706441/', 'http://0x7f.9/']) {
    const { status } = await ask(connectTcp(port, '127.0.0.1'), { path, headers: { host: 'x' } })
    assert.equal(status, 403, path)
  }
  for (const authority of ['api.example.com', 'api.example.com:0', 'api.example.com:65536', 'a@b:1', '[x]:1', ':443']) {
    assert.equal((await tunnel(port, authority)).status, 400, authority)
  }
})

test('an upgrade of a mediated connection is passed on, headers set', async (t) => {
  const host = await hostOf(t, 'api.example.com')
  const { port } = await proxyOf(t)
  const named = `api.example.com:${host.port}`
  const line = await secured(port, named)
  const asking = requestHttp({
    createConnection: () => line,
    path: '/ws',
    headers: { host: named, connection: 'Upgrade', upgrade: 'echo' },
  })
  asking.end()
  const [response, socket] = (await once(asking, 'upgrade')) as [IncomingMessage, Socket, Buffer]
  assert.deepEqual([response.statusCode, response.headers.upgrade], [101, 'echo'])
  socket.write('ping')
  assert.equal(`${(await once(socket, 'data'))[0]}`, 'ping')
  assert.equal(host.seen[0]?.headers.authorization, `Bearer ${SECRET}`)
  assert.ok(!line.destroyed)
})

test('before it knows what to do it does nothing, and a failure tells no value', async (t) => {
  const fresh = await proxyOf(t, { knows: 'nothing' })
  const early = await tunnel(fresh.port, 'api.example.com:443')
  assert.deepEqual([early.status, early.text], [503, 'dormouse: This instance’s credentials are not here yet: try again\n'])
  const { port } = await proxyOf(t)
  const closed = createTcp()
  const gone = await listen(t, closed)
  closed.close()
  await once(closed, 'close')
  const named = `api.example.com:${gone}`
  const { status, text } = await ask(await secured(port, named), { headers: { host: named } })
  assert.deepEqual([status, text], [502, 'dormouse: api.example.com could not be reached: ECONNREFUSED\n'])
  assert.equal((await tunnel(port, `www.example.com:${gone}`)).status, 502)
})

/** A host that keeps its connections, and tells apart what it takes for requests. */
async function keepingHost(t: TestContext) {
  const seen: string[] = []
  const issuer = new Issuer(outside)
  const server = createHttps({ key: issuer.key, cert: issuer.issue('api.example.com', Date.now()) }, async (request, response) => {
    const body = Buffer.concat(await Array.fromAsync(request as AsyncIterable<Buffer>)).toString()
    seen.push(`${request.method} ${request.url} ${body}`)
    response.end('x')
  })
  server.on('clientError', (_error, socket) => {
    seen.push('nonsense')
    socket.destroy()
  })
  return { port: await listen(t, server), seen }
}

test('the body of a request is never another request to its host, whatever the guest says of how it is framed', async (t) => {
  const { port: hostPort, seen } = await keepingHost(t)
  const { port } = await proxyOf(t)
  const named = `api.example.com:${hostPort}`
  const hidden = `POST /notes HTTP/1.1\r\nhost: ${named}\r\ncontent-length: 4000\r\n\r\n`
  const wanted: string[] = []
  for (const method of ['GET', 'HEAD', 'DELETE', 'OPTIONS', 'POST']) {
    for (const chunks of [false, true]) {
      const framing = chunks ? 'transfer-encoding: chunked' : `content-length: ${hidden.length}`
      const body = chunks ? `${hidden.length.toString(16)}\r\n${hidden}\r\n0\r\n\r\n` : hidden
      const line = await secured(port, named)
      const named2 = `connection: content-length, transfer-encoding, close`
      line.write(`${method} /${chunks} HTTP/1.1\r\nhost: ${named}\r\n${named2}\r\n${framing}\r\n\r\n${body}`)
      await Array.fromAsync(line as AsyncIterable<Buffer>)
      wanted.push(`${method} /${chunks} ${hidden}`)
      // On the connection that was kept.
      await ask(await secured(port, named), { path: '/next', headers: { host: named } })
      wanted.push('GET /next ')
    }
  }
  assert.deepEqual(seen, wanted)
})

test('an upgrade with a body is not passed on', async (t) => {
  const host = await hostOf(t, 'api.example.com')
  const { port } = await proxyOf(t)
  const named = `api.example.com:${host.port}`
  for (const framing of ['content-length: 4', 'transfer-encoding: chunked']) {
    const line = await secured(port, named)
    line.write(`GET /ws HTTP/1.1\r\nhost: ${named}\r\nconnection: upgrade\r\nupgrade: echo\r\n${framing}\r\n\r\n`)
    assert.match(`${(await once(line, 'data'))[0]}`, /^HTTP\/1\.1 400 /)
    line.destroy()
  }
  assert.deepEqual(host.seen, [])
})

test('of a guest that asks without waiting for answers only so many requests are under way', async (t) => {
  const held: ServerResponse[] = []
  let connections = 0
  const server = createHttp((_request, response) => void held.push(response)).on('connection', () => connections++)
  const hostPort = await listen(t, server)
  const { port } = await proxyOf(t)
  const named = `www.example.com:${hostPort}`
  const guest = connectTcp(port, '127.0.0.1').on('error', () => undefined)
  const request = (more = '') => `GET http://${named}/ HTTP/1.1\r\nhost: ${named}\r\n${more}\r\n`
  guest.write(`${request().repeat(299)}${request('connection: close\r\n')}`)
  const said = Array.fromAsync(guest as AsyncIterable<Buffer>)
  while (held.length < 256) await new Promise(setImmediate)
  for (const response of held) response.end('x')
  const statuses = Buffer.concat(await said)
    .toString()
    .match(/HTTP\/1\.1 \d+/g)
  // The first that is refused ends its connection.
  assert.deepEqual(statuses, [...Array(256).fill('HTTP/1.1 200'), 'HTTP/1.1 503'])
  assert.equal(connections, 256)
})

test('hosts are spoken to over connections that are kept, and end with the proxy', async (t) => {
  const host = await hostOf(t, 'api.example.com')
  host.server.removeAllListeners('request').on('request', (request: IncomingMessage, response) => {
    host.seen.push({ method: '', url: '', headers: {}, body: '', port: request.socket.remotePort })
    response.end('x')
  })
  const { mediator, port } = await proxyOf(t)
  const named = `api.example.com:${host.port}`
  for (const _ of [1, 2]) assert.equal((await ask(await secured(port, named), { headers: { host: named } })).text, 'x')
  assert.equal(new Set(host.seen.map((one) => one.port)).size, 1)
  const line = await secured(port, named)
  const ended = once(line, 'close')
  mediator[Symbol.dispose]()
  await ended
})

test('what a host has said is heard to its end, when it has long gone and the guest is slow', async (t) => {
  const long = Buffer.alloc(4 << 20, 'x')
  const port = await listen(
    t,
    createTcp({ allowHalfOpen: true }, (socket) => {
      socket.end(long)
      socket.resume()
    }),
  )
  const proxy = await proxyOf(t)
  const { status, socket } = await tunnel(proxy.port, `www.example.com:${port}`)
  assert.equal(status, 200)
  socket.write(Buffer.of(0x16))
  socket.end()
  let heard = 0
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    heard += chunk.length
    await new Promise(setImmediate)
  }
  assert.equal(heard, long.length)
})

test('nothing that a guest or a host can write ends the proxy', async (t) => {
  const answers = [
    'HTTP/1.1 200 a\x01b\r\n\r\n',
    'HTTP/1.1 200 OK\r\nx: \x01\r\n\r\n',
    'HTTP/1.1 999999 x\r\n\r\n',
    'nonsense\r\n\r\n',
    'HTTP/1.1 099 x\r\n\r\n',
    '',
  ]
  let next = 0
  const port = await listen(
    t,
    createTcp((socket) => socket.once('data', () => socket.end(answers[next++ % answers.length] ?? '', 'latin1'))),
  )
  const proxy = await proxyOf(t)
  const say = async (text: string): Promise<string> => {
    const socket = connectTcp(proxy.port, '127.0.0.1').on('error', () => undefined)
    socket.write(text, 'latin1')
    return (await Array.fromAsync(socket.on('error', () => undefined) as AsyncIterable<Buffer>).catch(() => [])).join('')
  }
  for (const _ of answers) {
    const said = await say(`GET http://www.example.com:${port}/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`)
    assert.match(said, /^HTTP\/1\.1 (502|200) /)
  }
  for (const line of [
    'GET http://x/\xff\x01 HTTP/1.1',
    'GET http://x/ HTTP/9',
    '\x16\x03\x01',
    'CONNECT \xff:1 HTTP/1.1',
    'GET http://[x/ HTTP/1.1',
  ]) {
    await say(`${line}\r\nhost: x\r\nx: \xff\x02\r\nconnection: close\r\n\r\n`)
  }
  assert.match(await say('GET / HTTP/1.1\r\nhost: x\r\n\r\n'), /^HTTP\/1\.1 400 /)
})
