/**
 * The registry that other programs push to and pull from: the OCI distribution API without its HTTP, which is in http/registry.ts.
 *
 * A repository here is part of the names of images: what is pushed as `team/app:1` is the image `docker.io/team/app:1`, as
 * `dormouse run team/app:1` reads it. Blobs are in the one store that pulls use. A pushed manifest is a row; in the transaction that
 * writes it (the commit point) the image that it makes is entered too, and its conversion begins. A tag is a name of an image: it
 * goes with the name, and is out of date when the name leads elsewhere. What was pulled or imported can be pulled from here as well.
 */
import { Readable } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Events } from '../../events/events.ts'
import type { Logger } from '../../log.ts'
import type { Database } from '../../store/database.ts'
import type { ImageRow, ImageRows } from '../../store/images.ts'
import type { RegistryRows } from '../../store/registry.ts'
import { checkedConfig, type FoundImage } from '../archive-image.ts'
import type { BlobStore } from '../blob-store.ts'
import { algorithmOf, digestOf } from '../digest.ts'
import type { ImageShelf } from '../image-shelf.ts'
import type { ImageWork } from '../image-work.ts'
import type { ImageLimits } from '../limits.ts'
import {
  type Descriptor,
  type Index,
  isManifestType,
  type Manifest,
  mediaTypeOf,
  ownMediaTypeOf,
  parseManifest,
  selectPlatform,
} from '../manifest.ts'
import { formatPlatform, hostPlatform, type Platform, parsePlatform, SUPPORTED_PLATFORMS } from '../platform.ts'
import { isDigest, isTag, parseReference } from '../reference.ts'
import { RegistryError } from './registry-error.ts'
import { type Arriving, type Upload, Uploads } from './uploads.ts'

export interface RegistryUses {
  readonly db: Database
  readonly events: Pick<Events, 'record'>
  readonly log: Logger
  readonly rows: ImageRows
  readonly pushed: RegistryRows
  readonly store: BlobStore
  readonly shelf: ImageShelf
  readonly work: ImageWork
  readonly limits: ImageLimits
  /** Nothing may be asked before it has resolved. */
  readonly recover: () => Promise<void>
  /** Takes a name away, as a user does. */
  readonly removeName: (name: string) => Promise<void>
  /** Throws `insufficient_resources` when images would take more of the disk than they may with what is `arriving`. */
  readonly checkShare: () => Promise<void>
  readonly crashPoint?: (operation: string, step: string) => Promise<void>
}

export interface FoundManifest {
  readonly digest: string
  readonly mediaType: string
  readonly document: Buffer
}

export interface FoundBlob {
  readonly digest: string
  readonly size: number
  /** From `start` up to and with `end`. */
  open(range?: { start: number; end: number }): Readable
}

/** An image that an instance can be made of. */
interface Runnable {
  readonly found: FoundImage
  readonly platform: Platform
}

// What was uploaded, and manifests that only an index may lead to, wait so long for what needs them.
const WANTED_MS = 24 * 3_600_000
const COLLECT_EVERY_MS = 600_000
// They are rows, not files.
const MAX_WAITING_BYTES = 64 * 1024 ** 2
const UPLOAD_LIMITS = {
  ...{ maxUploads: 128, maxPerOwner: 64 },
  ...{ forgottenAfterMs: 3_600_000, emptyForgottenAfterMs: 60_000, idleLimitMs: 60_000 },
}

export class Registry implements AsyncDisposable {
  readonly #uses: RegistryUses
  readonly #uploads: Uploads
  readonly #timer: NodeJS.Timeout

