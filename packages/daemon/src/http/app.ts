/** One Fastify over the route table. Each of its defaults that would guess for the caller is decided here (docs/decisions/0050). */

import { randomUUID } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { endpoint, type RouteId } from '@dormouse/api/endpoints.ts'
import { errorsOf, statusOf, statusOn } from '@dormouse/api/error-table.ts'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import { decodeQuery, typedQuery } from '@dormouse/api/query.ts'
import { ROUTE_IDS, type Route, routes } from '@dormouse/api/routes.ts'
import websocket from '@fastify/websocket'
import { type FastifyInstance, type FastifyReply, type FastifyRequest, fastify, LogController } from 'fastify'
import type { AuditedRequest, AuditFacts } from '../audit/audit.ts'
import type { Logger } from '../log.ts'
import { API_PAGE_HEADERS, apiPage } from './api-page.ts'
import { type Authority, auditedCaller, authorize, type Caller, hostCaller } from './auth.ts'
import { checkInput } from './check-input.ts'
import { BINARY_FRAME_MAX } from './frame-room.ts'
import type { Asked, Handlers } from './handler.ts'
import { whileTokenHolds } from './held-transfer.ts'
import { type BodyLimits, readJsonBody, refuseEncoded } from './json-body.ts'
import { JsonBytes } from './json-bytes.ts'
import type { Metrics } from './metrics.ts'
import type { Origins } from './origins.ts'
import { type Refusal, refusalOf } from './problems.ts'
import type { RefusedCallers } from './refused-callers.ts'
import { registryRoutes } from './registry.ts'
import { registryOperation } from './registry-operation.ts'
import { methodsAt } from './stream-at.ts'
import { type SseBatch, sseStream } from './streams/sse.ts'
import type { Tickets } from './tickets.ts'
import type { AuditDoor, RegistryDoor } from './uses.ts'
import type { WebSocketGate } from './web-socket-gate.ts'

declare module 'fastify' {
  interface FastifyRequest {
    caller: Caller | undefined
    /** Of a request that changes something. */
    audited: AuditedRequest | undefined
    /** What a route that asks on its own has refused it with, in our codes where there is one. */
    failedWith: string | undefined
  }
  interface FastifyContextConfig {
    routeId?: RouteId
    route?: Route
    /** Who may. Without it a route cannot be registered. `itself`: it asks on its own, in the way of its own specification. */
    access?: Route['scope'] | 'itself'
    /** Of what is not in the route table, in logs and figures. */
    label?: string
  }
}

export interface AppUses {
  readonly handlers: Handlers
  readonly sockets: WebSocketGate
  readonly authority: Authority
  readonly tickets: Tickets
  readonly origins: Origins
  readonly refused: RefusedCallers
  readonly audit: Pick<AuditDoor, 'begin' | 'refuse' | 'skip'>
  /** Of what a path is about. */
  readonly resourceId: (routeId: RouteId, params: Readonly<Record<string, string>>) => Promise<string | undefined>
  readonly metrics: Metrics
  readonly log: Logger
  readonly bodyLimits: BodyLimits
  /** How long headers may take to arrive. */
  readonly headersMs: number
  /** Fires when the daemon closes: streams and waits end. */
  readonly closing: AbortSignal
  /** Served at /openapi.json and /spec.json. */
  readonly openApi: () => string
  /** Of the daemon. */
  readonly version: string
  /** What /v2 is about. */
  readonly registry: RegistryDoor
  /** Everyone who gets through to this listener may do everything. */
  readonly isTrusted: boolean
}

// A reference with registry, path, tag and digest, percent-encoded throughout.
const PATH_PART_MAX = 4096
// How often Node looks for headers that take too long, at least.
const CHECK_MS = 5_000

