import type { Readable } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Dispatcher } from 'undici'
import { algorithmOf, digestOf } from './digest.ts'
import type { Credentials } from './keychain.ts'
import { MANIFEST_TYPES } from './manifest.ts'
import { boundedBytes, boundedText, CREDENTIALS_HINT, parseChallenges, RegistryAuth } from './registry-auth.ts'
import { type Lookup, type NetworkPolicy, RegistryNetwork, type RegistryRequest } from './registry-network.ts'

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
  readonly #scope: string

  /** `registry` as in references; `host` is where its API is (a mirror, or Docker's other name). */
  constructor(options: {
    registry: string
    host: string
    repository: string
    credentials?: Credentials | undefined
    policy: NetworkPolicy
    maxDocumentBytes: number
    lookup?: Lookup
    /** It is pushed to; blobs may come from the other repository that is named. */
    push?: { readonly mountFrom?: string | undefined }
  }) {
    this.#registry = options.registry
    this.#repository = options.repository
    this.#maxDocument = options.maxDocumentBytes
    const { push, repository } = options
    const mount = push?.mountFrom === undefined ? '' : ` repository:${push.mountFrom}:pull`
    this.#scope = `repository:${repository}:pull${push ? ',push' : ''}${mount}`
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

  // Pushing

  async hasBlob(digest: string, signal: AbortSignal): Promise<boolean> {
    const response = await this.#authorized(this.#url(`blobs/${digest}`), { method: 'HEAD', headers: {}, signal })
    await this.#expectTaken(response, [200, 404], `the blob ${digest}`)
    return response.statusCode === 200
  }

  /** Where to send a blob to; undefined when it need not be sent, since the registry takes it from the repository `from`. */
  async beginUpload(signal: AbortSignal, mount?: { digest: string; from: string }): Promise<URL | undefined> {
    const url = this.#url('blobs/uploads/')
    if (mount) url.search = new URLSearchParams({ mount: mount.digest, from: mount.from }).toString()
    const response = await this.#authorized(url, { method: 'POST', headers: { 'content-length': '0' }, signal })
    await this.#expectTaken(response, [201, 202], 'an upload')
    return response.statusCode === 201 ? undefined : this.#locationOf(response, url)
  }

  /** How much of an upload has arrived; undefined when the registry knows nothing of it. */
  async uploadedBytes(location: URL, signal: AbortSignal): Promise<number | undefined> {
    const response = await this.#authorized(location, { headers: {}, signal })
    if (response.statusCode !== 204) {
      await response.body.dump({ limit: 64 * 1024 }).catch(() => undefined)
      return undefined
    }
    const [, end] = /^(?:bytes=)?0-(\d{1,15})$/.exec(String(response.headers.range)) ?? []
    // Nothing has arrived, or one byte: the specification cannot tell the two apart. Asked for again it is sent again.
    return end === undefined || end === '0' ? undefined : Number(end) + 1
  }

  /** Sends the bytes from `from` up to `size`, and gives where to go on. */
  async appendUpload(location: URL, part: { open: () => Readable; from: number; size: number }, signal: AbortSignal): Promise<URL> {
    const { open: body, from, size } = part
    const headers: Record<string, string> = { 'content-type': 'application/octet-stream', 'content-length': String(size - from) }
    // Not with a whole blob: some registries take a range for a part of several, and want more to follow.
    if (from > 0) headers['content-range'] = `${from}-${size - 1}`
    const response = await this.#authorized(location, { method: 'PATCH', headers, body, signal })
    await this.#expectTaken(response, [201, 202, 204], 'a blob')
    return this.#locationOf(response, location)
  }

  async finishUpload(location: URL, digest: string, signal: AbortSignal): Promise<void> {
    const url = new URL(location)
    url.searchParams.set('digest', digest)
    const response = await this.#authorized(url, { method: 'PUT', headers: { 'content-length': '0' }, signal })
    await this.#expectTaken(response, [201, 204], `the blob ${digest}`)
  }

  async putManifest(tag: string, manifest: { bytes: Buffer; mediaType: string }, signal: AbortSignal): Promise<void> {
    const { bytes, mediaType } = manifest
    const response = await this.#authorized(this.#url(`manifests/${tag}`), {
      method: 'PUT',
      headers: { 'content-type': mediaType },
      body: () => bytes,
      signal,
    })
    await this.#expectTaken(response, [200, 201, 202, 204], `the manifest ${tag}`)
  }

  #url(path: string): URL {
    return new URL(`${this.#network.origin}/v2/${this.#repository}/${path}`)
  }

  #locationOf(response: Dispatcher.ResponseData, asked: URL): URL {
    const { location } = response.headers
    if (typeof location === 'string' && URL.canParse(location, asked.href)) return new URL(location, asked)
    throw new AppError('registry_refused', `The registry ${this.#registry} does not say where the upload is to go`)
  }

  async #read(response: Dispatcher.ResponseData): Promise<Buffer> {
    try {
      return await boundedBytes(response.body, this.#maxDocument)
    } catch (error) {
      if (error instanceof AppError) throw error
      throw new AppError('registry_unavailable', `The connection to the registry ${this.#registry} broke off`, { cause: error })
    }
  }

  /** A body is opened anew each time that it is sent. */
  async #authorized(
    url: URL,
    options: Pick<RegistryRequest, 'method' | 'signal'> & { headers: Record<string, string>; body?: () => Buffer | Readable },
  ): Promise<Dispatcher.ResponseData> {
    const scope = this.#scope
    const { body, ...rest } = options
    let authorization = this.#auth.header(scope)
    // Twice: a token that was held may have ended, and a registry may want Basic after all.
    for (let tries = 0; ; tries++) {
      const response = await this.#network.request(url, {
        ...rest,
        ...(body && { body: body() }),
        ...(authorization === undefined ? {} : { authorization }),
      })
      if (response.statusCode !== 401 || tries === 2) return response
      const challenges = parseChallenges(response.headers['www-authenticate'])
      const next = await this.#auth.answer(challenges, scope, authorization, options.signal)
      if (next === undefined) return response
      await response.body.dump({ limit: 64 * 1024 }).catch(() => undefined)
      authorization = next
    }
  }

  /** Like `#expect`, for what is sent. What the registry says of it is told: it is about what was asked of us. */
  async #expectTaken(response: Dispatcher.ResponseData, statuses: readonly number[], what: string): Promise<void> {
    const { statusCode: status, headers } = response
    const place = `${this.#registry}/${this.#repository}`
    if (statuses.includes(status)) {
      await response.body.dump({ limit: 64 * 1024 }).catch(() => undefined)
      return
    }
    const said = await boundedText(response.body, 16 * 1024).catch(() => '')
    const detail = detailOf(status, said)
    const seconds = parseRetryAfter(headers['retry-after'])
    const retry = seconds === undefined ? {} : { retryAfterSeconds: seconds }
    if (status === 401) {
      const kind = this.#auth.hasCredentials ? 'other credentials' : 'credentials'
      throw new AppError('registry_unauthorized', `The registry ${this.#registry} wants ${kind} for a push to ${place}`, {
        detail,
        hint: CREDENTIALS_HINT,
      })
    }
    if (status === 429)
      throw new AppError('rate_limited', `The registry ${this.#registry} answers no more requests for now`, { detail, ...retry })
    const answer = `The registry ${this.#registry} answered ${status} to ${what} for ${place}${reasonIn(said)}`
    if (PASSING.has(status)) throw new AppError('registry_unavailable', answer, { detail, ...retry })
    throw new AppError('registry_refused', answer, { detail, hint: CREDENTIALS_HINT })
  }

  async #expect(response: Dispatcher.ResponseData, statuses: readonly number[], what: string): Promise<void> {
    const { statusCode: status } = response
    if (statuses.includes(status)) return
    const said = await boundedText(response.body, 16 * 1024).catch(() => '')
    const detail = detailOf(status, said)
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

