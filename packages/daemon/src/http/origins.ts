/**
 * Which pages may ask. A browser says with `Origin` which page's script asks; every other client sends none. A page of the server
 * itself may, one of an origin that is configured may, any other is refused, also where no token is asked for: the socket may stand
 * behind a proxy. This holds for WebSockets too, which browsers open to anywhere without asking first.
 */
import { AppError } from '@dormouse/api/errors.ts'
import type { FastifyReply, FastifyRequest } from 'fastify'

/** What scripts may read of an answer beside its body. */
const EXPOSED = ['x-request-id', 'x-next-cursor', 'x-should-retry', 'retry-after', 'location'].join(', ')
const HEADER_NAMES = /^[\w-]+( *, *[\w-]+)*$/
const PREFLIGHT_HOLDS_S = '600'

export class Origins {
  readonly #allowed: ReadonlySet<string>

  constructor(allowed: readonly string[]) {
    this.#allowed = new Set(allowed)
  }

  /** Lets pages of origins that are configured read the answer, whatever it will be. */
  tell({ headers: { origin } }: FastifyRequest, reply: FastifyReply): void {
    if (origin === undefined) return
    reply.header('vary', 'origin')
    if (this.#allowed.has(origin)) reply.headers({ 'access-control-allow-origin': origin, 'access-control-expose-headers': EXPOSED })
  }

  /** Throws `forbidden` for a page of elsewhere. */
  check({ headers: { origin, host } }: FastifyRequest): void {
    if (origin === undefined || this.#allowed.has(origin) || isSameOrigin(origin, host)) return
    throw new AppError('forbidden', `Pages of ${JSON.stringify(origin.slice(0, 200))} may not use this server`, {
      hint: 'DORMOUSE_ALLOWED_ORIGINS on the host names those that may',
    })
  }

  /** Is this a browser's question whether it may ask? It carries no token. */
  isPreflight({ method, headers }: FastifyRequest): boolean {
    return method === 'OPTIONS' && headers.origin !== undefined && headers['access-control-request-method'] !== undefined
  }

  /** What a page that may ask may send. */
  answerPreflight(request: FastifyRequest, reply: FastifyReply): FastifyReply {
    const asked = request.headers['access-control-request-headers']
    return reply.code(204).headers({
      'access-control-allow-methods': 'GET, POST, PUT, PATCH, DELETE',
      ...(typeof asked === 'string' && HEADER_NAMES.test(asked) && { 'access-control-allow-headers': asked }),
      'access-control-max-age': PREFLIGHT_HOLDS_S,
    })
  }
}

/** The scheme is left out: what ends TLS may stand before us. */
function isSameOrigin(origin: string, host: string | undefined): boolean {
  const url = URL.parse(origin)
  return host !== undefined && url !== null && /^https?:$/.test(url.protocol) && url.host === host.toLowerCase()
}
