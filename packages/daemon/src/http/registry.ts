/**
 * The OCI distribution API, version 1.1, at /v2: what docker, skopeo, buildah and others push to and pull from. Apart from the route
 * table, since nothing of it is ours to decide: paths, headers, statuses and errors are the specification's.
 */
import type { IncomingMessage } from 'node:http'
import type { Readable } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { isManifestType } from '../images/manifest.ts'
import { isDigest } from '../images/reference.ts'
import { blobUnknown, parseRepository, shortRepository } from '../images/registry/registry.ts'
import { RegistryError } from '../images/registry/registry-error.ts'
import type { Upload, UploadPart } from '../images/registry/uploads.ts'
import type { Logger } from '../log.ts'
import { type Authority, hostCaller } from './auth.ts'
import { cutWith, heldBy, whileTokenHolds } from './held-transfer.ts'
import { bytesOf } from './json-body.ts'
import { provenRegistryCaller, type RegistryAction, type RegistryCaller, registryCallerOf } from './registry-caller.ts'
import { registryRefusalOf } from './registry-problems.ts'
import type { RegistryDoor } from './uses.ts'

interface RegistryRouteUses {
  readonly registry: RegistryDoor
  readonly authority: Authority
  readonly log: Logger
  readonly isTrusted: boolean
  /** Of a request whose token does not hold. What to answer. */
  readonly noteRefused: (error: unknown, request: FastifyRequest) => unknown
  /** Of a request that changes something and may. Repeat is harmless. */
  readonly noteAdmitted: (request: FastifyRequest) => void
}

// A manifest is held as a whole; images/limits.ts has the same limit for those that are pulled.
const MANIFEST_LIMITS = { maxBytes: 2 * 1024 ** 2, maxMs: 30_000 }
const PAGE_MAX = 1000
const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE']

export function registryRoutes(uses: RegistryRouteUses): (app: FastifyInstance) => Promise<void> {
  return async (app) => {
    app.removeAllContentTypeParsers()
    app.addContentTypeParser('*', async (_: FastifyRequest, payload: IncomingMessage) => payload)
    // Before Fastify takes it for a type that is broken: some clients send it so for a document that tells its own.
    app.addHook('onRequest', async ({ raw: { headers } }) => {
      if (headers['content-type']?.trim() === '') delete headers['content-type']
    })
    app.setErrorHandler((error, request, reply) => refuse(error, request, reply, uses.log))
    for (const url of ['/v2', '/v2/', '/v2/*']) {
      app.route({
        method: METHODS,
        url,
        config: { access: 'itself', label: 'registry' },
        handler: async (request, reply) => {
          reply.header('docker-distribution-api-version', 'registry/2.0')
          const caller = uses.isTrusted ? registryCallerOf(hostCaller) : await callerOf(request, uses)
          request.caller = { subject: caller.subject, token: caller.token, scopes: undefined }
          return await answer(new Asked(request, reply, caller, uses))
        },
      })
    }
  }
}

async function callerOf(request: FastifyRequest, { authority, noteRefused }: RegistryRouteUses): Promise<RegistryCaller> {
  const { authorization } = request.headers
  try {
    return await provenRegistryCaller(authority, authorization)
  } catch (error) {
    // Programs ask without a token first, to hear what is wanted.
    throw authorization === undefined ? error : noteRefused(error, request)
  }
}

// Greedy: a repository may have such words in its own name.
const UPLOADS = /^(.+)\/blobs\/uploads(?:\/([^/]*))?$/
const PATH = /^(.+)\/(?:(manifests|blobs)\/([^/]+)|tags\/(list))$/

async function answer(asked: Asked): Promise<unknown> {
  const { method, path } = asked
  const isRead = method === 'GET' || method === 'HEAD'
  if (path === '') return isRead ? asked.json({}) : asked.unsupported()
  if (path === '_catalog') return isRead ? catalog(asked) : asked.unsupported()
  const upload = UPLOADS.exec(path)
  if (upload) return await answerUpload(asked, parseRepository(upload[1] ?? ''), upload[1] ?? '', upload[2] ?? '')
  const [, name = '', kind, reference = '', list] = PATH.exec(path) ?? []
  if (list && isRead) return tags(asked, parseRepository(name), name)
  if (kind === 'manifests') return await answerManifest(asked, parseRepository(name), name, reference)
  if (kind === 'blobs') return await answerBlob(asked, parseRepository(name), reference)
  // Clients that look for referrers take 404 for a registry without them.
  throw new RegistryError('NAME_UNKNOWN', 'The registry has nothing at this path')
}

