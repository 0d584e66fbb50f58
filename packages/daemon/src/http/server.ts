/**
 * The server: the route table over HTTP. It listens on a unix socket, whose file mode decides who may call, and on TCP, where a
 * token does; each is a Fastify of its own over the same handlers.
 *
 *     onRequest   from which page                           origins.ts
 *                 who asks, and may they                    auth.ts, tickets.ts
 *     parsing     JSON, bounded; raw bodies stay streams    json-body.ts
 *     handler     schemas, in words                         check-input.ts
 *                 then the noun                             routes/<noun>.ts
 *     any throw   code → status, headers                    problems.ts
 */
import { chmodSync, mkdirSync, mkdtempSync, renameSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { dirname, join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { openApiDocument } from '@dormouse/api/openapi.ts'
import type { FastifyInstance } from 'fastify'
import { createApp } from './app.ts'
import { resourceResolver } from './audited-resource.ts'
import { Authority } from './auth.ts'
import type { Handlers } from './handler.ts'
import { BODY_LIMITS, type BodyLimits } from './json-body.ts'
import { Metrics } from './metrics.ts'
import { Origins } from './origins.ts'
import { RefusedCallers } from './refused-callers.ts'
import { auditRoutes } from './routes/audit.ts'
import { autoStandbyRoutes } from './routes/auto-standby.ts'
import { deviceRoutes } from './routes/devices.ts'
import { garbageRoutes } from './routes/garbage.ts'
import { imageRoutes } from './routes/images.ts'
import { instanceRoutes } from './routes/instances.ts'
import { pushRoutes } from './routes/pushes.ts'
import { scheduleRoutes } from './routes/schedules.ts'
import { serverRoutes } from './routes/server.ts'
import { snapshotRoutes } from './routes/snapshots.ts'
import { tokenRoutes } from './routes/tokens.ts'
import { volumeRoutes } from './routes/volumes.ts'
import { Tickets } from './tickets.ts'
import type { ServerUses } from './uses.ts'
import { WebSocketGate } from './web-socket-gate.ts'

export interface ListenOptions {
  readonly socket: { readonly path: string; readonly mode: number }
  /** Undefined: no TCP. Port 0 takes a free one. */
  readonly tcp?: { readonly host: string; readonly port: number } | undefined
}

const CLOSE_LIMIT_MS = 5_000
const HEADERS_MAX_MS = 20_000

export class HttpServer implements AsyncDisposable {
  /** The listener where a token is needed, and the one where none is. Both answer `inject` without listening. */
  readonly tcp: FastifyInstance
  readonly host: FastifyInstance
  readonly authority: Authority
  readonly #closing = new AbortController()
  #socketPath: string | undefined

  constructor(uses: ServerUses, options: { bodyLimits?: BodyLimits; headersMs?: number } = {}) {
    this.authority = new Authority(uses.secret, uses.tokens)
    const tickets = new Tickets()
    const metrics = new Metrics(uses)
    const handlers: Handlers = {
      ...instanceRoutes(uses),
      ...snapshotRoutes(uses),
      ...scheduleRoutes(uses),
      ...autoStandbyRoutes(uses),
      ...imageRoutes(uses),
      ...pushRoutes(uses),
      ...volumeRoutes(uses),
      ...deviceRoutes(uses),
      ...serverRoutes(uses, metrics),
      ...auditRoutes(uses),
      ...tokenRoutes({ authority: this.authority, tickets }),
      ...garbageRoutes(uses),
    }
    let openApi: string | undefined
    const shared = {
      handlers,
      sockets: new WebSocketGate(uses, this.authority, this.#closing.signal),
      authority: this.authority,
      tickets,
      origins: new Origins(uses.allowedOrigins),
      refused: new RefusedCallers(),
      audit: uses.audit,
      resourceId: resourceResolver(uses),
      registry: uses.registry,
      metrics,
      log: uses.log,
      bodyLimits: options.bodyLimits ?? BODY_LIMITS,
      headersMs: options.headersMs ?? HEADERS_MAX_MS,
      closing: this.#closing.signal,
      version: uses.version,
      openApi: () => {
        openApi ??= JSON.stringify(openApiDocument({ version: uses.version }))
        return openApi
      },
    }
    this.tcp = createApp({ ...shared, isTrusted: false })
    this.host = createApp({ ...shared, isTrusted: true })
  }

  /** Resolves once both accept. The address tells the TCP port when it was 0. */
  async listen({ socket, tcp }: ListenOptions): Promise<{ readonly tcp: { readonly host: string; readonly port: number } | undefined }> {
    await makeRoomFor(socket.path)
    // Made where no one else can reach it, given its mode, then moved to where it is looked for: at no time is it open too far.
    const nest = mkdtempSync(join(dirname(socket.path), 'l'))
    const hatched = join(nest, 's')
    try {
      await this.host.listen({ path: hatched })
      chmodSync(hatched, socket.mode)
      renameSync(hatched, socket.path)
    } catch (cause) {
      throw new AppError('conflict', `Cannot listen on ${socket.path}`, { cause })
    } finally {
      rmSync(nest, { recursive: true, force: true })
    }
    this.#socketPath = socket.path
    if (!tcp) return { tcp: undefined }
    try {
      await this.tcp.listen(tcp)
    } catch (cause) {
      throw new AppError('port_in_use', `Cannot listen on ${tcp.host}:${tcp.port}`, {
        cause,
        hint: 'Set another address with DORMOUSE_LISTEN, or off',
      })
    }
    const address = this.tcp.server.address()
    return { tcp: { host: tcp.host, port: typeof address === 'object' && address ? address.port : tcp.port } }
  }

  /** Takes no more requests, ends streams and waits, lets what is under way be answered, then cuts what is left. */
  async close(): Promise<void> {
    this.#closing.abort(new AppError('shutting_down', 'The daemon is shutting down'))
    const cut = setTimeout(() => {
      for (const app of [this.tcp, this.host]) {
        app.server.closeAllConnections()
        for (const socket of app.websocketServer.clients) socket.terminate()
      }
    }, CLOSE_LIMIT_MS)
    try {
      await Promise.all([this.tcp.close(), this.host.close()])
    } finally {
      clearTimeout(cut)
      if (this.#socketPath !== undefined) rmSync(this.#socketPath, { force: true })
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

/** A socket file that a dead daemon left is removed; one that answers is someone's. */
async function makeRoomFor(path: string): Promise<void> {
  const isAnswered = await new Promise<boolean>((resolve) => {
    const probe = connect(path)
    probe.once('connect', () => {
      probe.destroy()
      resolve(true)
    })
    probe.once('error', () => resolve(false))
  })
  if (isAnswered) throw new AppError('conflict', `Another daemon listens on ${path}`)
  rmSync(path, { force: true })
  mkdirSync(dirname(path), { recursive: true })
}