export function createApp(uses: AppUses): FastifyInstance {
  const app = fastify({
    // What it says of itself is no fact of ours; requests are told by tellLog.
    loggerInstance: uses.log.child({ part: 'http' }, { level: uses.log.isLevelEnabled('warn') ? 'warn' : uses.log.level }),
    logController: new LogController({ disableRequestLogging: true }),
    exposeHeadRoutes: false,
    // Raw bodies are bounded by who reads them, JSON by readJsonBody.
    bodyLimit: Number.MAX_SAFE_INTEGER,
    requestTimeout: 0,
    return503OnClosing: false,
    forceCloseConnections: 'idle',
    genReqId: (request) => requestIdOf(request.headers['x-request-id']),
    // Schemas are checked by checkInput and answers written by send: Fastify's own compilers are not even loaded.
    schemaController: { compilersFactory: { buildValidator: noCompiler, buildSerializer: noCompiler } },
    routerOptions: { maxParamLength: PATH_PART_MAX, querystringParser: (text: string) => decodeQuery(text) as Record<string, string> },
    frameworkErrors: (error, request, reply) => {
      // No hook has seen it.
      uses.origins.tell(request as FastifyRequest, reply as FastifyReply)
      refuse(error, request as FastifyRequest, reply as FastifyReply, uses)
    },
    clientErrorHandler: answerBrokenRequest,
    http: {
      headersTimeout: uses.headersMs,
      connectionsCheckingInterval: Math.min(uses.headersMs, CHECK_MS),
      shouldUpgradeCallback: isWebSocketCall,
      // Asked for by a hook, which answers in our words.
      requireHostHeader: false,
    },
  }) as unknown as FastifyInstance

  app.server.on('checkExpectation', answerExpectation)
  app.decorateRequest('caller', undefined)
  app.decorateRequest('audited', undefined)
  app.decorateRequest('failedWith', undefined)
  // No door without a lock, whoever adds it.
  app.addHook('onRoute', ({ method, url, config }) => {
    if (config?.access !== undefined) return
    throw new Error(`The route ${method} ${url} does not say who may: give its config an \`access\`, which is a scope of the route table`)
  })
  app.removeAllContentTypeParsers()
  app.addContentTypeParser(/^application\/([\w.-]+\+)?json(;|$)/i, async (request: FastifyRequest, payload: IncomingMessage) => {
    if (isRaw(request)) throw wrongMediaType()
    refuseEncoded(request.headers)
    return readJsonBody(payload, uses.bodyLimits)
  })
  app.addContentTypeParser('*', async (request: FastifyRequest, payload: IncomingMessage) => {
    const type = (request.headers['content-type'] ?? '').split(';')[0]?.trim().toLowerCase() ?? ''
    if (request.routeOptions.config.route?.rawBody?.includes(type)) return payload
    // A content type without anything after it, as some clients send on every POST.
    if (request.headers['content-length'] === '0') return undefined
    throw wrongMediaType()
  })

  app.setErrorHandler((error, request, reply) => {
    // What Fastify finds wrong with a request that no route takes (a QUERY without a content type) is not what keeps it from an answer.
    const isBesideThePoint = request.is404 && !(error instanceof AppError)
    return refuse(isBesideThePoint ? notFound(request) : error, request, reply, uses)
  })
  app.setNotFoundHandler((request, reply) => refuse(notFound(request), request, reply, uses))

  app.register(websocket, {
    // Pings are answered by WebSocketPeer, which looks first at how much waits already.
    options: { maxPayload: BINARY_FRAME_MAX, autoPong: false },
    // The peer's own doing: too large a frame, a broken connection. Streams are ended by `closing`, not by the plugin.
    errorHandler: (_, socket) => socket.terminate(),
    preClose: (done) => done(),
  })
  // After those of the plugin, which ends the socket of an upgrade that is refused.
  app.after(() => addHooks(app, uses))
  app.register(async (routed) => {
    for (const id of ROUTE_IDS) registerRoute(routed, id, uses)
    routed.register(
      registryRoutes({
        ...uses,
        noteRefused: (error, request) => noteRefused(error, request, uses),
        noteAdmitted: (request) => {
          request.audited ??= uses.audit.begin(auditFacts(request, uses))
        },
      }),
    )
    for (const [path, type] of OPENAPI_AT) {
      routed.get(path, { config: { access: 'open' } }, (_, reply) => reply.type(`${type}; charset=utf-8`).send(uses.openApi()))
    }
    routed.get('/swagger', { config: { access: 'open' } }, (_, reply) => reply.headers(API_PAGE_HEADERS).send(apiPage(uses.version)))
  })
  return app
}

/** JSON is YAML too (1.2): one text serves both. */
const OPENAPI_AT = [
  ['/openapi.json', 'application/json'],
  ['/spec.json', 'application/json'],
  ['/spec.yaml', 'application/yaml'],
] as const

const noCompiler = () => () => {
  throw new Error('No route has a schema of Fastify')
}