// What there is

function catalog(asked: Asked): unknown {
  const repositories = asked.registry.repositories().filter((repository) => asked.caller.may('pull', repository))
  const page = asked.page(repositories.map(shortRepository).sort(), '/v2/_catalog')
  return asked.json({ repositories: page })
}

function tags(asked: Asked, repository: string, name: string): unknown {
  asked.admit('pull', repository)
  return asked.json({ name, tags: asked.page(asked.registry.tags(repository), `/v2/${name}/tags/list`) })
}

// Manifests

async function answerManifest(asked: Asked, repository: string, name: string, reference: string): Promise<unknown> {
  const { registry, reply } = asked
  switch (asked.method) {
    case 'GET':
    case 'HEAD': {
      asked.admitLook(repository)
      const { digest, mediaType, document } = registry.manifest(repository, reference)
      reply.headers({ 'content-type': mediaType, 'docker-content-digest': digest, etag: `"${digest}"`, 'content-length': document.length })
      return reply.send(asked.method === 'HEAD' ? undefined : document)
    }
    case 'PUT': {
      asked.admit('push', repository)
      const type = asked.header('content-type')?.split(';')[0]?.trim() || undefined
      if (type !== undefined && !isManifestType(type)) {
        throw new RegistryError('MANIFEST_INVALID', 'The content type is not that of a manifest or an index of OCI or Docker')
      }
      const { digest } = await registry.putManifest(repository, reference, type, await bytesOf(asked.body, MANIFEST_LIMITS))
      return reply
        .code(201)
        .headers({ location: `/v2/${name}/manifests/${digest}`, 'docker-content-digest': digest })
        .send()
    }
    case 'DELETE':
      asked.admit('delete', repository)
      await registry.deleteManifest(repository, reference)
      return reply.code(202).send()
    default:
      return asked.unsupported()
  }
}

// Blobs

async function answerBlob(asked: Asked, repository: string, digest: string): Promise<unknown> {
  if (!isDigest(digest)) throw digestInvalid(digest)
  const { registry, reply } = asked
  switch (asked.method) {
    case 'GET':
    case 'HEAD': {
      asked.admitLook(repository)
      const forPush = asked.method === 'HEAD' && asked.caller.may('push', repository)
      const blob = await registry.findBlob(repository, digest, { forPush })
      if (!blob) throw blobUnknown(digest)
      reply.headers({
        'content-type': 'application/octet-stream',
        'docker-content-digest': digest,
        etag: `"${digest}"`,
        'accept-ranges': 'bytes',
      })
      if (asked.method === 'HEAD') return reply.header('content-length', blob.size).send()
      const range = rangeOf(asked.header('range'), blob.size)
      if (range === undefined) return reply.header('content-length', blob.size).send(blob.size === 0 ? '' : asked.held(blob.open()))
      reply.code(206).headers({
        'content-range': `bytes ${range.start}-${range.end}/${blob.size}`,
        'content-length': range.end - range.start + 1,
      })
      return reply.send(asked.held(blob.open(range)))
    }
    case 'DELETE':
      asked.admit('delete', repository)
      await registry.deleteBlob(repository, digest)
      return reply.code(202).send()
    default:
      return asked.unsupported()
  }
}

async function answerUpload(asked: Asked, repository: string, name: string, id: string): Promise<unknown> {
  asked.admit('push', repository)
  const { registry, reply } = asked
  if (id === '') return asked.method === 'POST' ? await beginUpload(asked, repository, name) : asked.unsupported()
  const upload = registry.upload(repository, id)
  switch (asked.method) {
    case 'GET':
      return tellUpload(reply.code(204), upload, name).send()
    case 'PATCH':
      await appended(asked, upload, () => upload.append(asked.part()))
      return tellUpload(reply.code(202), upload, name).send()
    case 'PUT': {
      const digest = asked.digest() ?? ''
      const part = asked.part()
      return await stored(asked, name, () => appended(asked, upload, () => upload.finish(digest, part)))
    }
    case 'DELETE':
      await upload.cancel()
      return reply.code(204).send()
    default:
      return asked.unsupported()
  }
}