  constructor(uses: RegistryUses) {
    this.#uses = uses
    this.#uploads = new Uploads({
      store: uses.store,
      limits: { ...UPLOAD_LIMITS, maxBlobBytes: uses.limits.maxImageBytes },
      checkRoom: async (bytes) => {
        await uses.shelf.checkRoom(bytes)
        await uses.checkShare()
      },
      onVerified: async (repository, digest) => {
        // The row first: a file that no row speaks of is swept at any time.
        this.#take(repository, digest)
        await this.#reach('blob')
      },
    })
    this.#timer = setInterval(() => void this.#collectLater(), COLLECT_EVERY_MS).unref()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer)
    await this.#uploads[Symbol.asyncDispose]()
  }

  /** Gives up what was abandoned: uploads, blobs and manifests that nothing came to need. */
  async collect(nowMs = Date.now()): Promise<void> {
    await this.#uploads.collect(nowMs)
    await this.#uses.shelf.sweep()
  }

  async #collectLater(): Promise<void> {
    await this.collect().catch((err) => this.#uses.log.warn({ err }, 'collecting what was abandoned in the registry failed'))
  }

  // Looking

  /** Repositories that have an image, in the order of their names. */
  repositories(): string[] {
    return [...new Set(this.#uses.rows.names().map(({ name }) => repositoryOf(name)))].sort()
  }

  /** In their order. Throws NAME_UNKNOWN for a repository without any. */
  tags(repository: string): string[] {
    const names = this.#uses.rows.namesIn(repository)
    if (names.length === 0) throw nameUnknown(repository)
    const here = names.filter(({ name, digest }) => digest !== undefined || this.#uses.pushed.findTagged(name) !== undefined)
    const tags = here.map(({ name }) => name.slice(repository.length + 1)).filter((tag) => !isDigest(tag))
    return [...new Set(tags)].sort()
  }

  /** By tag or digest. Throws MANIFEST_UNKNOWN. */
  manifest(repository: string, reference: string): FoundManifest {
    const found = isDigest(reference) ? this.#manifestBy(repository, reference) : this.#manifestTagged(repository, reference)
    if (found) return found
    throw new RegistryError('MANIFEST_UNKNOWN', `There is no ${reference} in this repository`)
  }

  /** Undefined when the repository does not have it. Where a push asks (`forPush`) it is kept for a while, for the manifest that is to come. */
  async findBlob(repository: string, digest: string, { forPush = false } = {}): Promise<FoundBlob | undefined> {
    await this.#uses.recover()
    const { store, shelf, pushed } = this.#uses
    const images = pushed.hasBlob(repository, digest) ? [] : this.#imagesIn(repository)
    const config = images.find((image) => configDigestOf(image) === digest)?.config
    if (config) {
      const slice = ({ start, end } = { start: 0, end: config.length - 1 }): Readable => Readable.from([config.subarray(start, end + 1)])
      return { digest, size: config.length, open: slice }
    }
    const isKnown = pushed.hasBlob(repository, digest) || images.some((image) => this.#uses.rows.layersOf(image.digest).includes(digest))
    if (!isKnown) return undefined
    if (forPush) shelf.holdBlob(digest)
    const size = await store.sizeOf(digest)
    return size === undefined ? undefined : { digest, size, open: (range) => store.read(digest, range) }
  }

  // Pushing

  /** `owner` is who it is counted with. Throws TOOMANYREQUESTS, and `insufficient_resources` when the disk is full. */
  async beginUpload(repository: string, options: Parameters<Uploads['begin']>[1]): Promise<Upload> {
    await this.#uses.recover()
    return await this.#uploads.begin(repository, options)
  }

  /** What uploads bring. */
  get arriving(): Arriving {
    return this.#uploads.arriving
  }

  /** Throws BLOB_UPLOAD_UNKNOWN. */
  upload(repository: string, id: string): Upload {
    return this.#uploads.get(repository, id)
  }

  /** The repository has the blob of another from now on; false where that one does not have it. */
  async mount(repository: string, digest: string, from: string): Promise<boolean> {
    const blob = await this.findBlob(from, digest, { forPush: true })
    if (!blob) return false
    await this.#putInStore(repository, blob)
    this.#take(repository, digest)
    return true
  }

  /**
   * Takes a manifest or an index, all parts of which are here, under a tag or its digest. What can run on this host is an image from
   * then on: its conversion has begun. A tag must lead to an image; what is pushed by its digest may also be a part of an index.
   */
  async putManifest(repository: string, reference: string, declared: string | undefined, document: Buffer): Promise<FoundManifest> {
    await this.#uses.recover()
    const tag = isDigest(reference) ? undefined : reference
    if (tag !== undefined && !isTag(tag)) throw new RegistryError('MANIFEST_INVALID', 'The reference is neither a tag nor a digest')
    const digest = digestOf(document, algorithmOf(reference))
    if (tag === undefined && digest !== reference) throw new RegistryError('DIGEST_INVALID', `The manifest has the digest ${digest}`)
    const mediaType = declared ?? orInvalid(() => ownMediaTypeOf(document))
    if (!isManifestType(mediaType)) {
      throw new RegistryError('MANIFEST_INVALID', 'The content type is not that of a manifest or an index of OCI or Docker')
    }
    const parsed = orInvalid(() => parseManifest(document, mediaType, this.#uses.limits, { anyLayers: true }))
    await this.#uses.shelf.checkRoom(document.length)
    if (tag === undefined && this.#uses.pushed.waitingBytes() + document.length > MAX_WAITING_BYTES) {
      throw new RegistryError('TOOMANYREQUESTS', 'Too many manifests wait for an index that leads to them: try again later')
    }
    const manifest = { repository, digest, mediaType, document }
    if (parsed.kind === 'index') await this.#putIndex(manifest, parsed, tag)
    else await this.#putImage(manifest, parsed, tag)
    return manifest
  }

  async #putImage(manifest: FoundManifest & { repository: string }, parsed: Manifest, tag: string | undefined): Promise<void> {
    const { db, events, pushed, rows, shelf } = this.#uses
    const { repository, digest, document, mediaType } = manifest
    const parts = [parsed.config, ...parsed.layers]
    const blobs = await this.#requireBlobs(repository, parts)
    const runnable = await this.#runnable(repository, { digest, document, mediaType }).catch((error) => {
      // Part of an index it may be all the same.
      if (tag === undefined && error instanceof RegistryError) return undefined
      throw error
    })
    const isWanted = runnable && (tag !== undefined || formatPlatform(runnable.platform) === formatPlatform(hostPlatform()))
    for (const blob of blobs) await this.#putInStore(repository, blob)
    await this.#reach('manifest')
    db.transaction(() => {
      for (const blob of blobs) this.#take(repository, blob.digest)
      pushed.putManifest(
        manifest,
        parts.map((part) => part.digest),
        isWanted ? null : Date.now() + WANTED_MS,
      )
      if (
        isWanted &&
        (tag !== undefined || !rows.namesIn(repository).some((name) => name.digest === digest || name.nextDigest === digest))
      ) {
        this.#enter(nameOf(repository, tag ?? digest), runnable, tag === undefined ? undefined : manifest)
      }
      events.record({ kind: 'image.pushed', subject: nameOf(repository, tag ?? digest), data: { digest } })
    })
    for (const blob of blobs) shelf.releaseBlob(blob.digest)
    await this.#reach('recorded')
  }

  async #putIndex(manifest: FoundManifest & { repository: string }, index: Index, tag: string | undefined): Promise<void> {
    const { db, events, pushed, rows } = this.#uses
    const { repository, digest } = manifest
    for (const entry of index.entries) await this.#requireManifest(repository, entry)
    const runnable = tag === undefined ? undefined : await this.#runnableIn(repository, index)
    await this.#reach('manifest')
    db.transaction(() => {
      pushed.putManifest(
        manifest,
        index.entries.map((entry) => entry.digest),
        runnable ? null : Date.now() + WANTED_MS,
      )
      if (runnable && tag !== undefined) {
        this.#enter(nameOf(repository, tag), runnable, manifest)
        // It had this name only until the index came.
        const name = nameOf(repository, runnable.found.digest)
        for (const row of rows.namesCalled(name)) if (Object.keys(row.tags).length === 0) rows.deleteName(name, row.platform)
      }
      events.record({ kind: 'image.pushed', subject: nameOf(repository, tag ?? digest), data: { digest } })
    })
    await this.#reach('recorded')
  }

  /** Within the transaction: the image under its name, and the tag. Images of other platforms lose the name, which leads to what was pushed. */
  #enter(name: string, { found, platform }: Runnable, tagged: (FoundManifest & { repository: string }) | undefined): void {
    const { rows, pushed, shelf, work } = this.#uses
    work.admit({ name, platform: formatPlatform(platform), found })
    if (!tagged) return
    pushed.putTag(name, tagged.repository, tagged.digest)
    for (const row of rows.namesCalled(name)) {
      if (row.platform === formatPlatform(platform)) continue
      rows.deleteName(name, row.platform)
      shelf.forgetUnnamed(row)
    }
  }

  // Removing

  /** Takes tags away, and with a digest the manifest. Throws MANIFEST_UNKNOWN, and `in_use` or `conflict` while it is needed. */
  async deleteManifest(repository: string, reference: string): Promise<void> {
    await this.#uses.recover()
    const { db, pushed, rows, shelf, removeName } = this.#uses
    const { digest } = this.manifest(repository, reference)
    if (!isDigest(reference)) return await removeName(nameOf(repository, reference))
    if (pushed.isReferenced(repository, digest)) throw new AppError('in_use', 'An index of this repository stands on the manifest')
    const leading = rows.namesIn(repository).filter((row) => row.digest === digest || row.nextDigest === digest)
    const names = new Set([...pushed.namesTagged(repository, digest), ...leading.map((row) => row.name)])
    this.#refuseBusy(names)
    for (const name of names) await removeName(name)
    db.transaction(() => pushed.deleteManifest(repository, digest), { evenWhenFull: true })
    await shelf.sweep()
  }

  /** All of the names go, or none. */
  #refuseBusy(names: ReadonlySet<string>): void {
    const { rows, shelf } = this.#uses
    for (const row of [...names].flatMap((name) => rows.namesCalled(name))) shelf.refuseBusy(row, names)
  }

  /** The repository no longer has the blob. Throws BLOB_UNKNOWN, and `in_use` while a manifest or an image stands on it. */
  async deleteBlob(repository: string, digest: string): Promise<void> {
    const { db, pushed, shelf } = this.#uses
    if ((await this.findBlob(repository, digest)) === undefined) throw blobUnknown(digest)
    if (pushed.isReferenced(repository, digest) || !pushed.hasBlob(repository, digest)) {
      throw new AppError('in_use', 'A manifest of this repository stands on the blob')
    }
    db.transaction(() => pushed.deleteBlob(repository, digest), { evenWhenFull: true })
    await shelf.sweep()
  }

  // Below

  #take(repository: string, digest: string): void {
    this.#uses.db.transaction(() => this.#uses.pushed.putBlob(repository, digest, Date.now() + WANTED_MS))
  }

  #manifestBy(repository: string, digest: string): FoundManifest | undefined {
    const pushed = this.#uses.pushed.findManifest(repository, digest)
    if (pushed) return pushed
    const image = this.#uses.rows.find(digest)
    if (!image || !this.#uses.rows.namesIn(repository).some((name) => name.digest === digest)) return undefined
    return { digest, mediaType: mediaTypeOf(image.manifest), document: image.manifest }
  }

  #manifestTagged(repository: string, tag: string): FoundManifest | undefined {
    const name = nameOf(repository, tag)
    const pushed = this.#uses.pushed.findTagged(name)
    if (pushed) return pushed
    const named = this.#uses.rows.namesCalled(name).filter(({ digest }) => digest !== undefined)
    const own = named.find(({ platform }) => platform === formatPlatform(hostPlatform())) ?? named[0]
    const image = own?.digest === undefined ? undefined : this.#uses.rows.find(own.digest)
    return image && { digest: image.digest, mediaType: mediaTypeOf(image.manifest), document: image.manifest }
  }

  /** Images that are ready under names of this repository. */
  #imagesIn(repository: string): ImageRow[] {
    const digests = new Set(this.#uses.rows.namesIn(repository).flatMap(({ digest }) => digest ?? []))
    return [...digests].flatMap((digest) => this.#uses.rows.find(digest) ?? [])
  }

  async #requireBlobs(repository: string, parts: readonly Descriptor[]): Promise<FoundBlob[]> {
    const distinct = [...new Map(parts.map((part) => [part.digest, part])).values()]
    const blobs: FoundBlob[] = []
    for (const part of distinct) {
      const blob = await this.findBlob(repository, part.digest, { forPush: true })
      if (!blob) {
        throw new RegistryError('MANIFEST_BLOB_UNKNOWN', `The manifest stands on a blob that was not pushed: ${part.digest}`, {
          detail: { digest: part.digest },
        })
      }
      if (blob.size !== part.size) {
        throw new RegistryError('SIZE_INVALID', `The blob ${part.digest} has ${blob.size} bytes where the manifest says ${part.size}`)
      }
      blobs.push(blob)
    }
    return blobs
  }

  /** The configuration of an image that was pulled or imported is in its row: what a pushed manifest stands on must outlive that. */
  async #putInStore(repository: string, blob: FoundBlob): Promise<void> {
    if ((await this.#uses.store.sizeOf(blob.digest)) === blob.size) return
    const draft = await this.#uses.store.beginDraft(algorithmOf(blob.digest))
    try {
      for await (const chunk of blob.open()) await draft.write(chunk as Buffer)
      await draft.publish(blob, () => this.#take(repository, blob.digest))
    } finally {
      await draft.discard()
    }
  }

  async #requireManifest(repository: string, entry: Descriptor): Promise<void> {
    const found = this.#manifestBy(repository, entry.digest)
    if (!found) {
      throw new RegistryError('MANIFEST_BLOB_UNKNOWN', `The index lists a manifest that was not pushed: ${entry.digest}`, {
        detail: { digest: entry.digest },
      })
    }
    if (found.document.length !== entry.size) {
      throw new RegistryError(
        'SIZE_INVALID',
        `The manifest ${entry.digest} has ${found.document.length} bytes where the index says ${entry.size}`,
      )
    }
    // That of an image which was pulled is entered like one that was pushed.
    if (!this.#uses.pushed.findManifest(repository, entry.digest)) {
      await this.putManifest(repository, entry.digest, found.mediaType, found.document)
    }
  }

  /** What the index has for this host, or else for another platform that dormouse knows. */
  async #runnableIn(repository: string, index: Index): Promise<Runnable> {
    for (const platform of [hostPlatform(), ...SUPPORTED_PLATFORMS.map(parsePlatform)]) {
      const entry = ifAvailable(() => selectPlatform(index, platform, 'in the index'))
      const found = entry && this.#manifestBy(repository, entry.digest)
      if (found) return await this.#runnable(repository, found)
    }
    throw new RegistryError('MANIFEST_INVALID', `The index has no image for ${SUPPORTED_PLATFORMS.join(' or ')}`)
  }

  /** Throws MANIFEST_INVALID for what no instance could be made of. */
  async #runnable(repository: string, { digest, document, mediaType }: FoundManifest): Promise<Runnable> {
    const { limits } = this.#uses
    const parsed = orInvalid(() => parseManifest(document, mediaType, limits))
    if (parsed.kind === 'index')
      throw new RegistryError('MANIFEST_INVALID', 'The index has an index for this host, where a manifest must be')
    const blob = (await this.findBlob(repository, parsed.config.digest)) ?? raise(blobUnknown(parsed.config.digest))
    if (blob.size > limits.maxDocumentBytes) {
      throw new RegistryError('MANIFEST_INVALID', `The image's configuration is larger than ${limits.maxDocumentBytes} bytes`)
    }
    const config = Buffer.concat(await Array.fromAsync(blob.open() as AsyncIterable<Buffer>))
    const found = { digest, manifest: document, config, layers: parsed.layers }
    const { platform = hostPlatform() } = orInvalid(() => checkedConfig(found))
    return { found, platform: orInvalid(() => parsePlatform(formatPlatform(platform))) }
  }

  async #reach(step: string): Promise<void> {
    await this.#uses.crashPoint?.('registry', step)
  }
}

