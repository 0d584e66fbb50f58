/**
 * Who may do what with the registry. Programs that push know two ways to say who they are: a bearer token, or a user name and a
 * password, one of which is the token then. Of tokens of the API the scopes for images count, and those for the registry alone:
 * `registry:pull`, `registry:push`, also of one repository. Beside them there are tokens that others make for the registry alone: `repos`
 * names repositories, `scope` says `pull` or `push`.
 */
import type { JWTPayload } from 'jose'
import { parseRepository } from '../images/registry/registry.ts'
import { RegistryError } from '../images/registry/registry-error.ts'
import { type Authority, type Caller, callerOfClaims, factsOf, isForRegistryAlone } from './auth.ts'

export type RegistryAction = 'pull' | 'push' | 'delete'

export interface RegistryCaller extends Pick<Caller, 'subject' | 'token'> {
  /** In this repository; without one, in all of them. */
  may(action: RegistryAction, repository?: string): boolean
}

const SCOPE_OF = { pull: 'image:read', push: 'image:write', delete: 'image:delete' } as const

export function registryCallerOf({ subject, token, scopes }: Caller): RegistryCaller {
  const places = placesOf(scopes ?? new Set())
  const may = (action: RegistryAction, repository?: string): boolean =>
    scopes === undefined ||
    scopes.has(SCOPE_OF[action]) ||
    places.some((place) => place.actions.includes(action) && (place.repository === undefined || place.repository === repository))
  return { subject, token, may }
}

interface Place {
  readonly actions: readonly RegistryAction[]
  /** Undefined: every one. */
  readonly repository: string | undefined
}

/** Where scopes of the registry allow what. One that names what is no repository allows nothing. */
function placesOf(scopes: ReadonlySet<string>): Place[] {
  return [...scopes].flatMap((scope): Place[] => {
    const [, verb, path] = /^registry:(pull|push)(?::(.+))?$/.exec(scope) ?? []
    if (verb === undefined) return []
    const actions: RegistryAction[] = verb === 'push' ? ['pull', 'push'] : ['pull']
    return (path === undefined ? [undefined] : repositoryIn(path)).map((repository) => ({ actions, repository }))
  })
}

/** The caller that an `Authorization` header proves. Throws `unauthorized`. */
export async function provenRegistryCaller(authority: Authority, authorization: string | undefined): Promise<RegistryCaller> {
  const claims = await authority.claimsOf(bearerOf(authorization))
  if (!isForRegistryAlone(claims)) return registryCallerOf(callerOfClaims(claims))
  return callerOfRegistryClaims(claims)
}

/** What is not there is not allowed: no repositories, and no more than to pull. */
function callerOfRegistryClaims(claims: JWTPayload): RegistryCaller {
  const { sub = '', repos, scope } = claims
  const repositories = new Set((Array.isArray(repos) ? repos : []).flatMap(repositoryIn))
  const actions = new Set<RegistryAction>(['pull'])
  if (typeof scope === 'string' && scope.split(/[\s,]+/).includes('push')) actions.add('push')
  const may = (action: RegistryAction, repository?: string): boolean =>
    repository !== undefined && repositories.has(repository) && actions.has(action)
  return { subject: sub, token: factsOf(claims), may }
}

function repositoryIn(path: unknown): string[] {
  try {
    return typeof path === 'string' ? [parseRepository(path)] : []
  } catch (error) {
    if (error instanceof RegistryError) return []
    throw error
  }
}

const BASIC = /^Basic +([A-Za-z0-9+/]{1,16384}={0,2})$/i
const JWT = /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/

/** A Basic header as the Bearer header that it means. */
function bearerOf(authorization: string | undefined): string | undefined {
  const basic = authorization === undefined ? undefined : BASIC.exec(authorization)?.[1]
  if (basic === undefined) return authorization
  const text = Buffer.from(basic, 'base64').toString('utf8')
  const colon = text.indexOf(':')
  const token = [text.slice(colon + 1), text.slice(0, Math.max(0, colon))].find((part) => JWT.test(part))
  return `Bearer ${token ?? ''}`
}