async function beginUpload(asked: Asked, repository: string, name: string): Promise<unknown> {
  const { registry, reply, query } = asked
  const mount = query.get('mount')
  if (mount !== null && isDigest(mount)) {
    const from = query.get('from')
    const source = from === null ? undefined : parseRepository(from)
    // Who may not look there is told no more than that it is not there.
    const isMounted = source !== undefined && asked.caller.may('pull', source) && (await registry.mount(repository, mount, source))
    if (isMounted)
      return reply
        .code(201)
        .headers({ location: `/v2/${name}/blobs/${mount}`, 'docker-content-digest': mount })
        .send()
  }
  const digest = query.has('digest') ? asked.digest() : undefined
  const algorithm = query.get('digest-algorithm') ?? digest?.split(':')[0] ?? 'sha256'
  if (algorithm !== 'sha256' && algorithm !== 'sha512') throw digestInvalid(algorithm)
  const expectedBytes = digest === undefined ? 0 : Number(asked.header('content-length') ?? 0)
  const upload = await registry.beginUpload(repository, { owner: asked.owner, algorithm, expectedBytes })
  if (digest === undefined) return tellUpload(reply.code(202), upload, name).send()
  return await stored(asked, name, async () => {
    try {
      return await upload.finish(digest, asked.part())
    } catch (error) {
      // No one knows it by its id.
      await upload.cancel()
      throw error
    }
  })
}

async function stored(asked: Asked, name: string, store: () => Promise<{ digest: string }>): Promise<unknown> {
  const { digest } = await store()
  return asked.reply
    .code(201)
    .headers({ location: `/v2/${name}/blobs/${digest}`, 'docker-content-digest': digest })
    .send()
}

/** A part that does not fit is answered with where the upload stands. */
async function appended<T>(asked: Asked, upload: Upload, append: () => Promise<T>): Promise<T> {
  try {
    return await append()
  } catch (error) {
    if (error instanceof RegistryError && error.code === 'RANGE_INVALID') asked.reply.header('range', extentOf(upload))
    throw error
  }
}

/** The specification knows no range of nothing; all registries say this. */
const extentOf = (upload: Upload): string => `0-${Math.max(0, upload.size - 1)}`

function tellUpload(reply: FastifyReply, upload: Upload, name: string): FastifyReply {
  return reply.headers({ location: `/v2/${name}/blobs/uploads/${upload.id}`, range: extentOf(upload), 'docker-upload-uuid': upload.id })
}

const digestInvalid = (digest: string): RegistryError =>
  new RegistryError('DIGEST_INVALID', `${JSON.stringify(digest.slice(0, 100))} is no digest of sha256 or sha512`)

/** A request that has proven who it comes from. */
class Asked {
  readonly method: string
  /** Below /v2/. */
  readonly path: string
  readonly query: URLSearchParams
  readonly reply: FastifyReply
  readonly caller: RegistryCaller
  readonly registry: RegistryDoor
  readonly #request: FastifyRequest
  readonly #authority: Authority
  readonly #noteAdmitted: RegistryRouteUses['noteAdmitted']

  constructor(
    request: FastifyRequest,
    reply: FastifyReply,
    caller: RegistryCaller,
    { registry, authority, noteAdmitted }: RegistryRouteUses,
  ) {
    this.reply = reply
    this.caller = caller
    this.registry = registry
    this.#request = request
    this.#authority = authority
    this.#noteAdmitted = noteAdmitted
    this.method = request.method
    this.path = (request.params as { '*'?: string })['*'] ?? ''
    this.query = new URL(request.url, 'http://any').searchParams
  }

  /** Throws DENIED. */
  admit(action: RegistryAction, repository: string): void {
    if (this.caller.may(action, repository)) {
      if (this.#isChange) this.#noteAdmitted(this.#request)
      return
    }
    const scope = action === 'delete' ? 'image:delete' : `registry:${action}`
    throw new RegistryError(
      'DENIED',
      `The token does not allow to ${action} here. Make one that does: dormouse token create --scope ${scope}`,
    )
  }

  /** A POST begins an upload, unless it is the whole of one. */
  get #isChange(): boolean {
    const { method, query } = this
    return method === 'PUT' || method === 'DELETE' || (method === 'POST' && query.has('digest'))
  }

  /** Who pushes asks with HEAD what is there. Throws DENIED. */
  admitLook(repository: string): void {
    if (this.method !== 'HEAD' || !this.caller.may('push', repository)) this.admit('pull', repository)
  }

