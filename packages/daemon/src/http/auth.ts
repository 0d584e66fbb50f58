/**
 * Who may do what. Over the unix socket everything: its file mode has decided already. Over TCP a bearer token, a JWT signed
 * with the daemon's secret, whose `permissions` are scopes; none at all means everything.
 */
import { AppError } from '@dormouse/api/errors.ts'
import type { Route } from '@dormouse/api/routes.ts'
import type { Token } from '@dormouse/api/tokens.ts'
import { type JWTPayload, jwtVerify, SignJWT } from 'jose'

export interface Caller {
  /** For the log. */
  readonly subject: string
  /** Undefined: everything. */
  readonly scopes: ReadonlySet<string> | undefined
}

/** The caller on the unix socket. */
export const hostCaller: Caller = { subject: 'host', scopes: undefined }

// No "none" and no public-key algorithm: a secret must never be taken for a public key.
const ALGORITHMS = ['HS256', 'HS384', 'HS512']
const BEARER = /^Bearer +([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)$/i
/** Claims of tokens that are good for a registry alone. */
const REGISTRY_CLAIMS = ['repos', 'scope', 'build_id']
const TOKEN_MAX = 8192

export class Authority {
  readonly #secret: Uint8Array

  constructor(secret: Uint8Array) {
    this.#secret = secret
  }

  /** The caller that an `Authorization` header proves. Throws `unauthorized`, saying no more than it must. */
  async callerOf(authorization: string | undefined): Promise<Caller> {
    if (authorization === undefined) throw unauthorized('This needs a token')
    const token = authorization.length <= TOKEN_MAX ? BEARER.exec(authorization)?.[1] : undefined
    if (token === undefined) throw unauthorized('The Authorization header holds no bearer token')
    let claims: JWTPayload
    try {
      claims = (await jwtVerify(token, this.#secret, { algorithms: ALGORITHMS, clockTolerance: 5 })).payload
    } catch (error) {
      throw unauthorized((error as { code?: string }).code === 'ERR_JWT_EXPIRED' ? 'The token has expired' : 'The token is not valid')
    }
    return callerOfClaims(claims)
  }

  /** A token for `subject` that holds for `ttlMs`. Without scopes it allows everything. */
  async mint(options: { subject: string; scopes?: readonly string[]; ttlMs: number }): Promise<Token> {
    const now = Math.floor(Date.now() / 1000)
    const expires = now + Math.ceil(options.ttlMs / 1000)
    const token = await new SignJWT(options.scopes === undefined ? {} : { permissions: [...options.scopes] })
      .setProtectedHeader({ alg: 'HS256', typ: 'JWT' })
      .setSubject(options.subject)
      .setIssuedAt(now)
      .setExpirationTime(expires)
      .sign(this.#secret)
    return { token, expires_at: new Date(expires * 1000).toISOString() }
  }
}

function callerOfClaims(claims: JWTPayload): Caller {
  const subject = typeof claims.sub === 'string' ? claims.sub : ''
  if (REGISTRY_CLAIMS.some((claim) => claims[claim] !== undefined) || subject.startsWith('builder-')) {
    throw unauthorized('This token is good for the registry alone')
  }
  const { permissions } = claims
  if (permissions === undefined) return { subject, scopes: undefined }
  if (!Array.isArray(permissions) || !permissions.every((scope) => typeof scope === 'string')) {
    throw unauthorized('The permissions of the token are not a list of scopes')
  }
  return { subject, scopes: permissions.includes('*') ? undefined : new Set(permissions) }
}

/** Throws `forbidden`, naming the scope, unless `caller` may use `route`. */
export function authorize(caller: Caller, route: Route): void {
  if (route.scope === 'open') return
  if (route.scope === 'host') {
    if (caller === hostCaller) return
    throw new AppError('forbidden', 'This is only done over the unix socket, on the host itself')
  }
  if (caller.scopes === undefined || caller.scopes.has(route.scope)) return
  throw new AppError('forbidden', `The token lacks the scope ${route.scope}`, {
    hint: `Make one that has it: dormouse token --scope ${route.scope}`,
  })
}

const unauthorized = (message: string): AppError =>
  new AppError('unauthorized', message, { hint: 'Make one on the host with: dormouse token' })