function addHooks(app: FastifyInstance, uses: AppUses): void {
  // What gives a promise is waited for, and each wait costs as much as the rest of a hook: neither gives one without need.
  app.addHook('onRequest', (request, reply, done) => {
    reply.header('x-request-id', request.id)
    // Before anything is refused: a page that may ask reads why.
    uses.origins.tell(request, reply)
    if (request.headers.host === undefined && request.raw.httpVersion === '1.1') {
      throw new AppError('invalid_request', 'The request has no Host header')
    }
    if (uses.closing.aborted) throw new AppError('shutting_down', 'The daemon is shutting down')
    if (uses.origins.isPreflight(request)) {
      uses.origins.check(request)
      uses.origins.answerPreflight(request, reply).send()
      return undefined
    }
    // Where nothing is found, which is said to everyone.
    const admitted = request.is404 ? undefined : admit(request, uses)
    if (admitted === undefined) done()
    return admitted
  })
  app.addHook('onResponse', (request, reply, done) => {
    tellLog(request, reply, uses)
    if (request.routeOptions.config.access === 'itself') auditItself(request, reply, uses)
    done()
  })
}

/** Throws or rejects with what refuses the request. */
function admit(request: FastifyRequest, uses: AppUses): Promise<void> | undefined {
  const { access, route } = request.routeOptions.config
  if (access === undefined) throw new AppError('forbidden', 'No one may do this')
  const ticket = takeTicket(request, route)
  if (access !== 'open') {
    try {
      uses.origins.check(request)
      if (access === 'itself') return undefined
      if (!uses.isTrusted) return admitProven(request, { access, ticket }, uses)
      request.caller = hostCaller
      authorize(hostCaller, access)
    } catch (error) {
      throw noteRefused(error, request, uses)
    }
  }
  return admitted(request, uses)
}

async function admitProven(
  request: FastifyRequest,
  { access, ticket }: { access: Route['scope']; ticket: unknown },
  uses: AppUses,
): Promise<void> {
  try {
    request.caller = await callerOf(request, ticket, uses)
    authorize(request.caller, access)
  } catch (error) {
    throw noteRefused(error, request, uses)
  }
  await admitted(request, uses)
}

/** Of who may: is it there to be used, and what is written down of it. */
function admitted(request: FastifyRequest, uses: AppUses): Promise<void> | undefined {
  const { route, routeId } = request.routeOptions.config
  if (route?.later !== undefined) throw new AppError('not_supported', `${route.later}: ${routeId} cannot be used`)
  return isChange(request) ? beginAudit(request, uses) : undefined
}

async function beginAudit(request: FastifyRequest, uses: AppUses): Promise<void> {
  const { routeId } = request.routeOptions.config
  const subjectId = routeId && (await uses.resourceId(routeId, request.params as Record<string, string>))
  const known = subjectId === undefined ? {} : { subjectId }
  request.audited = uses.audit.begin({ ...auditFacts(request, uses), ...known }, subjectId === undefined ? {} : { resourceId: subjectId })
}

/** The ticket of a stream, which leaves the query: no handler and no log sees it. */
function takeTicket(request: FastifyRequest, route: Route | undefined): unknown {
  const query = request.query as Record<string, unknown>
  if ((route?.stream !== 'sse' && route?.stream !== 'websocket') || query.ticket === undefined) return undefined
  const { ticket } = query
  delete query.ticket
  return ticket
}

/** Who a token or a ticket proves to ask. Throws `unauthorized`. */
async function callerOf(request: FastifyRequest, ticket: unknown, { authority, tickets }: AppUses): Promise<Caller> {
  const { authorization } = request.headers
  if (authorization !== undefined || ticket === undefined) return authority.callerOf(authorization)
  const caller = tickets.redeem(ticket, pathOf(request))
  authority.assertHolds(caller)
  return caller
}

/** Writes down that `error` refused the caller, as long as there are not too many of them. What to answer: 429 instead of 401 then. */
function noteRefused(error: unknown, request: FastifyRequest, uses: AppUses): unknown {
  const code = errorCodeOf(error)
  if (code !== 'unauthorized' && code !== 'forbidden') return error
  const { retryAfterSeconds, isToBeWrittenDown } = uses.refused.note(request.ip ?? '')
  if (isToBeWrittenDown) uses.audit.refuse(auditFacts(request, uses), { status: statusOf(code), code })
  else uses.audit.skip()
  if (code !== 'unauthorized' || retryAfterSeconds === undefined) return error
  return new AppError('rate_limited', 'Too many requests without a token that holds came from this address', { retryAfterSeconds })
}

