/**
 * Who asks. Over the unix socket everyone may do everything: its file mode has decided already. Over TCP a bearer token, a JWT signed
 * with the daemon's secret, whose `permissions` are scopes; none at all means everything.
 *
 *     signature, expiry, claims      the token itself
 *     revoked?                       by its `jti` where it was made here, else by its subject and when it was issued
 *     scope of the route             authorize()
 */
import { AppError } from '@dormouse/api/errors.ts'
import type { Route } from '@dormouse/api/routes.ts'
import type { Token } from '@dormouse/api/tokens.ts'
import { type JWTPayload, jwtVerify, SignJWT } from 'jose'
import { OWN_CALLER } from '../audit/audit.ts'
import { createId } from '../lib/create-id.ts'
import type { TokenRow } from '../store/tokens.ts'

export interface Caller {
  /** For the log. */
  readonly subject: string
  /** Undefined: everything. */
  readonly scopes: ReadonlySet<string> | undefined
  /** What it proved itself with; undefined over the unix socket. */
  readonly token: TokenFacts | undefined
}

export interface TokenFacts {
  readonly id: string | undefined
  readonly issuedAtMs: number
  readonly expiresAtMs: number
}

/** The caller on the unix socket. */
export const hostCaller: Caller = { subject: 'host', scopes: undefined, token: undefined }

/** What the daemon does by itself has `system` for its caller in the audit log. */
const isReserved = (subject: string): boolean => subject === hostCaller.subject || subject === OWN_CALLER

/** As the audit log calls a caller: no token is taken for the host or the daemon, whoever made it and whatever it says. */
export const auditedCaller = ({ subject, token }: Pick<Caller, 'subject' | 'token'>): string =>
  token !== undefined && isReserved(subject) ? `token:${subject}` : subject

/** What is known of tokens that were made here. */
export interface TokensDoor {
  insert(token: Omit<TokenRow, 'revokedAtMs'>): void
  find(id: string): TokenRow | undefined
  /** Newest first. */
  list(nowMs: number): readonly TokenRow[]
  revoke(id: string, atMs: number): boolean
  revokeAllOf(subject: string, beforeMs: number, atMs: number): number
  cutoffOf(subject: string): number
}