  /** Whom uploads are counted with. */
  get owner(): string {
    const { token, subject } = this.caller
    return token?.id ?? subject
  }

  header(name: string): string | undefined {
    const value = this.#request.headers[name]
    return Array.isArray(value) ? value[0] : value
  }

  get body(): IncomingMessage {
    return this.#request.raw
  }

  digest(): string {
    const digest = this.query.get('digest') ?? ''
    if (!isDigest(digest)) throw digestInvalid(digest)
    return digest
  }

  part(): UploadPart {
    // Kept when it is given up, so that the refusal still gets through.
    const source = heldBy(this.#tokenHolds(), this.body.iterator({ destroyOnReturn: false }))
    const bytes = Number(this.header('content-length') ?? 0)
    return { source, bytes, range: contentRangeOf(this.header('content-range')), cut: () => void this.body.destroy() }
  }

  /** What is sent for as long as the caller's token holds. */
  held(stream: Readable): Readable {
    return cutWith(this.#tokenHolds(), stream)
  }

  #tokenHolds(): AbortSignal {
    return whileTokenHolds(this.#authority, this.caller, this.reply)
  }

  json(value: object): FastifyReply {
    return this.reply.type('application/json; charset=utf-8').send(this.method === 'HEAD' ? '' : JSON.stringify(value))
  }

  /** The part of a sorted list that is asked for by `n` and `last`; a Link leads to the next. Throws PAGINATION_NUMBER_INVALID. */
  page(sorted: readonly string[], path: string): string[] {
    const wanted = this.query.get('n')
    if (wanted !== null && !/^\d{1,9}$/.test(wanted)) throw new RegistryError('PAGINATION_NUMBER_INVALID', '`n` must be a whole number')
    const last = this.query.get('last') ?? ''
    const rest = sorted.filter((one) => one > last)
    const page = rest.slice(0, Math.min(wanted === null ? PAGE_MAX : Number(wanted), PAGE_MAX))
    const end = page.at(-1)
    if (end !== undefined && page.length < rest.length) {
      this.reply.header('link', `<${path}?${new URLSearchParams({ last: end, n: String(page.length) })}>; rel="next"`)
    }
    return page
  }

  unsupported(): never {
    throw new RegistryError('UNSUPPORTED', `${this.method} cannot be used here`)
  }
}

/** `0-1023`, also as other registries have it: `bytes 0-1023/2048`. Throws RANGE_INVALID. */
function contentRangeOf(header: string | undefined): UploadPart['range'] {
  if (header === undefined) return undefined
  const [, from, to] = /^(?:bytes[ =])?(\d{1,15})-(\d{1,15})(?:\/(?:\d+|\*))?$/.exec(header) ?? []
  if (from === undefined || to === undefined || Number(to) < Number(from)) {
    throw new RegistryError('RANGE_INVALID', 'The Content-Range is not of the form <first byte>-<last byte>')
  }
  return { from: Number(from), to: Number(to) }
}

/** One range of bytes; all of it where there is none, or several. Throws RANGE_INVALID for what lies outside. */
function rangeOf(header: string | undefined, size: number): { start: number; end: number } | undefined {
  const [, first = '', last = ''] = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header ?? '') ?? []
  if (first === '' && last === '') return undefined
  const start = first === '' ? Math.max(0, size - Number(last)) : Number(first)
  const end = first === '' || last === '' ? size - 1 : Math.min(Number(last), size - 1)
  if (start > end) throw new RegistryError('RANGE_INVALID', `The blob has ${size} bytes`)
  return { start, end }
}

function refuse(error: unknown, request: FastifyRequest, reply: FastifyReply, log: Logger): FastifyReply {
  const isGone = request.raw.destroyed && !request.raw.complete
  const { status, headers, body, auditCode, isFault } = registryRefusalOf(isGone && !(error instanceof AppError) ? brokeOff(error) : error)
  request.failedWith = auditCode
  if (isFault) log.error({ err: error, requestId: request.id, route: 'registry' }, 'request failed')
  reply.code(status).headers(headers).type('application/json; charset=utf-8')
  // What is left of a refused upload is not read: the connection ends with the answer.
  if (!request.raw.complete) reply.header('connection', 'close')
  return reply.send(request.method === 'HEAD' ? undefined : JSON.stringify(body))
}

const brokeOff = (cause: unknown): RegistryError => new RegistryError('BLOB_UPLOAD_INVALID', 'The upload broke off', { cause })