/** Does it change something that lasts, or run something in a guest? */
function isChange({ method, routeOptions: { config } }: FastifyRequest): boolean {
  return config.route !== undefined && config.access !== 'any' && (method !== 'GET' || config.route.stream === 'websocket')
}

/** What a route that asks on its own has let in or not, by its status once it is over. Who is not known was told of when refused. */
function auditItself(request: FastifyRequest, { statusCode: status }: FastifyReply, uses: AppUses): void {
  if (request.caller === undefined) return
  const facts = auditFacts(request, uses)
  const result = status < 400 ? 'done' : 'failed'
  const code = request.failedWith ?? (status === 403 ? 'forbidden' : undefined)
  const outcome = { result, status, ...(code !== undefined && { code }) } as const
  if (request.audited !== undefined) request.audited.end(outcome)
  else if (code === 'forbidden' || code === 'unauthorized') {
    if (uses.refused.note(request.ip ?? '').isToBeWrittenDown) uses.audit.refuse(facts, { status, code })
    else uses.audit.skip()
    // A POST begins an upload, unless it is the whole of one.
  } else if (request.method === 'PUT' || request.method === 'DELETE' || (request.method === 'POST' && status === 201)) {
    uses.audit.begin(facts).end(outcome)
  }
}

/** Nothing of a body: there may be secrets in it. */
function auditFacts(request: FastifyRequest, { isTrusted }: AppUses): AuditFacts {
  const { caller, id, ip } = request
  return {
    caller: caller && auditedCaller(caller),
    tokenId: caller?.token?.id,
    address: isTrusted ? undefined : ip,
    ...operationOf(request),
    requestId: id,
  }
}

function operationOf({ method, url, params, routeOptions }: FastifyRequest): Pick<AuditFacts, 'operation' | 'target'> {
  const { routeId, label } = routeOptions.config
  const target = { ...(params as Record<string, string>) }
  if (label === 'registry') return registryOperation(method, target['*'] ?? '', new URL(url, 'http://any').searchParams)
  return { operation: routeId ?? `${method} ${routeOptions.url}`, target }
}

/** Id or name of what an answer is about. */
function resourceOf(answer: unknown): { resourceId?: string } {
  const { id, name } = (typeof answer === 'object' && answer !== null ? answer : {}) as { id?: unknown; name?: unknown }
  const resourceId = typeof id === 'string' ? id : name
  return typeof resourceId === 'string' ? { resourceId } : {}
}

const pathOf = (request: FastifyRequest): string => request.url.split('?')[0] ?? ''

const WEB_SOCKET_PATH = /^\/instances\/[^/?]+\/(exec|cp)(\?|$)/

/** Any other wish to upgrade (HTTP/2 in clear text, say) is passed over, as the standard has it: the request is answered as it is. */
function isWebSocketCall(request: IncomingMessage): boolean {
  return request.method === 'GET' && /^websocket$/i.test(request.headers.upgrade ?? '') && WEB_SOCKET_PATH.test(request.url ?? '')
}

/** What the WebSocket library would answer in a page of its own, and only after the gate has counted the caller. */
function checkHandshake({ headers }: FastifyRequest, reply: FastifyReply): void {
  if (!/^[+/0-9a-z]{22}==$/i.test(headers['sec-websocket-key'] ?? '')) {
    throw new AppError('invalid_request', 'Sec-WebSocket-Key is not 16 bytes in base64')
  }
  if (headers['sec-websocket-version'] === '13') return
  reply.header('sec-websocket-version', '13')
  throw new AppError('invalid_request', 'Sec-WebSocket-Version is not 13')
}