// No "none" and no public-key algorithm: a secret must never be taken for a public key.
const ALGORITHMS = ['HS256', 'HS384', 'HS512']
const BEARER = /^Bearer +([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)$/i
/** Claims of tokens that are good for a registry alone. */
const REGISTRY_CLAIMS = ['repos', 'scope', 'build_id']
const REGISTRY_SUBJECTS = 'builder-'
const TOKEN_MAX = 8192
const NOT_VALID = 'The token is not valid'
const CLOCK_TOLERANCE_S = 5
// Timers take no more; a stream that lives longer is looked at again.
const TIMER_MAX_MS = 2 ** 31 - 1

export class Authority {
  readonly #secret: Uint8Array
  readonly #tokens: TokensDoor
  readonly #watches = new Set<() => void>()

  constructor(secret: Uint8Array, tokens: TokensDoor) {
    this.#secret = secret
    this.#tokens = tokens
  }

  /** The caller that an `Authorization` header proves. Throws `unauthorized`, saying no more than it must. */
  async callerOf(authorization: string | undefined): Promise<Caller> {
    const claims = await this.claimsOf(authorization)
    if (isForRegistryAlone(claims)) throw unauthorized('This token is good for the registry alone')
    return callerOfClaims(claims)
  }

  /** What the token in an `Authorization` header claims, once it is known to be ours and not revoked. Throws `unauthorized`. */
  async claimsOf(authorization: string | undefined): Promise<JWTPayload> {
    if (authorization === undefined) throw unauthorized('This needs a token')
    const token = authorization.length <= TOKEN_MAX ? BEARER.exec(authorization)?.[1] : undefined
    if (token === undefined)
      throw unauthorized(/^Bearer +\S/i.test(authorization) ? NOT_VALID : 'The Authorization header holds no bearer token')
    let claims: JWTPayload
    try {
      // Compares signatures in constant time. A token that never ends is none.
      const checks = { algorithms: ALGORITHMS, clockTolerance: CLOCK_TOLERANCE_S, requiredClaims: ['exp'] }
      claims = (await jwtVerify(token, this.#secret, checks)).payload
    } catch (error) {
      throw unauthorized((error as { code?: string }).code === 'ERR_JWT_EXPIRED' ? 'The token has expired' : NOT_VALID)
    }
    this.assertHolds({ subject: subjectOf(claims), token: factsOf(claims) })
    return claims
  }

  /** Throws `unauthorized` once the caller's token has been revoked or has expired. */
  assertHolds({ subject, token }: Pick<Caller, 'subject' | 'token'>): void {
    if (token === undefined) return
    if (Date.now() > token.expiresAtMs + CLOCK_TOLERANCE_S * 1000) throw unauthorized('The token has expired')
    const known = token.id === undefined ? undefined : this.#tokens.find(token.id)
    // One that was made here is known to the millisecond; others say in which second they were issued.
    const isRevoked = known ? known.revokedAtMs !== undefined : token.issuedAtMs < this.#tokens.cutoffOf(subject)
    if (isRevoked) throw unauthorized('The token has been revoked')
  }

  /** Throws `invalid_request` for a subject that would be taken for another caller, or whose tokens the API would not take. */
  static assertSubject(subject: string): void {
    if (isReserved(subject)) {
      throw new AppError('invalid_request', `\`subject\` is ${subject}, which is what the audit log calls the host and the daemon itself`)
    }
    if (!subject.startsWith(REGISTRY_SUBJECTS)) return
    throw new AppError('invalid_request', `Tokens whose \`subject\` begins with ${REGISTRY_SUBJECTS} are good for the registry alone`, {
      hint: 'Give it another name, and a scope: dormouse token create --subject ci --scope registry:push',
    })
  }

  /** A token for `subject` that holds for `ttlMs`, on record under its id. Without scopes it allows everything. */
  async mint(options: { subject: string; scopes?: readonly string[]; ttlMs: number }): Promise<Token> {
    Authority.assertSubject(options.subject)
    const id = createId()
    const now = Date.now()
    const signed = await signToken(this.#secret, { ...options, id, nowMs: now })
    const { subject, scopes } = options
    this.#tokens.insert({ id, subject, scopes, createdAtMs: now, expiresAtMs: Date.parse(signed.expires_at) })
    return { ...signed, id }
  }

  listTokens(): readonly TokenRow[] {
    return this.#tokens.list(Date.now())
  }

  /** Throws `not_found` when no token of this id was made here. Repeat is harmless. */
  revoke(id: string): void {
    if (!this.#tokens.revoke(id, Date.now())) {
      throw new AppError('not_found', `No token ${JSON.stringify(id)} was made here, or it expired long ago`, {
        hint: 'Tokens made elsewhere are revoked by their subject: `dormouse token revoke --subject NAME`',
      })
    }
    this.#lookAgain()
  }

  /** Gives how many of those that were made here it was. */
  revokeAllOf(subject: string, issuedBeforeMs: number): number {
    const count = this.#tokens.revokeAllOf(subject, issuedBeforeMs, Date.now())
    this.#lookAgain()
    return count
  }

  /** For streams: `signal` fires when the token of `caller` ends, by its time or by revocation. */
  watch(caller: Pick<Caller, 'subject' | 'token'>): { readonly signal: AbortSignal } & Disposable {
    const ended = new AbortController()
    const { token } = caller
    let timer: NodeJS.Timeout | undefined
    const look = (): void => {
      clearTimeout(timer)
      try {
        this.assertHolds(caller)
      } catch (error) {
        ended.abort(error)
        return
      }
      if (token === undefined) return
      const ms = token.expiresAtMs + CLOCK_TOLERANCE_S * 1000 - Date.now() + 1
      timer = setTimeout(look, Math.min(Math.max(ms, 1), TIMER_MAX_MS)).unref()
    }
    look()
    this.#watches.add(look)
    return {
      signal: ended.signal,
      [Symbol.dispose]: () => {
        clearTimeout(timer)
        this.#watches.delete(look)
      },
    }
  }

  #lookAgain(): void {
    for (const look of this.#watches) look()
  }
}

export interface NewToken {
  readonly subject: string
  readonly scopes?: readonly string[]
  readonly ttlMs: number
  readonly id?: string
  readonly nowMs?: number
}

/** A signed token that nothing is written down of. */
export async function signToken(secret: Uint8Array, options: NewToken): Promise<Omit<Token, 'id'>> {
  const now = Math.floor((options.nowMs ?? Date.now()) / 1000)
  const expires = now + Math.ceil(options.ttlMs / 1000)
  const jwt = new SignJWT(options.scopes === undefined ? {} : { permissions: [...options.scopes] })
    .setProtectedHeader({ alg: 'HS256', typ: 'JWT' })
    .setSubject(options.subject)
    .setIssuedAt(now)
    .setExpirationTime(expires)
  if (options.id !== undefined) jwt.setJti(options.id)
  return { token: await jwt.sign(secret), expires_at: new Date(expires * 1000).toISOString() }
}

export const isForRegistryAlone = (claims: JWTPayload): boolean =>
  REGISTRY_CLAIMS.some((claim) => claims[claim] !== undefined) || subjectOf(claims).startsWith(REGISTRY_SUBJECTS)

const subjectOf = ({ sub }: JWTPayload): string => (typeof sub === 'string' ? sub : '')

export const factsOf = ({ jti, iat, exp = 0 }: JWTPayload): TokenFacts => ({
  id: typeof jti === 'string' ? jti : undefined,
  // One that does not say when it was issued is as old as can be.
  issuedAtMs: typeof iat === 'number' ? iat * 1000 : 0,
  expiresAtMs: exp * 1000,
})

/** Of a token that is not for the registry alone. Throws `unauthorized`. */
export function callerOfClaims(claims: JWTPayload): Caller {
  const { permissions } = claims
  const proven = { subject: subjectOf(claims), token: factsOf(claims) }
  if (permissions === undefined) return { ...proven, scopes: undefined }
  if (!Array.isArray(permissions) || !permissions.every((scope) => typeof scope === 'string')) {
    throw unauthorized('The permissions of the token are not a list of scopes')
  }
  return { ...proven, scopes: permissions.includes('*') ? undefined : new Set(permissions) }
}

/** Throws `forbidden`, naming the scope, unless `caller` may use a route of this scope. */
export function authorize(caller: Caller, scope: Route['scope']): void {
  if (scope === 'open' || scope === 'any') return
  if (scope === 'host') {
    if (caller === hostCaller) return
    throw new AppError('forbidden', 'This is only done over the unix socket, on the host itself', {
      hint: 'Ask there: the dormouse command on the host does, unless DORMOUSE_HOST leads it elsewhere',
    })
  }
  if (caller.scopes === undefined || caller.scopes.has(scope)) return
  throw new AppError('forbidden', `The token lacks the scope ${scope}`, {
    hint: `Make one that has it: dormouse token create --scope ${scope}`,
  })
}

export const unauthorized = (message: string, hint = 'Make one on the host with: dormouse token create'): AppError =>
  new AppError('unauthorized', message, { hint })
