/**
 * Images: pulled or imported, kept by digest, found by name.
 *
 * A digest goes pending → pulling → converting → ready, or failed; a name moves to it only when it is ready, in the transaction that
 * says so. The commit point is that transaction: before it a rootfs is a draft (or a file that no row speaks of, which the next
 * start removes), after it the image is there.
 */
import { randomBytes } from 'node:crypto'
import { chmod, readdir, rename, rm, stat, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Image, ImageProgress, PruneImagesResponse, PullImageRequest } from '@dormouse/api/images.ts'
import type { Config } from '../config/config.ts'
import type { Events } from '../events/events.ts'
import { syncDirectory } from '../host/files.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import type { Paths } from '../paths.ts'
import type { Database } from '../store/database.ts'
import { type ImageNameRow, type ImageRow, ImageRows, type ImageStatus } from '../store/images.ts'
import type { FoundImage } from './archive-image.ts'
import { BlobStore } from './blob-store.ts'
import { runJob } from './conversion.ts'
import type { ConvertJob, Origin } from './conversion-job.ts'
import { type ImageConfig, parseImageConfig } from './image-config.ts'
import { type Credentials, credentialsFromFile } from './keychain.ts'
import { DEFAULT_LIMITS, type ImageLimits } from './limits.ts'
import { type Descriptor, parseManifest } from './manifest.ts'
import { formatPlatform, hostPlatform, parsePlatform } from './platform.ts'
import { presentImage } from './present-image.ts'
import { ProgressFeed } from './progress-feed.ts'
import { formatReference, isDigest, normaliseReference, parseReference } from './reference.ts'
import { notFound, platformOf, resolveImage } from './resolve-image.ts'
import { WorkQueue } from './work-queue.ts'

export interface ReadyImage {
  readonly digest: string
  readonly name: string
  readonly rootfs: { readonly path: string; readonly format: 'squashfs' }
  readonly platform: string
  readonly config: ImageConfig
  readonly sizeBytes: number
}

export interface ImagesUses {
  readonly db: Database
  readonly paths: Paths
  readonly log: Logger
  readonly events: Events
  readonly config: Config['images']
  /** Does some instance stand on this image? */
  readonly isInUse: (digest: string) => boolean
}

export interface ImportSource {
  readonly kind?: 'oci-layout' | 'oci-archive' | 'docker-archive'
  readonly path: string
}

// The client waits for the answer to a pull until the registry has said what the name is.
const RESOLVE_LIMIT_MS = 30_000
const SPARE_DISK_BYTES = 256 * 1024 ** 2

export class Images implements AsyncDisposable {
  readonly #db: Database
  readonly #rows: ImageRows
  readonly #paths: Paths
  readonly #log: Logger
  readonly #events: Events
  readonly #config: Config['images']
  readonly #limits: ImageLimits
  readonly #isInUse: (digest: string) => boolean
  readonly #store: BlobStore
  readonly #queue: WorkQueue<string>
  readonly #feed = new ProgressFeed()
  /** By digest: settles, never rejects, when the work on it is done. */
  readonly #underWay = new Map<string, Promise<void>>()
  readonly #closing = new AbortController()
  #recovered: Promise<void> | undefined
  /** Imports whose blobs no row speaks of yet: sweeping waits for them. */
  #ingesting = 0

  constructor(uses: ImagesUses) {
    this.#db = uses.db
    this.#rows = new ImageRows(uses.db)
    this.#paths = uses.paths
    this.#log = uses.log.child({ part: 'images' })
    this.#events = uses.events
    this.#config = uses.config
    this.#limits = { ...DEFAULT_LIMITS, maxImageBytes: uses.config.maxImageBytes, maxEntries: uses.config.maxEntries }
    this.#isInUse = uses.isInUse
    this.#store = new BlobStore(uses.paths)
    this.#queue = new WorkQueue(uses.config.maxConcurrentPulls)
  }

  /**
   * Compares what is stored with what is there: removes drafts and files that no row speaks of, takes interrupted pulls up again.
   * Call it once before the rest; repeats are harmless.
   */
  recover(): Promise<void> {
    this.#recovered ??= this.#recover()
    return this.#recovered
  }

