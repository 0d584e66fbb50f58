import { AppError } from '@dormouse/api/errors.ts'
import type { TokenRecord } from '@dormouse/api/tokens.ts'
import { parseDuration } from '@dormouse/api/units.ts'
import type { TokenRow } from '../../store/tokens.ts'
import { type Authority, authorize } from '../auth.ts'
import type { Handlers } from '../handler.ts'
import { type PlaceOf, pageOf } from '../list-page.ts'
import { streamAt } from '../stream-at.ts'
import type { Tickets } from '../tickets.ts'

type TokenRoutes = Pick<Handlers, 'createToken' | 'listTokens' | 'revokeToken' | 'revokeTokens' | 'createTicket'>

const TOKEN_MAX_MS = 10 * 365 * 24 * 3_600_000

export function tokenRoutes({ authority, tickets }: { authority: Authority; tickets: Tickets }): TokenRoutes {
  return {
    createToken: ({ body }) => {
      const { subject = 'operator', scopes, ttl = '24h' } = body
      const ttlMs = parseDuration(ttl)
      if (ttlMs === undefined || ttlMs < 1000 || ttlMs > TOKEN_MAX_MS) {
        throw new AppError('invalid_ttl', `\`ttl\` is ${JSON.stringify(ttl)}, but must be a duration such as 24h, at most ten years`)
      }
      return authority.mint({ subject, ttlMs, ...(scopes !== undefined && { scopes }) })
    },

    listTokens: ({ query, setHeader }) => {
      const page = pageOf(authority.listTokens(), PLACE, query)
      if (page.nextCursor !== undefined) setHeader('x-next-cursor', page.nextCursor)
      return page.items.map(presentToken)
    },

    revokeToken: ({ params }) => {
      authority.revoke(params.id)
      return undefined
    },

    revokeTokens: ({ body }) => {
      const before = body.issued_before === undefined ? Date.now() : Date.parse(body.issued_before)
      // In the future they would be refused that are yet to be made.
      if (!(before <= Date.now())) throw new AppError('invalid_request', `\`issued_before\` is no time of the past: ${body.issued_before}`)
      return { revoked: authority.revokeAllOf(body.subject, before) }
    },

    createTicket: ({ body, caller }) => {
      const route = streamAt(body.path)
      if (!route) {
        throw new AppError('not_found', `There is no stream at ${JSON.stringify(body.path)}`, {
          hint: 'Give the path as it will be asked for, without its query: /instances/web/logs',
        })
      }
      authorize(caller, route.scope)
      return tickets.make(caller, body.path)
    },
  }
}

const at = (ms: number): string => new Date(ms).toISOString()

const PLACE: PlaceOf<TokenRow> = { key: ({ id }) => id, createdAt: ({ createdAtMs }) => at(createdAtMs) }

const presentToken = (row: TokenRow): TokenRecord => ({
  id: row.id,
  subject: row.subject,
  scopes: row.scopes === undefined ? null : [...row.scopes],
  created_at: at(row.createdAtMs),
  expires_at: at(row.expiresAtMs),
  revoked_at: row.revokedAtMs === undefined ? null : at(row.revokedAtMs),
})
