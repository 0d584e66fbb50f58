/**
 * The proxy of one instance, without its process: what its guest asks of hosts that a credential is for is opened here, and goes on with the
 * headers that carry the real values.
 *
 *   guest ─ CONNECT a host with credentials ─► TLS ends here, by a certificate of the instance's authority
 *                                              ─ headers set ─► TLS to the host, its own certificate verified ─► host
 *         ─ CONNECT any other ───────────────► passed on unread, as long as it is TLS
 *         ─ http:// ─────────────────────────► passed on as it is: what is not encrypted carries no secret
 *
 * The guest is hostile, and so may hosts be. A value goes to the host that was connected to and has proved its name, in a request that names
 * that host, and nowhere else: not into an error, not into a log.
 */
import { createServer, Agent as HttpAgent, type IncomingMessage, request as requestHttp, type Server, type ServerResponse } from 'node:http'
import { Agent as HttpsAgent, request as requestHttps } from 'node:https'
import { connect, isIP, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { createSecureContext, type SecureContext, TLSSocket } from 'node:tls'
import { type Authority, Issuer } from './certificates.ts'
import { type Credentials, headersFor, isMediated } from './credentials.ts'
import { hostNameOf } from './hosts.ts'
import { assertReachable, lookupOf, type MayReach, Unreachable } from './reach.ts'

/** What is mediated, for whom. */
export interface Mediation {
  readonly authority: Authority
  readonly credentials: Credentials
  /** The real values, by the names of the credentials' sources. */
  readonly values: Readonly<Record<string, string>>
}

export interface MediatorUses {
  readonly mayReach: MayReach
  /** Whom hosts are verified by; undefined: those that Node trusts. */
  readonly trusted?: readonly string[]
  /** For tests. */
  readonly lookup?: Parameters<typeof lookupOf>[1]
}

interface Target {
  readonly host: string
  readonly port: number
}

const CONNECTIONS_MAX = 1024
// Requests of one connection come without waiting for each other (RFC 9112, 9.3.2): connections alone bound nothing.
const EXCHANGES_MAX = 256
const KEPT_MAX = 64
const KEPT_MS = 60_000
const CONNECT_LIMIT_MS = 30_000
// From a tunnel's beginning to what a guest says in it.
const OPENING_LIMIT_MS = 30_000
// From the end of a host's connection to the end of its guest's.
const LINGER_MS = 30_000
const CERTIFICATES_MAX = 256
const CERTIFICATE_LASTS_MS = 86_400_000

export class Mediator implements Disposable {
  readonly #uses: MediatorUses
  readonly #lookup: ReturnType<typeof lookupOf>
  /** What a guest says to the proxy itself, and what it says to a host within a tunnel that is opened. */
  readonly #outer: Server
  readonly #inner: Server
  readonly #targets = new WeakMap<Duplex, Target>()
  readonly #open = new Set<Duplex>()
  readonly #plain: HttpAgent
  readonly #secure: HttpsAgent
  #exchanges = 0
  readonly #contexts = new Map<string, { readonly context: SecureContext; readonly issuedAtMs: number }>()
  #mediation: { readonly issuer: Issuer; readonly of: Mediation } | undefined

  constructor(uses: MediatorUses) {
    this.#uses = uses
    this.#lookup = lookupOf(uses.mayReach, uses.lookup)
    // The time is that of connections which are kept for later; one that is in use is left alone.
    const keeping = { keepAlive: true, timeout: KEPT_MS }
    this.#plain = new HttpAgent(keeping)
    this.#secure = new HttpsAgent({ ...keeping, ...(uses.trusted && { ca: [...uses.trusted] }) })
    // Uploads and streams take as long as they take.
    const settings = { requestTimeout: 0, keepAliveTimeout: 60_000 }
    this.#outer = createServer(settings, (request, response) => guarded(response, () => this.#passPlain(request, response)))
    this.#outer.on('connect', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
      this.#tunnel(request, socket, head).catch(() => socket.destroy())
    })
    this.#inner = createServer(settings, (request, response) => guarded(response, () => this.#passSecure(request, response)))
    this.#inner.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
      try {
        this.#passUpgrade(request, socket, head)
      } catch {
        refuse(socket, 400, MALFORMED)
      }
    })
    for (const server of [this.#outer, this.#inner]) {
      server.on('clientError', (_error: Error, socket: Duplex) => socket.destroy())
    }
  }

  /** From the next request on. A value that was rotated is not sent again. */
  configure(mediation: Mediation): void {
    const before = this.#mediation
    const issuer = before?.of.authority.key === mediation.authority.key ? before.issuer : new Issuer(mediation.authority)
    if (issuer !== before?.issuer) this.#contexts.clear()
    this.#mediation = { issuer, of: mediation }
  }

  /** A connection of the guest's, which may end in one direction (`allowHalfOpen`). It is closed when the guest has too many. */
  accept(socket: Socket): void {
    if (this.#open.size >= CONNECTIONS_MAX) {
      socket.destroy()
      return
    }
    this.#hold(socket)
    this.#outer.emit('connection', socket)
  }

  /** Every connection ends. */
  [Symbol.dispose](): void {
    for (const socket of this.#open) socket.destroy()
    this.#plain.destroy()
    this.#secure.destroy()
    this.#outer.close()
    this.#inner.close()
  }

  // CONNECT

  async #tunnel({ url = '' }: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    socket.on('error', () => socket.destroy())
    const target = targetOf(url)
    if (this.#mediation === undefined) return refuse(socket, 503, 'This instance’s credentials are not here yet: try again')
    if (target === undefined) return refuse(socket, 400, 'CONNECT takes a host and a port')
    if (head.length > 0) socket.unshift(head)
    const name = hostNameOf(target.host)
    if (name !== undefined && isMediated(name, this.#mediation.of.credentials)) return this.#openTls(socket, { ...target, host: name })
    await this.#passTunnel(socket, target)
  }

  /** The guest's TLS ends here, and its requests are read. */
  #openTls(socket: Duplex, target: Target): void {
    socket.write(ESTABLISHED)
    const tls = new TLSSocket(socket as Socket, {
      isServer: true,
      secureContext: this.#contextFor(target.host),
      ALPNProtocols: ['http/1.1'],
    })
    const limit = setTimeout(() => tls.destroy(), OPENING_LIMIT_MS)
    tls.once('close', () => clearTimeout(limit))
    tls.on('error', () => tls.destroy())
    tls.once('secure', () => {
      clearTimeout(limit)
      this.#targets.set(tls, target)
      this.#inner.emit('connection', tls)
    })
  }

  /** What no credential is for is not read: only that it is TLS, since what closes direct connections closes all but HTTP and HTTPS. */
  async #passTunnel(socket: Duplex, target: Target): Promise<void> {
    let upstream: Socket
    try {
      upstream = await this.#dial(target)
    } catch (error) {
      return refuse(socket, ...failureOf(target.host, error))
    }
    if (socket.destroyed) return void upstream.destroy()
    this.#hold(upstream)
    socket.write(ESTABLISHED)
    const limit = setTimeout(() => socket.destroy(), OPENING_LIMIT_MS)
    socket.once('close', () => clearTimeout(limit))
    socket.once('data', (first: Buffer) => {
      clearTimeout(limit)
      socket.pause()
      if (first[0] !== TLS_HANDSHAKE) return void socket.destroy()
      socket.unshift(first)
      join(socket, upstream)
    })
    socket.once('close', () => upstream.destroy())
    upstream.once('close', () => {
      if (!upstream.readableEnded) socket.destroy()
    })
  }

  #dial({ host, port }: Target): Promise<Socket> {
    const { promise, resolve, reject } = Promise.withResolvers<Socket>()
    try {
      assertReachable(host, this.#uses.mayReach)
    } catch (error) {
      return Promise.reject(error)
    }
    const socket = connect({ host, port, lookup: this.#lookup, allowHalfOpen: true })
    const limit = setTimeout(() => socket.destroy(new Error('no connection in time')), CONNECT_LIMIT_MS)
    socket.once('error', reject)
    socket.once('connect', () => {
      clearTimeout(limit)
      socket.off('error', reject)
      resolve(socket)
    })
    socket.once('close', () => clearTimeout(limit))
    return promise
  }

  // Requests

  /** `GET http://host/path`, as a proxy is asked. */
  #passPlain(request: IncomingMessage, response: ServerResponse): void {
    const url = URL.canParse(request.url ?? '') ? new URL(request.url ?? '') : undefined
    if (url?.protocol !== 'http:' || url.username !== '' || url.password !== '') {
      answer(response, 400, 'This is the proxy of an instance: it takes http:// URLs and CONNECT')
      return
    }
    const host = url.hostname.replace(/^\[|\]$/g, '')
    const target = { host, port: Number(url.port || 80) }
    try {
      assertReachable(host, this.#uses.mayReach)
    } catch (error) {
      answer(response, ...failureOf(host, error))
      return
    }
    if (!this.#begin(response, this.#plain)) return
    const headers = { ...endToEnd(request.headersDistinct), host: url.host }
    const options = { ...target, method: request.method, path: `${url.pathname}${url.search}`, agent: this.#plain, lookup: this.#lookup }
    exchange(request, response, host, requestHttp({ ...options, headers: framed(request, headers) }))
  }

  #passSecure(request: IncomingMessage, response: ServerResponse): void {
    const asked = this.#askedOf(request)
    if ('status' in asked) {
      answer(response, asked.status, asked.text)
      return
    }
    if (!this.#begin(response, this.#secure)) return
    const { target, headers } = asked
    exchange(request, response, target.host, requestHttps({ ...this.#optionsOf(request, target), headers: framed(request, headers) }))
  }

  /** A WebSocket, or what else begins as a request. */
  #passUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    socket.on('error', () => socket.destroy())
    const asked = this.#askedOf(request)
    if ('status' in asked) {
      refuse(socket, asked.status, asked.text)
      return
    }
    // A body has an end that both sides must see alike, and what follows an upgrade has none.
    const { 'content-length': length = '0', 'transfer-encoding': coding } = request.headers
    if (Number(length) !== 0 || coding !== undefined) {
      refuse(socket, 400, 'A request for an upgrade that has a body is not passed on')
      return
    }
    const { target, headers } = asked
    const upgrade = { ...headers, connection: 'upgrade', upgrade: request.headers.upgrade ?? '' }
    const upstream = requestHttps({ ...this.#optionsOf(request, target), headers: upgrade })
    upstream.once('error', (error) => refuse(socket, ...failureOf(target.host, error)))
    upstream.once('response', (response: IncomingMessage) => {
      // It was not taken up: the answer is passed on, and the connection ends with it.
      socket.write(headOf(response, { ...endToEnd(response.headersDistinct), connection: ['close'] }), 'latin1')
      response.pipe(socket)
    })
    upstream.once('upgrade', (response: IncomingMessage, other: Duplex, rest: Buffer) => {
      other.on('error', () => socket.destroy())
      this.#hold(other)
      socket.write(
        headOf(response, { ...endToEnd(response.headersDistinct), connection: ['upgrade'], upgrade: [response.headers.upgrade ?? ''] }),
      )
      if (rest.length > 0) other.unshift(rest)
      if (head.length > 0) socket.unshift(head)
      join(socket, other)
    })
    socket.once('close', () => upstream.destroy())
    upstream.end()
  }

  /** What is sent to the host, headers set; or why nothing is. */
  #askedOf(request: IncomingMessage): { target: Target; headers: Headers } | { status: number; text: string } {
    const target = this.#targets.get(request.socket)
    const mediation = this.#mediation?.of
    if (target === undefined || mediation === undefined)
      return { status: 503, text: 'This instance’s credentials are not here: connect again' }
    // Servers that speak for many hosts choose by this name, and the value is for one of them.
    const named = targetOf(request.headers.host ?? '', target.port)
    if (named === undefined || hostNameOf(named.host) !== target.host || named.port !== target.port) {
      return { status: 421, text: `This connection is to ${target.host}, and the request names another host` }
    }
    // Its answer would be the request, with the values in it (RFC 9110, 9.3.8).
    if (request.method === 'TRACE') return { status: 405, text: 'TRACE is not passed on' }
    if (!request.url?.startsWith('/') && request.url !== '*') return { status: 400, text: 'The request names no path' }
    const set = headersFor(target.host, mediation.credentials, mediation.values)
    return {
      target,
      headers: { ...endToEnd(request.headersDistinct), host: request.headers.host ?? target.host, ...Object.fromEntries(set) },
    }
  }

  /** False when the guest has too many requests under way: this one is answered. */
  #begin(response: ServerResponse, agent: HttpAgent | HttpsAgent): boolean {
    if (this.#exchanges >= EXCHANGES_MAX) {
      answer(response, 503, 'This instance has too many requests under way: try again')
      return false
    }
    this.#exchanges++
    response.once('close', () => this.#exchanges--)
    // What is kept for later gives way to what is wanted now.
    const kept = Object.values(agent.freeSockets).flatMap((sockets) => sockets ?? [])
    if (kept.length > KEPT_MAX) for (const socket of kept) socket.destroy()
    return true
  }

  #optionsOf({ method, url }: IncomingMessage, { host, port }: Target) {
    return { host, port, servername: host, method, path: url, agent: this.#secure, lookup: this.#lookup }
  }

  #contextFor(host: string): SecureContext {
    const nowMs = Date.now()
    const known = this.#contexts.get(host)
    if (known && Math.abs(nowMs - known.issuedAtMs) < CERTIFICATE_LASTS_MS) return known.context
    const issuer = this.#mediation?.issuer
    if (issuer === undefined) throw new Error('There is no authority')
    const context = createSecureContext({ key: issuer.key, cert: issuer.issue(host, nowMs) })
    const [oldest] = this.#contexts.keys()
    if (oldest !== undefined && this.#contexts.size >= CERTIFICATES_MAX) this.#contexts.delete(oldest)
    this.#contexts.set(host, { context, issuedAtMs: nowMs })
    return context
  }

  #hold(socket: Duplex): void {
    this.#open.add(socket)
    socket.once('close', () => this.#open.delete(socket))
    socket.on('error', () => socket.destroy())
  }
}

type Headers = Record<string, string | string[]>

const ESTABLISHED = 'HTTP/1.1 200 Connection established\r\n\r\n'
/** The first byte of a record in which a handshake is (RFC 8446, 5.1). */
const TLS_HANDSHAKE = 0x16

/** `host:port`, or `[address]:port`. */
function targetOf(authority: string, port?: number): Target | undefined {
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([^\s:@/?#[\]]+))(?::(\d{1,5}))?$/.exec(authority)
  const host = match?.[1] ?? match?.[2]
  const number = match?.[3] === undefined ? port : Number(match[3])
  if (host === undefined || number === undefined || number < 1 || number > 65_535) return undefined
  if (match?.[1] !== undefined && isIP(host) !== 6) return undefined
  return { host, port: number }
}

/** Of one connection only (RFC 9110, 7.6.1), and what is for the proxy itself. */
const HOP_BY_HOP = [
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  // The guest was told to go on already.
  'expect',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]

/** Headers that are passed on. */
function endToEnd(headers: NodeJS.Dict<string[]>): Record<string, string[]> {
  const named = (headers.connection ?? []).join(',').toLowerCase().split(',')
  const dropped = new Set([...HOP_BY_HOP, ...named.map((name) => name.trim())])
  return Object.fromEntries(Object.entries(headers).flatMap(([name, values]) => (values && !dropped.has(name) ? [[name, values]] : [])))
}

/**
 * A body goes out as it came in, by its length or in chunks, whatever the method, and whatever the guest says of these headers: Node frames the
 * bodies of some methods only (nodejs/node#27880), and what the host does not take for the body of this request would be its next request.
 */
function framed({ headers: { 'content-length': length, 'transfer-encoding': coding } }: IncomingMessage, headers: Headers): Headers {
  const { 'content-length': _, ...rest } = headers
  if (coding !== undefined) return { ...rest, 'transfer-encoding': 'chunked' }
  return length === undefined ? rest : { ...rest, 'content-length': length }
}

/** Nothing that a guest can write ends its proxy. */
function guarded(response: ServerResponse, pass: () => void): void {
  try {
    pass()
  } catch {
    answer(response, 400, MALFORMED)
  }
}

const MALFORMED = 'The request cannot be passed on'

function exchange(request: IncomingMessage, response: ServerResponse, host: string, upstream: ReturnType<typeof requestHttp>): void {
  response.sendDate = false
  upstream.once('response', (answered: IncomingMessage) => {
    answered.once('error', () => response.destroy())
    try {
      response.writeHead(answered.statusCode ?? 502, answered.statusMessage, endToEnd(answered.headersDistinct))
    } catch {
      upstream.destroy()
      answer(response, 502, `${host} gave an answer that cannot be passed on`)
      return
    }
    // So that a stream begins with its head.
    response.flushHeaders()
    answered.pipe(response)
  })
  upstream.on('error', (error) => {
    if (response.headersSent) response.destroy()
    else answer(response, ...failureOf(host, error))
  })
  response.once('close', () => upstream.destroy())
  request.once('error', () => upstream.destroy())
  request.pipe(upstream)
}

/** What one side has said is heard by the other to its end, also when the first has gone by then. */
function join(a: Duplex, b: Duplex): void {
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    from.pipe(to)
    from.once('close', () => {
      if (!from.readableEnded) to.destroy()
      else linger(to)
    })
  }
}

/** No one takes what it still says. */
function linger(socket: Duplex): void {
  if (socket.destroyed) return
  socket.resume()
  const limit = setTimeout(() => socket.destroy(), LINGER_MS)
  socket.once('close', () => clearTimeout(limit))
}

function answer(response: ServerResponse, status: number, text: string): void {
  response.writeHead(status, REASONS[status] ?? 'Error', { 'content-type': 'text/plain; charset=utf-8', connection: 'close' })
  response.end(`dormouse: ${text}\n`)
}

function refuse(socket: Duplex, status: number, text: string): void {
  const body = `dormouse: ${text}\n`
  const head = [
    `HTTP/1.1 ${status} ${REASONS[status] ?? 'Error'}`,
    'content-type: text/plain; charset=utf-8',
    `content-length: ${Buffer.byteLength(body)}`,
  ]
  socket.end(`${head.join('\r\n')}\r\nconnection: close\r\n\r\n${body}`)
}

const REASONS: Readonly<Record<number, string>> = {
  400: 'Bad Request',
  403: 'Forbidden',
  405: 'Method Not Allowed',
  421: 'Misdirected Request',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
}

function headOf({ statusCode, statusMessage }: IncomingMessage, headers: Record<string, string[]>): string {
  const lines = Object.entries(headers).flatMap(([name, values]) => values.map((value) => `${name}: ${value}`))
  return `HTTP/1.1 ${statusCode} ${statusMessage}\r\n${lines.join('\r\n')}\r\n\r\n`
}

/** Told by its code alone: what a library says may hold what it was given. */
function failureOf(host: string, error: unknown): [status: number, text: string] {
  if (error instanceof Unreachable) return [403, `${host} is closed to instances`]
  const { code } = error as { code?: unknown }
  return [502, `${host} could not be reached${typeof code === 'string' ? `: ${code}` : ''}`]
}
