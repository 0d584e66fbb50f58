import { AppError } from '@dormouse/api/errors.ts'
import type { Dispatcher } from 'undici'
import { algorithmOf, digestOf } from './digest.ts'
import type { Credentials } from './keychain.ts'
import { MANIFEST_TYPES } from './manifest.ts'
import { boundedBytes, boundedText, CREDENTIALS_HINT, parseChallenges, RegistryAuth } from './registry-auth.ts'
import { type Lookup, type NetworkPolicy, RegistryNetwork } from './registry-network.ts'

export interface Document {
  readonly bytes: Buffer
  readonly digest: string
  readonly mediaType: string | undefined
}

/** One repository of one registry, over the distribution API v2. Says what went wrong in our own codes. */
export class RegistryClient implements AsyncDisposable {
  readonly #network: RegistryNetwork
  readonly #auth: RegistryAuth
  readonly #registry: string
  readonly #repository: string
  readonly #maxDocument: number

  /** `registry` as in references; `host` is where its API is (a mirror, or Docker's other name). */
  constructor(options: {
    registry: string
    host: string
    repository: string
    credentials?: Credentials | undefined
    policy: NetworkPolicy
    maxDocumentBytes: number
    lookup?: Lookup
  }) {
    this.#registry = options.registry
    this.#repository = options.repository
    this.#maxDocument = options.maxDocumentBytes
    this.#network = new RegistryNetwork(options.host, options.policy, options.lookup)
    this.#auth = new RegistryAuth(this.#network, options.credentials)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#network[Symbol.asyncDispose]()
  }

  /** A manifest or an index, verified where `reference` is a digest. */
  async manifest(reference: string, signal: AbortSignal): Promise<Document> {
    const url = new URL(`${this.#network.origin}/v2/${this.#repository}/manifests/${encodeURIComponent(reference).replaceAll('%3A', ':')}`)
    const response = await this.#authorized(url, { headers: { accept: MANIFEST_TYPES.join(', ') }, signal })
    await this.#expect(response, [200], `${this.#registry}/${this.#repository}${reference.includes(':') ? '@' : ':'}${reference}`)
    const bytes = await this.#read(response)
    const digest = digestOf(bytes, reference.startsWith('sha512:') ? 'sha512' : 'sha256')
    const claimed = response.headers['docker-content-digest']
    const wanted = reference.includes(':') ? reference : typeof claimed === 'string' && claimed.startsWith('sha256:') ? claimed : digest
    if (digest !== wanted)
      throw new AppError('invalid_image', `The registry sent a manifest with the digest ${digest} where ${wanted} was asked for`)
    const type = response.headers['content-type']
    return { bytes, digest, mediaType: typeof type === 'string' ? type.split(';')[0]?.trim() : undefined }
  }

  /** A small blob, whole and verified: an image's configuration. */
  async document(digest: string, size: number, signal: AbortSignal): Promise<Buffer> {
    if (size > this.#maxDocument) throw new AppError('invalid_image', `The image's configuration is larger than ${this.#maxDocument} bytes`)
    const response = await this.blob(digest, 0, signal)
    const bytes = await this.#read(response)
    if (bytes.length !== size || digestOf(bytes, algorithmOf(digest)) !== digest) {
      throw new AppError('invalid_image', `The registry sent something else for ${digest}`)
    }
    return bytes
  }

  /** A blob from `offset` on: the answer is 206, or 200 when the registry sends all of it again. */
  async blob(digest: string, offset: number, signal: AbortSignal): Promise<Dispatcher.ResponseData> {
    const url = new URL(`${this.#network.origin}/v2/${this.#repository}/blobs/${digest}`)
    const headers: Record<string, string> = offset > 0 ? { range: `bytes=${offset}-` } : {}
    const response = await this.#authorized(url, { headers, signal })
    await this.#expect(response, offset > 0 ? [200, 206] : [200], `the blob ${digest} of ${this.#registry}/${this.#repository}`)
    return response
  }

  async #read(response: Dispatcher.ResponseData): Promise<Buffer> {
    try {
      return await boundedBytes(response.body, this.#maxDocument)
    } catch (error) {
      if (error instanceof AppError) throw error
      throw new AppError('registry_unavailable', `The connection to the registry ${this.#registry} broke off`, { cause: error })
    }
  }

  async #authorized(url: URL, options: { headers: Record<string, string>; signal: AbortSignal }): Promise<Dispatcher.ResponseData> {
    const scope = `repository:${this.#repository}:pull`
    let authorization = this.#auth.header(scope)
    // Twice: a token that was held may have ended, and a registry may want Basic after all.
    for (let tries = 0; ; tries++) {
      const response = await this.#network.request(url, { ...options, ...(authorization === undefined ? {} : { authorization }) })
      if (response.statusCode !== 401 || tries === 2) return response
      const challenges = parseChallenges(response.headers['www-authenticate'])
      const next = await this.#auth.answer(challenges, scope, authorization, options.signal)
      if (next === undefined) return response
      await response.body.dump({ limit: 64 * 1024 }).catch(() => undefined)
      authorization = next
    }
  }

  async #expect(response: Dispatcher.ResponseData, statuses: readonly number[], what: string): Promise<void> {
    const { statusCode: status } = response
    if (statuses.includes(status)) return
    const said = await boundedText(response.body, 16 * 1024).catch(() => '')
    const detail = { status, said: said.slice(0, 500) }
    switch (status) {
      case 401:
        throw new AppError(
          'registry_unauthorized',
          `The registry ${this.#registry} wants ${this.#auth.hasCredentials ? 'other ' : ''}credentials for ${what}`,
          {
            detail,
            hint: CREDENTIALS_HINT,
          },
        )
      case 403:
        throw new AppError('registry_refused', `The registry ${this.#registry} does not give out ${what}`, {
          detail,
          hint: CREDENTIALS_HINT,
        })
      case 404:
        throw new AppError('not_found', `The registry ${this.#registry} does not have ${what}`, {
          detail,
          hint: 'Check the name and its tag; some registries also answer this for what your login may not see',
        })
      case 429: {
        const retryAfterSeconds = parseRetryAfter(response.headers['retry-after'])
        throw new AppError('rate_limited', `The registry ${this.#registry} answers no more requests for now`, {
          detail,
          ...(retryAfterSeconds === undefined ? {} : { retryAfterSeconds }),
        })
      }
      default:
        throw new AppError('registry_unavailable', `The registry ${this.#registry} answered ${status} for ${what}`, { detail })
    }
  }
}

/** Seconds of a Retry-After, a number or a date; undefined when it is neither. A day at most. */
export function parseRetryAfter(header: string | string[] | undefined, now = Date.now()): number | undefined {
  if (typeof header !== 'string') return undefined
  const seconds = /^\d{1,9}$/.test(header) ? Number(header) : Math.ceil((Date.parse(header) - now) / 1000)
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 0), 86_400) : undefined
}
