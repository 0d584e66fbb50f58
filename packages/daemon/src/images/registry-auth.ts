/**
 * Credentials for one registry: Basic, or short-lived tokens from the realm that it names. Sources: RFC 9110 section 11, the
 * distribution project's token specification.
 */
import { AppError } from '@dormouse/api/errors.ts'
import type { Credentials } from './keychain.ts'
import type { RegistryNetwork } from './registry-network.ts'

export interface Challenge {
  readonly scheme: string
  readonly parameters: ReadonlyMap<string, string>
}

const MAX_TOKEN_ANSWER = 256 * 1024
const MAX_CHALLENGE = 8 * 1024
// The specification's default, and what is taken off so that a token does not end on its way.
const DEFAULT_LIFE_S = 60
const MARGIN_MS = 10_000

export class RegistryAuth {
  readonly #network: RegistryNetwork
  readonly #credentials: Credentials | undefined
  readonly #tokens = new Map<string, { header: string; until: number }>()
  readonly #asked = new Map<string, Promise<string>>()
  #basic: string | undefined

  constructor(network: RegistryNetwork, credentials: Credentials | undefined) {
    this.#network = network
    this.#credentials = credentials
  }

  get hasCredentials(): boolean {
    return this.#credentials !== undefined
  }

  /** What to send without having been asked; undefined when nothing is known yet. */
  header(scope: string): string | undefined {
    if (this.#credentials?.registryToken !== undefined) return `Bearer ${this.#credentials.registryToken}`
    const token = this.#tokens.get(scope)
    if (token && token.until > Date.now()) return token.header
    return this.#basic
  }

  /**
   * Answers a 401 to a request that had `sent` for its authorization. Undefined when there is nothing more to offer. Requests that
   * were refused at the same time share one token.
   */
  async answer(
    challenges: readonly Challenge[],
    scope: string,
    sent: string | undefined,
    signal: AbortSignal,
  ): Promise<string | undefined> {
    if (this.#credentials?.registryToken !== undefined) return undefined
    const known = this.header(scope)
    if (known !== undefined && known !== sent) return known
    const bearer = challenges.find(({ scheme }) => scheme === 'bearer')
    if (bearer) {
      let asked = this.#asked.get(scope)
      if (!asked) {
        asked = this.#token(bearer, scope, signal).finally(() => this.#asked.delete(scope))
        this.#asked.set(scope, asked)
      }
      return await asked
    }
    const { username, password } = this.#credentials ?? {}
    if (challenges.some(({ scheme }) => scheme === 'basic') && username !== undefined && this.#basic === undefined) {
      this.#basic = basic(username, password ?? '')
      return this.#basic
    }
    return undefined
  }

  async #token(challenge: Challenge, scope: string, signal: AbortSignal): Promise<string> {
    const realm = challenge.parameters.get('realm') ?? ''
    if (!URL.canParse(realm)) throw new AppError('registry_refused', 'The registry names a token realm that is no URL')
    const url = new URL(realm)
    const service = challenge.parameters.get('service')
    const { username, password, identityToken } = this.#credentials ?? {}
    const common = { signal, isRealm: true, headers: { accept: 'application/json' } }
    const response =
      identityToken === undefined
        ? await this.#network.request(withQuery(url, { service, scope }), {
            ...common,
            ...(username === undefined ? {} : { authorization: basic(username, password ?? '') }),
          })
        : await this.#network.request(url, {
            ...common,
            method: 'POST',
            headers: { ...common.headers, 'content-type': 'application/x-www-form-urlencoded' },
            body: form({ grant_type: 'refresh_token', refresh_token: identityToken, client_id: 'dormouse', service, scope }),
          })
    const text = await boundedText(response.body, MAX_TOKEN_ANSWER)
    if (response.statusCode === 401 || response.statusCode === 403) {
      throw new AppError('registry_unauthorized', `The token service ${url.host} refused the credentials`, { hint: CREDENTIALS_HINT })
    }
    if (response.statusCode !== 200) {
      throw new AppError('registry_unavailable', `The token service ${url.host} answered ${response.statusCode}`)
    }
    const { token, lifeS } = parseToken(text, url.host)
    const header = `Bearer ${token}`
    this.#tokens.set(scope, { header, until: Date.now() + lifeS * 1000 - MARGIN_MS })
    return header
  }
}

export const CREDENTIALS_HINT = 'Give credentials with the request, or in the file that DORMOUSE_REGISTRY_CREDENTIALS_FILE names'

/** `Bearer realm="…",service="…"`, several after each other or in several headers. What is malformed is left out. */
export function parseChallenges(header: string | readonly string[] | undefined): Challenge[] {
  const text = (Array.isArray(header) ? header.join(', ') : ((header as string | undefined) ?? '')).slice(0, MAX_CHALLENGE)
  const challenges: { scheme: string; parameters: Map<string, string> }[] = []
  const token = /\s*,?\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+)))?/y
  while (token.lastIndex < text.length) {
    const match = token.exec(text)
    if (!match) break
    const [, name = '', quoted, bare] = match
    if (quoted === undefined && bare === undefined) challenges.push({ scheme: name.toLowerCase(), parameters: new Map() })
    else challenges.at(-1)?.parameters.set(name.toLowerCase(), quoted?.replace(/\\(.)/g, '$1') ?? bare ?? '')
  }
  return challenges
}

function parseToken(text: string, host: string): { token: string; lifeS: number } {
  let answer: unknown
  try {
    answer = JSON.parse(text)
  } catch (cause) {
    throw new AppError('registry_unavailable', `The token service ${host} gave no JSON`, { cause })
  }
  const { token, access_token: access, expires_in: life } = (answer ?? {}) as Record<string, unknown>
  const found = typeof token === 'string' && token !== '' ? token : access
  // It becomes part of a header.
  if (typeof found !== 'string' || !/^[\x21-\x7e]+$/.test(found))
    throw new AppError('registry_unavailable', `The token service ${host} gave no token`)
  return { token: found, lifeS: typeof life === 'number' && life > 0 ? Math.min(life, 86_400) : DEFAULT_LIFE_S }
}

/** The whole body as text. Throws `invalid_image` past the limit. */
export async function boundedText(body: AsyncIterable<Buffer>, limit: number): Promise<string> {
  return (await boundedBytes(body, limit)).toString('utf8')
}

export async function boundedBytes(body: AsyncIterable<Buffer>, limit: number): Promise<Buffer> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of body) {
    length += chunk.length
    if (length > limit)
      throw new AppError('invalid_image', `The registry sent more than ${limit} bytes where a small document was asked for`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

const basic = (username: string, password: string): string => `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`

function withQuery(url: URL, query: Readonly<Record<string, string | undefined>>): URL {
  const full = new URL(url)
  // A scope is one parameter for each repository.
  for (const [key, value] of Object.entries(query)) for (const one of value?.split(' ') ?? []) full.searchParams.append(key, one)
  return full
}

const form = (fields: Readonly<Record<string, string | undefined>>): string =>
  new URLSearchParams(Object.entries(fields).filter((field): field is [string, string] => field[1] !== undefined)).toString()