  /** Ends what is under way; it is taken up again at the next start. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new AppError('shutting_down', 'The daemon is stopping'))
    await Promise.all(this.#underWay.values())
  }

  /** Newest first. */
  list(filter: { tags?: Readonly<Record<string, string>> } = {}): Image[] {
    const wanted = Object.entries(filter.tags ?? {})
    return this.#rows
      .names()
      .filter(({ tags }) => wanted.every(([key, value]) => tags[key] === value))
      .flatMap((name) => this.#present(name) ?? [])
  }

  findImage(name: string): Image | undefined {
    const row = this.#findName(name)
    return row && this.#present(row)
  }

  /** Throws `invalid_name` and `not_found`. */
  getImage(name: string): Image {
    return this.findImage(name) ?? raise(notFound(name))
  }

  /** What an instance can be made of now. */
  readyImage(name: string, platform?: string): ReadyImage | undefined {
    const row = this.#findName(name, platform)
    const image = row?.digest === undefined ? undefined : this.#rows.find(row.digest)
    return image && row ? this.#ready(image, row.name) : undefined
  }

  byDigest(digest: string): ReadyImage | undefined {
    const image = this.#rows.find(digest)
    return image && this.#ready(image, this.#rows.namesLeadingTo(digest)[0]?.name ?? digest)
  }

  /**
   * Asks the registry what the name is, and answers with an image that is ready or on its way. A digest that is here already is
   * not pulled again; one that is under way is joined.
   */
  async pull(request: PullImageRequest): Promise<Image> {
    const reference = parseReference(request.name)
    const platform = request.platform === undefined ? hostPlatform() : parsePlatform(request.platform)
    await this.recover()
    const given = givenCredentials(request.credentials)
    const credentials = given ?? (await credentialsFromFile(this.#config.credentialsFile, reference.registry))
    const limit = AbortSignal.timeout(RESOLVE_LIMIT_MS)
    const resolved = await resolveImage(reference, platform, {
      credentials,
      policy: this.#config,
      mirrors: this.#config.registryMirrors,
      limits: this.#limits,
      signal: AbortSignal.any([limit, this.#closing.signal]),
    }).catch((error) => {
      if (!limit.aborted) throw error
      throw new AppError('registry_unavailable', `The registry ${reference.registry} did not answer within ${RESOLVE_LIMIT_MS / 1000}s`, {
        cause: error,
      })
    })
    this.#closing.signal.throwIfAborted()
    const name = formatReference(reference)
    const origin = { ...resolved.origin, needsGiven: given !== undefined }
    return this.#admit(
      name,
      formatPlatform(platform),
      request.tags,
      resolved,
      (digest) => this.#pullLayers(digest, origin, resolved, credentials),
      origin,
    )
  }

  /** Waits until the image is ready; throws what it failed with. `step` ends the waiting, not the work. */
  async whenReady(name: string, step: Pick<Step, 'signal'>): Promise<ReadyImage> {
    for (;;) {
      const row = this.#findName(name) ?? raise(notFound(name))
      const image = this.#shown(row)
      if (!image) throw notFound(name)
      if (image.status === 'failed')
        throw new AppError(image.errorCode ?? 'internal_error', image.error ?? `The image ${name} could not be made`)
      const ready = this.#ready(image, row.name)
      if (ready) return ready
      if (step.signal.aborted)
        throw new AppError('timed_out', `The image ${name} is not ready yet`, { hint: `Follow it with: dormouse image inspect ${name}` })
      await this.#feed.changed(image.digest, step.signal)
    }
  }

  /** Steps of what is under way for `name`; the last is `ready` or `failed`. Throws `not_found`. */
  async progress(name: string, options: { signal: AbortSignal }): Promise<AsyncIterable<ImageProgress>> {
    const row = this.#findName(name) ?? raise(notFound(name))
    const digest = row.nextDigest ?? row.digest ?? raise(notFound(name))
    return this.#steps(row.name, digest, options.signal)
  }

  /** An archive on this host's disk. Resolves when the image is ready; on throw nothing of it is left. */
  async importArchive(
    source: ImportSource,
    name?: string,
    options: { platform?: string; step?: Pick<Step, 'signal'> } = {},
  ): Promise<Image> {
    return await this.#import({ path: source.path }, name, options)
  }

  /** An archive as it is uploaded: docker-archive or oci-archive, plain or compressed. Like `importArchive` otherwise. */
  async importUpload(
    source: AsyncIterable<Uint8Array>,
    options: { name?: string; platform?: string },
    step: Pick<Step, 'signal'>,
  ): Promise<Image> {
    return await this.#import({ input: Readable.from(source, { objectMode: false }) }, options.name, { ...options, step })
  }

  /** Another name for an image that is ready. */
  tag(name: string, target: string): Image {
    const row = this.#findName(name) ?? raise(notFound(name))
    const reference = parseReference(target)
    if (reference.digest !== undefined) throw new AppError('invalid_name', `${target} names a digest: a tag is needed`)
    if (row.digest === undefined) throw new AppError('image_not_ready', `The image ${name} is not ready yet`)
    const named: ImageNameRow = { ...row, name: formatReference(reference), nextDigest: undefined, createdAtMs: Date.now() }
    this.#db.transaction(() => {
      this.#rows.putName(named)
      this.#events.record({ kind: 'image.tagged', subject: named.name, data: { digest: row.digest, from: row.name } })
    })
    return this.#present(named) ?? raise(notFound(target))
  }

  /** Takes the name away; with the last name of an image goes its rootfs, and every layer that no other image has. */
  async remove(name: string): Promise<void> {
    const rows = this.#namesCalled(name)
    if (rows.length === 0) throw notFound(name)
    for (const row of rows) this.#refuseInUse(row)
    this.#db.transaction(() => {
      for (const row of rows) {
        this.#rows.deleteName(row.name, row.platform)
        this.#events.record({ kind: 'image.removed', subject: row.name, data: { digest: row.digest ?? row.nextDigest } })
        for (const digest of [row.digest, row.nextDigest]) {
          if (digest !== undefined && this.#rows.namesLeadingTo(digest).length === 0) this.#forget(digest)
        }
      }
    })
    await this.#sweep()
  }

  /** Deletes every image that no instance stands on and no work is under way for, and files that nothing speaks of. */
  async prune(): Promise<PruneImagesResponse> {
    await this.recover()
    const before = await this.usage()
    const deleted: string[] = []
    this.#db.transaction(() => {
      for (const row of this.#rows.names()) {
        const digests = [row.digest, row.nextDigest].filter((digest) => digest !== undefined)
        if (digests.some((digest) => this.#isInUse(digest) || this.#underWay.has(digest))) continue
        this.#rows.deleteName(row.name, row.platform)
        this.#events.record({ kind: 'image.removed', subject: row.name, data: { digest: row.digest ?? row.nextDigest } })
        deleted.push(row.name)
      }
      for (const { digest } of this.#rows.unnamed()) this.#forget(digest)
    })
    await this.#sweep()
    return { deleted, freed_bytes: Math.max(0, before - (await this.usage())) }
  }

  /** Bytes on disk, layers and root file systems. */
  async usage(): Promise<number> {
    await this.#store.prepare()
    let bytes = 0
    for (const { sizeBytes } of await this.#store.list()) bytes += sizeBytes
    for (const file of await readdir(this.#paths.imageRootfsDir)) {
      bytes += (await stat(join(this.#paths.imageRootfsDir, file)).catch(() => undefined))?.size ?? 0
    }
    return bytes
  }

  // Work

  /** Enters the image and starts the work on it, unless it is here or under way. */
  #admit(
    name: string,
    platform: string,
    tags: Readonly<Record<string, string>> | undefined,
    found: FoundImage,
    work: (digest: string) => Promise<number>,
    origin: (Origin & { needsGiven: boolean }) | undefined,
  ): Image {
    const { digest } = found
    const existing = this.#rows.find(digest)
    const isReady = existing?.status === 'ready'
    const isUnderWay = this.#underWay.has(digest)
    const named = this.#rows.findName(name, platform)
    const row: ImageNameRow = {
      name,
      platform,
      digest: isReady ? digest : named?.digest,
      nextDigest: isReady ? undefined : digest,
      tags: tags ?? named?.tags ?? {},
      createdAtMs: isReady && named?.digest === digest ? named.createdAtMs : Date.now(),
    }
    this.#db.transaction(() => {
      if (!isReady && !isUnderWay) {
        this.#rows.put(
          {
            digest,
            platform,
            status: 'pending',
            errorCode: undefined,
            error: undefined,
            manifest: found.manifest,
            config: found.config,
            origin: origin === undefined ? undefined : JSON.stringify(origin),
            rootfsBytes: undefined,
            createdAtMs: Date.now(),
          },
          found.layers.map((layer) => layer.digest),
        )
        this.#changed(digest, 'pending', name)
      }
      this.#rows.putName(row)
      if (isReady) this.#events.record({ kind: 'image.pulled', subject: name, data: { digest } })
      this.#forgetSuperseded(named, row)
    })
    if (!isReady && !isUnderWay) this.#start(digest, work)
    return this.#present(row) ?? raise(notFound(name))
  }

  #start(digest: string, work: (digest: string) => Promise<number>): void {
    this.#feed.publish(digest, { digest, status: 'pending' })
    const done = this.#queue
      .run(digest, async () => {
        this.#closing.signal.throwIfAborted()
        const rootfsBytes = await work(digest)
        this.#db.transaction(() => {
          this.#rows.setStatus(digest, 'ready', { rootfsBytes })
          this.#rows.moveNames(digest)
          this.#changed(digest, 'ready')
          for (const { name } of this.#rows.namesLeadingTo(digest))
            this.#events.record({ kind: 'image.pulled', subject: name, data: { digest } })
        })
        this.#log.info({ digest, rootfsBytes }, 'image ready')
      })
      .catch((error) => this.#failed(digest, error))
      .finally(() => {
        this.#underWay.delete(digest)
        this.#feed.end(digest)
      })
    this.#underWay.set(digest, done)
  }

  async #failed(digest: string, error: unknown): Promise<void> {
    // Not a failure: the next start takes it up again.
    if (this.#closing.signal.aborted) return
    const code = errorCodeOf(error) ?? 'internal_error'
    const message = error instanceof AppError ? error.message : 'The image could not be made: see the log of the daemon'
    this.#log.warn({ digest, err: error }, 'image failed')
    this.#db.transaction(() => {
      if (!this.#rows.find(digest)) return
      this.#rows.setStatus(digest, 'failed', { errorCode: code, error: message })
      // Whole layers are kept for the next try only where that may do better.
      if (code !== 'registry_unavailable' && code !== 'rate_limited') this.#rows.dropLayers(digest)
      this.#changed(digest, 'failed')
    })
    await this.#sweep().catch((err) => this.#log.warn({ err }, 'sweeping after a failed image failed'))
  }

  async #pullLayers(digest: string, origin: Origin, found: FoundImage, credentials: Credentials | undefined): Promise<number> {
    this.#setStatus(digest, 'pulling')
    return await this.#convert(digest, found, {
      origin: { registry: origin.registry, host: origin.host, repository: origin.repository },
      credentials,
      policy: this.#policy(),
    })
  }

  /** Layers to a rootfs in its place. Gives its size. */
  async #convert(digest: string, found: FoundImage, from: ConvertJob['from']): Promise<number> {
    const distinct = [...new Map(found.layers.map((layer) => [layer.digest, layer])).values()]
    await this.#checkDisk(distinct)
    const draft = join(this.#paths.imageDraftsDir, `rootfs-${randomBytes(8).toString('hex')}`)
    try {
      const { rootfsBytes } = await runJob(
        {
          kind: 'convert',
          dirs: { dataDir: this.#paths.dataDir, runDir: this.#paths.runDir },
          layers: found.layers.map(({ mediaType, digest, size }) => ({ mediaType, digest, size })),
          diffIds: parseImageConfig(found.config).diffIds,
          ...(from === undefined ? {} : { from }),
          rootfs: draft,
          compression: this.#config.rootfsCompression,
          limits: this.#limits,
        },
        {
          signal: this.#closing.signal,
          onProgress: (layers) => this.#feed.publish(digest, progressOf(digest, 'pulling', distinct, layers)),
          onConverting: () => this.#setStatus(digest, 'converting', distinct),
        },
      )
      // VMMs run as users of their own.
      await chmod(draft, 0o644)
      await rename(draft, this.#paths.imageRootfs(digest))
      await syncDirectory(this.#paths.imageRootfsDir)
      return rootfsBytes
    } finally {
      await rm(draft, { force: true })
    }
  }

  async #import(
    from: { path?: string; input?: Readable },
    name: string | undefined,
    options: { platform?: string; step?: Pick<Step, 'signal'> },
  ): Promise<Image> {
    const full = name === undefined ? undefined : normaliseReference(name)
    const platform = options.platform === undefined ? hostPlatform() : parsePlatform(options.platform)
    await this.recover()
    const signal = options.step ? AbortSignal.any([options.step.signal, this.#closing.signal]) : this.#closing.signal
    this.#ingesting++
    let image: Image
    try {
      const { image: found } = await this.#queue.run(`import ${randomBytes(8).toString('hex')}`, () =>
        runJob(
          {
            kind: 'ingest',
            dirs: { dataDir: this.#paths.dataDir, runDir: this.#paths.runDir },
            path: from.path,
            platform,
            limits: this.#limits,
            ...(full === undefined ? {} : { name: full }),
          },
          { signal, ...(from.input === undefined ? {} : { input: from.input }) },
        ),
      )
      const target = full ?? found.name
      if (target === undefined) {
        throw new AppError('invalid_name', 'The archive does not say what its image is called', {
          hint: 'Name it: dormouse image import FILE NAME',
        })
      }
      const runsOn = formatPlatform(platformOf(found, platform, target))
      image = this.#admit(target, runsOn, undefined, found, (digest) => this.#convert(digest, found, undefined), undefined)
    } finally {
      this.#ingesting--
      from.input?.destroy()
      await this.#sweep()
    }
    return await this.#imported(image)
  }

  /** Waits for the conversion. The import of what turns out bad leaves no failed image behind: who imports gets the error itself. */
  async #imported(image: Image): Promise<Image> {
    await this.#underWay.get(image.digest)
    const row = this.#rows.find(image.digest)
    if (row?.status === 'ready') return this.getImage(image.name)
    this.#closing.signal.throwIfAborted()
    this.#db.transaction(() => {
      for (const name of this.#rows.namesLeadingTo(image.digest)) {
        if (name.digest === undefined) this.#rows.deleteName(name.name, name.platform)
        else this.#rows.putName({ ...name, nextDigest: undefined })
      }
      this.#forget(image.digest)
    })
    await this.#sweep()
    throw new AppError(row?.errorCode ?? 'internal_error', row?.error ?? `The image ${image.name} could not be made`)
  }

  async #checkDisk(layers: readonly Descriptor[]): Promise<void> {
    let missing = 0
    for (const { digest, size } of layers) if ((await this.#store.sizeOf(digest)) === undefined) missing += size
    const { bavail, bsize } = await statfs(this.#paths.imagesDir)
    if (missing + SPARE_DISK_BYTES > bavail * bsize) {
      throw new AppError('insufficient_resources', `The image's layers need ${missing} bytes, but ${bavail * bsize} are free on the disk`, {
        hint: 'Free space with: dormouse image prune',
      })
    }
  }

  #policy(): { allowPrivateRegistries: boolean; insecureRegistries: readonly string[] } {
    return { allowPrivateRegistries: this.#config.allowPrivateRegistries, insecureRegistries: this.#config.insecureRegistries }
  }

  // Recovery and sweeping

  async #recover(): Promise<void> {
    await this.#store.prepare()
    await this.#store.sweepDrafts()
    for (const image of this.#rows.all()) {
      if (this.#underWay.has(image.digest)) continue
      if (image.status === 'ready') {
        const isThere = await stat(this.#paths.imageRootfs(image.digest)).catch(() => undefined)
        if (!isThere) this.#giveUp(image, 'Its root file system is gone from the disk: pull it again')
      } else if (image.status !== 'failed') await this.#takeUp(image)
    }
    await this.#sweep()
  }

  async #takeUp(image: ImageRow): Promise<void> {
    const origin = image.origin === undefined ? undefined : (JSON.parse(image.origin) as Origin & { needsGiven: boolean })
    if (!origin) return this.#giveUp(image, 'The daemon stopped while it was imported: import it again')
    if (origin.needsGiven)
      return this.#giveUp(image, 'The daemon stopped while it was pulled, and its credentials were kept nowhere: pull it again')
    const manifest = parseManifest(image.manifest, undefined, this.#limits)
    if (manifest.kind !== 'manifest') return this.#giveUp(image, 'Its manifest is damaged: pull it again')
    const found: FoundImage = { digest: image.digest, manifest: image.manifest, config: image.config, layers: manifest.layers }
    this.#log.info({ digest: image.digest, repository: `${origin.registry}/${origin.repository}` }, 'taking an interrupted pull up again')
    this.#start(image.digest, async (digest) => {
      const credentials = await credentialsFromFile(this.#config.credentialsFile, origin.registry)
      return await this.#pullLayers(digest, origin, found, credentials)
    })
  }

  #giveUp(image: ImageRow, why: string): void {
    this.#db.transaction(() => {
      this.#rows.setStatus(image.digest, 'failed', { errorCode: 'image_not_ready', error: why })
      this.#changed(image.digest, 'failed')
    })
  }

  /** Removes layers and root file systems that no row speaks of. */
  async #sweep(): Promise<void> {
    if (this.#ingesting > 0) return
    for (const file of await readdir(this.#paths.imageLayersDir)) {
      const digest = file.replace('-', ':')
      // Asked anew each time: rows may come while files go.
      if (this.#ingesting === 0 && !this.#rows.layersInUse().has(digest)) await this.#store.remove(digest)
    }
    for (const file of await readdir(this.#paths.imageRootfsDir)) {
      const digest = file.replace('-', ':').replace(/\.squashfs$/, '')
      if (!this.#rows.find(digest) && !this.#isInUse(digest)) await rm(join(this.#paths.imageRootfsDir, file), { force: true })
    }
  }

  /** Drops the row of an image; its files go with the next sweep. Work on it runs to its end for nothing. */
  #forget(digest: string): void {
    if (this.#isInUse(digest)) return
    if (this.#underWay.has(digest)) return
    this.#rows.delete(digest)
  }

  /** A failed image that a name led to goes when the name gets another. */
  #forgetSuperseded(before: ImageNameRow | undefined, after: ImageNameRow): void {
    for (const digest of [before?.digest, before?.nextDigest]) {
      if (digest === undefined || digest === after.digest || digest === after.nextDigest) continue
      if (this.#rows.find(digest)?.status === 'failed' && this.#rows.namesLeadingTo(digest).length === 0) this.#forget(digest)
    }
  }

  #refuseInUse(row: ImageNameRow): void {
    for (const digest of [row.digest, row.nextDigest]) {
      if (digest === undefined || this.#rows.namesLeadingTo(digest).length > 1) continue
      if (this.#isInUse(digest)) {
        throw new AppError('in_use', `The image ${row.name} is in use by an instance`, {
          hint: 'Delete its instances first: dormouse ps -a',
        })
      }
      if (this.#underWay.has(digest))
        throw new AppError('conflict', `The image ${row.name} is being pulled`, { hint: 'Wait until it is ready or has failed' })
    }
  }

  // Looking

  #setStatus(digest: string, status: ImageStatus, layers?: readonly Descriptor[]): void {
    this.#db.transaction(() => {
      this.#rows.setStatus(digest, status)
      this.#changed(digest, status)
    })
    this.#feed.publish(
      digest,
      layers
        ? progressOf(
            digest,
            status,
            layers,
            layers.map(({ size }) => size),
          )
        : { digest, status },
    )
  }

  #changed(digest: string, status: ImageStatus, name?: string): void {
    const names = [...new Set([...(name === undefined ? [] : [name]), ...this.#rows.namesLeadingTo(digest).map((row) => row.name)])]
    for (const subject of names) this.#events.record({ kind: 'image.changed', subject, data: { digest, status } })
  }

  async *#steps(name: string, digest: string, signal: AbortSignal): AsyncGenerator<ImageProgress, void, void> {
    let last = ''
    while (!signal.aborted) {
      const image = this.#rows.find(digest)
      const latest = this.#feed.latest(digest)
      const step: ImageProgress =
        !image || image.status === 'ready' || image.status === 'failed' || !latest
          ? { name, digest, status: image?.status ?? 'failed', ...(image?.error === undefined ? {} : { error: image.error }) }
          : { ...latest, name, digest, status: image.status }
      const text = JSON.stringify(step)
      if (text !== last) yield step
      last = text
      if (step.status === 'ready' || step.status === 'failed') return
      await this.#feed.changed(digest, signal)
    }
  }

  #findName(name: string, platform?: string): ImageNameRow | undefined {
    const rows = this.#namesCalled(name)
    if (platform !== undefined) return rows.find((row) => row.platform === formatPlatform(parsePlatform(platform)))
    return rows.find((row) => row.platform === formatPlatform(hostPlatform())) ?? rows[0]
  }

  /** By name; by digest under a name of the same repository; by the bare digest. */
  #namesCalled(name: string): ImageNameRow[] {
    if (isDigest(name)) return this.#rows.namesLeadingTo(name).slice(0, 1)
    const reference = parseReference(name)
    const exact = this.#rows.namesCalled(formatReference(reference))
    const { digest } = reference
    if (exact.length > 0 || digest === undefined) return exact
    const repository = `${reference.registry}/${reference.repository}`
    return this.#rows
      .namesLeadingTo(digest)
      .filter((row) => row.name.startsWith(`${repository}:`) || row.name.startsWith(`${repository}@`))
      .slice(0, 1)
  }

  /** What a name shows: what is on its way to it, or else what it leads to; a failure only when there is nothing better. */
  #shown(row: ImageNameRow): ImageRow | undefined {
    const next = row.nextDigest === undefined ? undefined : this.#rows.find(row.nextDigest)
    const now = row.digest === undefined ? undefined : this.#rows.find(row.digest)
    return next && (next.status !== 'failed' || !now) ? next : now
  }

  #present(row: ImageNameRow): Image | undefined {
    const image = this.#shown(row)
    return image && presentImage(row, image, this.#queue.positionOf(image.digest))
  }

  #ready(image: ImageRow, name: string): ReadyImage | undefined {
    if (image.status !== 'ready') return undefined
    return {
      digest: image.digest,
      name,
      rootfs: { path: this.#paths.imageRootfs(image.digest), format: 'squashfs' },
      platform: image.platform,
      config: parseImageConfig(image.config).config,
      sizeBytes: image.rootfsBytes ?? 0,
    }
  }
}

function progressOf(
  digest: string,
  status: ImageStatus,
  layers: readonly Descriptor[],
  done: readonly number[],
): Omit<ImageProgress, 'name'> {
  const sum = (numbers: readonly number[]): number => numbers.reduce((total, number) => total + number, 0)
  return {
    digest,
    status,
    done_bytes: sum(done),
    total_bytes: sum(layers.map(({ size }) => size)),
    layers: layers.map((layer, index) => ({ digest: layer.digest, done_bytes: done[index] ?? 0, total_bytes: layer.size })),
  }
}

/** An empty object means the host's own keychain. */
function givenCredentials(given: PullImageRequest['credentials']): Credentials | undefined {
  const { username, password, registry_token: token } = given ?? {}
  if (!username && !password && !token) return undefined
  return {
    ...(username === undefined ? {} : { username }),
    ...(password === undefined ? {} : { password }),
    ...(token === undefined ? {} : { registryToken: token }),
  }
}

function raise(error: Error): never {
  throw error
}
