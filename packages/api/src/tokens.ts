/** Tokens and what they allow. A token without scopes may do everything. */
import { type Static, Type } from 'typebox'
import { DateTime, nullable } from './names.ts'

const NOUNS = ['instance', 'image', 'volume', 'snapshot', 'build', 'device', 'ingress'] as const
const VERBS = ['read', 'write', 'delete'] as const

/** At /v2, and nowhere else; to push is to pull as well. With a repository behind it, as it is pushed to, there alone. */
type RegistryScope = 'registry:pull' | 'registry:push'
export type Scope =
  | `${(typeof NOUNS)[number]}:${(typeof VERBS)[number]}`
  | 'resource:read'
  | 'resource:write'
  | 'audit:read'
  | RegistryScope
export const SCOPES: readonly Scope[] = [
  ...NOUNS.flatMap((noun) => VERBS.map((verb) => `${noun}:${verb}` as const)),
  'resource:read',
  'resource:write',
  'audit:read',
  'registry:pull',
  'registry:push',
]

const REPOSITORY_SCOPE = '^registry:(?:pull|push):[a-z0-9]+(?:(?:[._/]|__|-+)[a-z0-9]+)*$'
const REPOSITORY_SCOPE_MAX = 240
const repositoryScope = new RegExp(REPOSITORY_SCOPE)

export const isScope = (text: string): boolean =>
  (SCOPES as readonly string[]).includes(text) || (text.length <= REPOSITORY_SCOPE_MAX && repositoryScope.test(text))

export const CreateTokenRequest = Type.Object(
  {
    subject: Type.Optional(
      Type.String({ minLength: 1, maxLength: 128, default: 'operator', description: 'Who it is for; shown in the log' }),
    ),
    scopes: Type.Optional(
      Type.Array(
        Type.Union([
          Type.Enum([...SCOPES, '*']),
          Type.String({
            pattern: REPOSITORY_SCOPE,
            maxLength: REPOSITORY_SCOPE_MAX,
            description: 'registry:pull or registry:push of one repository: registry:push:team/app',
          }),
        ]),
        { description: 'What it allows; everything when left out', maxItems: 64 },
      ),
    ),
    ttl: Type.Optional(Type.String({ maxLength: 64, default: '24h', description: 'How long it holds, such as 24h' })),
  },
  { $id: 'CreateTokenRequest', additionalProperties: false },
)

const Subject = Type.String({ minLength: 1, maxLength: 128 })
const TokenId = Type.String({ description: 'Its `jti`: what it is listed and revoked by' })

/** What is told once: the token itself is kept nowhere. */
export const Token = Type.Object({ token: Type.String(), id: TokenId, expires_at: DateTime }, { $id: 'Token' })
export type Token = Static<typeof Token>

/** What is known of a token that was made here. */
export const TokenRecord = Type.Object(
  {
    id: TokenId,
    subject: Type.String(),
    scopes: nullable(Type.Array(Type.String(), { description: 'null: everything' })),
    created_at: DateTime,
    expires_at: DateTime,
    revoked_at: nullable(DateTime),
  },
  { $id: 'TokenRecord' },
)
export type TokenRecord = Static<typeof TokenRecord>

export const RevokeTokensRequest = Type.Object(
  {
    subject: Subject,
    issued_before: Type.Optional(Type.String({ maxLength: 64, format: 'date-time', description: 'Now when left out' })),
  },
  { $id: 'RevokeTokensRequest', additionalProperties: false },
)

export const RevokeTokensResponse = Type.Object(
  {
    revoked: Type.Integer({ minimum: 0, description: 'How many of those that were made here; others of the subject are refused as well' }),
  },
  { $id: 'RevokeTokensResponse' },
)

export const CreateTicketRequest = Type.Object(
  {
    path: Type.String({
      minLength: 1,
      maxLength: 4096,
      description: 'Of the stream, without its query, as it will be asked for: /instances/web/exec',
    }),
  },
  { $id: 'CreateTicketRequest', additionalProperties: false },
)

/** Goes into the query of the one request that it is for, as `ticket`. */
export const Ticket = Type.Object({ ticket: Type.String(), expires_at: DateTime }, { $id: 'Ticket' })
export type Ticket = Static<typeof Ticket>