function registerRoute(app: FastifyInstance, id: RouteId, uses: AppUses): void {
  const route: Route = routes[id]
  const { method, path } = endpoint(id)
  const url = path.replace(/\{(\w+)\}/g, ':$1')
  const config = { routeId: id, route, access: route.scope }
  if (id === 'execInstance' || id === 'copyInstanceFiles') {
    app.route({
      method: 'GET',
      url,
      config,
      preHandler: async (request, reply) => {
        checkParams(route, request)
        if (request.ws) checkHandshake(request, reply)
        // Also of who asks without an upgrade: browsers hide why one was refused, and ask again in this way.
        await uses.sockets.admit(request, id)
      },
      handler: async () => {
        throw new AppError('invalid_request', 'This is a WebSocket: ask for an upgrade')
      },
      wsHandler: (socket, request) =>
        uses.sockets.serve(socket, request, id).finally(() => request.audited?.end({ result: 'done', status: route.status })),
    })
    return
  }
  const handler = (uses.handlers as Readonly<Record<string, (asked: Asked<RouteId>) => unknown>>)[id]
  app.route({
    method,
    url,
    config,
    handler: (request, reply) => {
      if (!handler) throw new AppError('not_supported', `${id} is not built yet`)
      const given = asked(route, request, reply, uses)
      // Both also when the caller has hung up: that ends the waiting, not the work.
      const onAnswer = (answer: unknown): unknown => {
        request.audited?.end({ result: 'done', status: route.status, ...resourceOf(answer) })
        return send(route, answer, reply, given)
      }
      const onError = (error: unknown): never => {
        endAudit(request, error)
        throw error
      }
      let answer: unknown
      try {
        answer = handler(given)
      } catch (error) {
        return onError(error)
      }
      if (answer instanceof Promise) return answer.then(onAnswer, onError)
      onAnswer(answer)
      return undefined
    },
  })
}

function asked(route: Route, request: FastifyRequest, reply: FastifyReply, uses: AppUses): Asked<RouteId> {
  checkParams(route, request)
  const query = typedQuery(request.query as Record<string, unknown>, route.query ?? NO_QUERY)
  if (route.query) checkInput(route.query, query, 'The query')
  else if (Object.keys(query).length > 0) throw new AppError('invalid_request', 'This takes no query')
  const body = route.body && request.body === undefined && route.bodyOptional ? {} : request.body
  if (route.body) {
    if (body === undefined) throw new AppError('invalid_request', 'This needs a JSON body')
    checkInput(route.body, body, 'The body')
  }
  let signal: AbortSignal | undefined
  return {
    params: request.params,
    query,
    body,
    upload: request.body,
    // Made for who waits: most do not.
    get signal() {
      signal ??= AbortSignal.any([
        uses.closing,
        whenGone(reply),
        ...(route.stream === 'sse' ? [whileTokenHolds(uses.authority, request.caller ?? hostCaller, reply)] : []),
      ])
      return signal
    },
    caller: request.caller,
    get log() {
      return uses.log.child({ requestId: request.id })
    },
    header: (name: string) => {
      const value = request.headers[name]
      return Array.isArray(value) ? value[0] : value
    },
    setHeader: (name: string, value: string) => void reply.header(name, value),
  } as unknown as Asked<RouteId>
}

const NO_QUERY = {} as NonNullable<Route['query']>

function checkParams(route: Route, request: FastifyRequest): void {
  if (route.params) checkInput(route.params, request.params, 'The path')
}

/** Fires when the connection closes before the answer is whole. */
function whenGone(reply: FastifyReply): AbortSignal {
  // It may have gone while it was looked at who asks.
  if (reply.raw.destroyed) return AbortSignal.abort()
  const gone = new AbortController()
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) gone.abort()
  })
  return gone.signal
}

function send(route: Route, answer: unknown, reply: FastifyReply, given: Asked<RouteId>): unknown {
  reply.code(route.status)
  if (route.stream === 'sse') {
    reply.headers({ 'content-type': 'text/event-stream', 'cache-control': 'no-cache', 'x-accel-buffering': 'no' })
    return reply.send(sseStream(answer as AsyncIterable<SseBatch>, { isCutOff: () => given.signal.aborted }))
  }
  if (route.stream === 'text' || answer === undefined) return reply.send(answer)
  reply.type('application/json; charset=utf-8')
  if (!(answer instanceof JsonBytes)) return reply.send(JSON.stringify(answer))
  // Until then the bytes may still be on their way to a slow caller. Of one who has hung up they are left to the garbage collector.
  const { giveBack } = answer
  if (giveBack !== undefined) reply.raw.once('close', () => reply.raw.writableFinished && giveBack())
  return reply.send(answer.bytes)
}

const wrongMediaType = () => Object.assign(new Error('media type'), { code: 'FST_ERR_CTP_INVALID_MEDIA_TYPE' })
const isRaw = (request: FastifyRequest): boolean => request.routeOptions.config.route?.rawBody !== undefined