/** A repository as it stands in a path of the API, in the way in which names of images are written. Throws NAME_INVALID. */
export function parseRepository(path: string): string {
  if (!/[:@]/.test(path)) {
    try {
      const { registry, repository } = parseReference(path)
      return `${registry}/${repository}`
    } catch {
      // Said below.
    }
  }
  throw new RegistryError('NAME_INVALID', `${JSON.stringify(path.slice(0, 200))} is no repository name`)
}

const DEFAULT_PREFIXES = ['docker.io/library/', 'docker.io/']

/** The shortest path that leads to the repository. */
export function shortRepository(repository: string): string {
  const prefix = DEFAULT_PREFIXES.find((one) => repository.startsWith(one))
  return prefix === undefined ? repository : repository.slice(prefix.length)
}

const nameOf = (repository: string, reference: string): string => `${repository}${isDigest(reference) ? '@' : ':'}${reference}`

function repositoryOf(name: string): string {
  const { registry, repository } = parseReference(name)
  return `${registry}/${repository}`
}

function configDigestOf({ manifest }: ImageRow): string | undefined {
  const { config } = JSON.parse(manifest.toString('utf8')) as { config?: { digest?: string } }
  return config?.digest
}

/** What is wrong with a document of a stranger's, in the registry's code. */
function orInvalid<T>(read: () => T): T {
  try {
    return read()
  } catch (error) {
    if (!(error instanceof AppError)) throw error
    throw new RegistryError('MANIFEST_INVALID', error.hint === undefined ? error.message : `${error.message}. ${error.hint}`, {
      cause: error,
    })
  }
}

function ifAvailable<T>(select: () => T): T | undefined {
  try {
    return select()
  } catch (error) {
    if (error instanceof AppError && error.code === 'platform_not_available') return undefined
    throw error
  }
}

export const blobUnknown = (digest: string): RegistryError =>
  new RegistryError('BLOB_UNKNOWN', 'The repository does not have this blob', { detail: { digest } })

const nameUnknown = (repository: string): RegistryError =>
  new RegistryError('NAME_UNKNOWN', `There is no repository ${shortRepository(repository)}`)

function raise(error: Error): never {
  throw error
}
