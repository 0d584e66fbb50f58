/** Tokens and what they allow. A token without scopes may do everything. */
import { type Static, Type } from 'typebox'
import { DateTime } from './names.ts'

const NOUNS = ['instance', 'image', 'volume', 'snapshot', 'build', 'device', 'ingress'] as const
const VERBS = ['read', 'write', 'delete'] as const

export type Scope = `${(typeof NOUNS)[number]}:${(typeof VERBS)[number]}` | 'resource:read'
export const SCOPES: readonly Scope[] = [...NOUNS.flatMap((noun) => VERBS.map((verb) => `${noun}:${verb}` as const)), 'resource:read']

export const isScope = (text: string): text is Scope => (SCOPES as readonly string[]).includes(text)

export const CreateTokenRequest = Type.Object(
  {
    subject: Type.Optional(
      Type.String({ minLength: 1, maxLength: 128, default: 'operator', description: 'Who it is for; shown in the log' }),
    ),
    scopes: Type.Optional(
      Type.Array(Type.Enum([...SCOPES, '*']), { description: 'What it allows; everything when left out', maxItems: 64 }),
    ),
    ttl: Type.Optional(Type.String({ maxLength: 64, default: '24h', description: 'How long it holds, such as 24h' })),
  },
  { $id: 'CreateTokenRequest', additionalProperties: false },
)

export const Token = Type.Object({ token: Type.String(), expires_at: DateTime }, { $id: 'Token' })
export type Token = Static<typeof Token>