function refuse(error: unknown, request: FastifyRequest, reply: FastifyReply, uses: AppUses): FastifyReply {
  const refusal = refusalOf(error)
  const { headers, body, isFault } = refusal
  const { route, routeId } = request.routeOptions?.config ?? {}
  const status = statusTold(refusal, route)
  request.audited?.end({ result: 'failed', status, code: body.code })
  // Its readers have not been told of this one: a mistake in the table.
  if (route && !errorsOf(route).includes(body.code)) uses.log.warn({ route: routeId, code: body.code }, 'error is not listed by its route')
  if (isFault) uses.log.error({ err: error, requestId: request.id, route: routeId }, 'request failed')
  reply
    .code(status)
    .headers({ ...headers, 'x-request-id': request.id })
    .type('application/json; charset=utf-8')
  if (error instanceof AppError && error.code === 'method_not_allowed') reply.header('allow', String(error.detail?.allow ?? ''))
  // What is left of a refused upload is not read, and who wished for a WebSocket has no other use for it: the connection ends with the answer.
  if (isUnread(request) || /^websocket$/i.test(request.headers.upgrade ?? '')) reply.header('connection', 'close')
  return reply.send(JSON.stringify(body))
}

function endAudit(request: FastifyRequest, error: unknown): void {
  const refusal = refusalOf(error)
  const status = statusTold(refusal, request.routeOptions.config.route)
  request.audited?.end({ result: 'failed', status, code: refusal.body.code })
}

/** Some routes have another status for a code than the table. What is refused before any route is asked has its own. */
const statusTold = ({ status, body: { code } }: Refusal, route: Route | undefined): number =>
  route === undefined || status !== statusOf(code) ? status : statusOn(route, code)

const isUnread = (request: FastifyRequest): boolean =>
  request.raw.complete === false &&
  (request.headers['transfer-encoding'] !== undefined || Number(request.headers['content-length'] ?? 0) > 0)

/** 405 where another method would do, else 404. */
function notFound(request: FastifyRequest): AppError {
  const path = pathOf(request)
  const allow = methodsAt(path).join(', ')
  if (allow !== '') {
    return new AppError('method_not_allowed', `${request.method} cannot be used here, only ${allow}`, { detail: { allow } })
  }
  return new AppError('not_found', 'There is nothing at this path', { hint: 'GET /openapi.json lists what there is' })
}

/** A caller's own id when it is a plain one: it goes into headers and logs. One of ours is drawn from a store of chance, which costs a tenth. */
function requestIdOf(given: string | string[] | undefined): string {
  return typeof given === 'string' && /^[A-Za-z0-9_.:-]{1,64}$/.test(given) ? given : randomUUID()
}

function tellLog(request: FastifyRequest, reply: FastifyReply, { log, metrics }: AppUses): void {
  const { routeId, route, label } = request.routeOptions.config
  const ms = Math.round(reply.elapsedTime * 10) / 10
  // How long a blob takes is its size's doing.
  metrics.answered(routeId ?? label ?? 'none', reply.statusCode, reply.elapsedTime, route?.stream !== undefined || label !== undefined)
  const fields = {
    requestId: request.id,
    route: routeId ?? label,
    status: reply.statusCode,
    ms,
    caller: request.caller?.subject,
    ...(request.params as object),
  }
  if (request.method === 'GET') log.debug(fields, 'request')
  else log.info(fields, 'request')
}

/** Anything but 100-continue, which Node answers by itself. */
function answerExpectation(_: IncomingMessage, response: ServerResponse): void {
  const { headers, body } = refusalOf(new AppError('invalid_request', 'Nothing but 100-continue can be expected here'))
  const text = JSON.stringify(body)
  const fields = { 'content-type': 'application/json; charset=utf-8', 'content-length': Buffer.byteLength(text), connection: 'close' }
  response.writeHead(417, { ...headers, ...fields }).end(text)
}

/** What is no HTTP at all, or never becomes a whole request. */
function answerBrokenRequest(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === 'ECONNRESET' || socket.destroyed) return
  if (!socket.writable) return void socket.destroy()
  const known = refusalOf(error)
  const { status, headers, body } = known.isFault ? refusalOf(new AppError('invalid_request', 'This is not a valid HTTP request')) : known
  const text = JSON.stringify(body)
  const fields = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text), connection: 'close', ...headers }
  const lines = Object.entries(fields).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.end(`HTTP/1.1 ${status} Refused\r\n${lines.join('')}\r\n${text}`)
}