/** Statuses of which another try may bring something else. */
const PASSING = new Set([408, 425, 500, 502, 503, 504])

/** Seconds of a Retry-After, a number or a date; undefined when it is neither. A day at most. */
export function parseRetryAfter(header: string | string[] | undefined, now = Date.now()): number | undefined {
  if (typeof header !== 'string') return undefined
  const seconds = /^\d{1,9}$/.test(header) ? Number(header) : Math.ceil((Date.parse(header) - now) / 1000)
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 0), 86_400) : undefined
}

/** Only what a registry says as such: the words of whatever else may answer there are for no one. */
function detailOf(status: number, said: string): { readonly status: number; readonly said?: string } {
  const reason = reasonIn(said)
  return reason === '' ? { status } : { status, said: reason.slice(2, -1) }
}

/** The first message of an error as the distribution specification has it. */
function reasonIn(said: string): string {
  try {
    const { errors } = JSON.parse(said) as { errors?: { code?: unknown; message?: unknown }[] }
    const { code, message } = errors?.[0] ?? {}
    const text = [code, message].filter((one) => typeof one === 'string' && one !== '').join(': ')
    // A stranger's text, in our sentence and logs.
    return text === '' ? '' : ` (${text.replace(/[^\x20-\x7e]/g, '?').slice(0, 200)})`
  } catch {
    return ''
  }
}
