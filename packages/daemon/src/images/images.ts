/**
 * Images: pulled or imported, kept by digest, found by name.
 *
 * A digest goes pending → pulling → converting → ready, or failed; a name moves to it only when it is ready, in the transaction that
 * says so. The commit point is that transaction: before it a rootfs is a draft (or a file that no row speaks of, which the next
 * start removes), after it the image is there.
 */
import { Readable } from 'node:stream'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Image, ImageProgress, PruneImagesResponse, PullImageRequest, Push, PushImageRequest } from '@dormouse/api/images.ts'
import type { Config } from '../config/config.ts'
import type { Events } from '../events/events.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import type { Paths } from '../paths.ts'
import type { Database } from '../store/database.ts'
import { type ImageNameRow, ImageRows } from '../store/images.ts'
import { PushRows } from '../store/pushes.ts'
import { RegistryRows } from '../store/registry.ts'
import type { FoundImage } from './archive-image.ts'
import { BlobStore } from './blob-store.ts'
import { type CollectImages, planCollection } from './collection-plan.ts'
import { withIdleLimit } from './idle-limit.ts'
import { ImageNames, type ReadyImage } from './image-names.ts'
import { ImageShelf, type MakeRoom } from './image-shelf.ts'
import { type ImageUsage, imageUsage } from './image-usage.ts'
import { ImageWork } from './image-work.ts'
import { type Credentials, credentialsFromFile } from './keychain.ts'
import { DEFAULT_LIMITS, type ImageLimits } from './limits.ts'
import type { Descriptor } from './manifest.ts'
import { formatPlatform, hostPlatform, type Platform, parsePlatform } from './platform.ts'
import { Pushes } from './push/pushes.ts'
import { recoverImages } from './recover-images.ts'
import { formatReference, isReference, normaliseReference, parseReference, type Reference } from './reference.ts'
import { Registry } from './registry/registry.ts'
import { isUnlistedLoopback } from './registry-network.ts'
import { notFound, platformOf, type ResolvedImage, resolveImage } from './resolve-image.ts'
import { WorkQueue } from './work-queue.ts'

export type { CollectImages } from './collection-plan.ts'
export type { ReadyImage } from './image-names.ts'

export interface ImagesUses {
  readonly db: Database
  readonly paths: Paths
  readonly log: Logger
  readonly events: Events
  readonly config: Config['images']
  /** Does some instance stand on this image? */
  readonly isInUse: (digest: string) => boolean
  /** Frees `bytes` of what can be missed, of images alone or of all that is on the disk, as far as there is so much. */
  readonly makeRoom?: MakeRoom
  readonly crashPoint?: (operation: string, step: string) => Promise<void>
}

export interface CollectedImages {
  readonly names: readonly string[]
  readonly digests: readonly string[]
  /** Root file systems, and layers that no image which stays has. */
  readonly bytes: number
}

export interface ImportSource {
  /** A directory with an OCI layout, or an archive of one, or of `docker save`. Which of them it is shows in it. */
  readonly path: string
}

// The client waits for the answer to a pull until the registry has said what the name is.
const RESOLVE_LIMIT_MS = 30_000
const UPLOAD_IDLE_LIMIT_MS = 60_000

export class Images implements AsyncDisposable {
  readonly #uses: ImagesUses & { readonly rows: ImageRows; readonly limits: ImageLimits; readonly store: BlobStore }
  readonly #names: ImageNames
  readonly #shelf: ImageShelf
  readonly #work: ImageWork
  readonly #admissions = new WorkQueue<object>(1)
  readonly #pushed: RegistryRows
  /** What other programs push to, and pull from. */
  readonly registry: Registry
  readonly #pushes: Pushes
  #recovered: Promise<void> | undefined

  constructor(given: ImagesUses) {
    const { config, paths } = given
    const limits = { ...DEFAULT_LIMITS, maxImageBytes: config.maxImageBytes, maxEntries: config.maxEntries }
    const uses = { ...given, log: given.log.child({ part: 'images' }), rows: new ImageRows(given.db), limits, store: new BlobStore(paths) }
    this.#uses = uses
    this.#work = new ImageWork({ ...uses, shelf: () => this.#shelf })
    this.#pushed = new RegistryRows(given.db)
    const pushes = new PushRows(given.db)
    this.#shelf = new ImageShelf({
      ...uses,
      isUnderWay: (digest) => this.#work.isUnderWay(digest),
      isBeingPushed: (digest) => pushes.isBusy(digest),
      pushed: this.#pushed,
    })
    const recover = (): Promise<void> => this.recover()
    this.registry = new Registry({
      ...uses,
      recover,
      pushed: this.#pushed,
      shelf: this.#shelf,
      work: this.#work,
      removeName: (name) => this.remove(name),
      checkShare: () => this.#admissions.run({}, () => this.#assertShare('The upload is not taken', [])),
    })
    this.#pushes = new Pushes({ ...uses, recover, pushes, getReady: (name) => this.#getReady(name) })
    this.#names = new ImageNames({ ...uses, positionOf: (digest) => this.#work.positionOf(digest) })
  }

  /**
   * Compares what is stored with what is there: removes drafts and files that no row speaks of, takes interrupted pulls up again.
   * Call it once before the rest; repeats are harmless.
   */
  recover(): Promise<void> {
    this.#recovered ??= recoverImages({
      ...this.#uses,
      shelf: this.#shelf,
      work: this.#work,
      keychain: this.#uses.config.keychain,
      wasPushed: (digest) => this.#pushed.hasManifest(digest),
    }).then(() => this.#pushes.recover())
    return this.#recovered
  }

  /** Ends what is under way; it is taken up again at the next start. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.registry, this.#pushes, this.#work].map((part) => part[Symbol.asyncDispose]()))
  }

  // Looking

  /** Newest first. */
  list(filter: { tags?: Readonly<Record<string, string>> } = {}): Image[] {
    return this.#names.list(filter)
  }

  findImage(name: string): Image | undefined {
    const row = this.#names.find(name)
    return row && this.#names.present(row)
  }

  /** Throws `invalid_name` and `not_found`. */
  getImage(name: string): Image {
    return this.findImage(name) ?? raise(notFound(name))
  }

  /** What an instance can be made of now. */
  readyImage(name: string, platform?: string): ReadyImage | undefined {
    const row = this.#names.find(name, platform)
    const image = row?.digest === undefined ? undefined : this.#uses.rows.find(row.digest)
    return image && row && this.#names.ready(image, row.name)
  }

  byDigest(digest: string): ReadyImage | undefined {
    const image = this.#uses.rows.find(digest)
    return image && this.#names.ready(image, this.#uses.rows.namesLeadingTo(digest)[0]?.name ?? digest)
  }

  /** Waits until the image is ready; throws what it failed with. `step` ends the waiting, not the work. */
  async whenReady(name: string, step: Pick<Step, 'signal'>): Promise<ReadyImage> {
    for (;;) {
      const row = this.#getName(name)
      const image = this.#names.shown(row) ?? raise(notFound(name))
      if (image.status === 'failed')
        throw new AppError(image.errorCode ?? 'internal_error', image.error ?? `The image ${name} could not be made`)
      const ready = this.#names.ready(image, row.name)
      if (ready) return ready
      if (step.signal.aborted) {
        throw new AppError('timed_out', `The image ${name} is not ready yet`, { hint: `See how far it is: dormouse image inspect ${name}` })
      }
      await this.#work.changed(image.digest, step.signal)
    }
  }

  /** Steps of what is under way for `name`; the last is `ready` or `failed`. Throws `not_found`. */
  async progress(name: string, options: { signal: AbortSignal }): Promise<AsyncIterable<ImageProgress>> {
    const row = this.#getName(name)
    return this.#work.steps(row.name, row.nextDigest ?? row.digest ?? raise(notFound(name)), options.signal)
  }

  /** Bytes on disk, layers and root file systems. */
  async usage(): Promise<number> {
    return await this.#shelf.usage()
  }

  /** The same by kind, with what of it is shared and what could go. */
  async diskUsage(): Promise<ImageUsage> {
    await this.recover()
    const { rows, paths } = this.#uses
    const shelf = this.#shelf
    const uses = { isBusy: (digest: string) => shelf.isBusy(digest), isStrayLayer: (digest: string) => shelf.isStrayLayer(digest) }
    return imageUsage({ rows, paths, ...uses }, await shelf.files())
  }

  /** The same in sum: compressed layers, and root file systems. */
  usageByKind(): Promise<{ readonly layersBytes: number; readonly rootfsBytes: number }> {
    return this.#shelf.usageByKind()
  }

  /** Is the registry of `name` on this host's own loopback, and not listed by the configuration? What is no name leads nowhere. */
  leadsToLoopback(name: string): boolean {
    const reference = isReference(name) ? parseReference(name) : undefined
    return reference !== undefined && isUnlistedLoopback(reference.registry, this.#uses.config)
  }

  // Getting

  /**
   * Asks the registry what the name is, and answers with an image that is ready or on its way. A digest that is here already is
   * not pulled again; one that is under way is joined.
   */
  async pull(request: PullImageRequest): Promise<Image> {
    const reference = parseReference(request.name)
    const platform = request.platform === undefined ? hostPlatform() : parsePlatform(request.platform)
    await this.recover()
    const given = givenCredentials(request.credentials)
    const credentials = given ?? (await credentialsFromFile(this.#uses.config.keychain, reference.registry))
    const found = await this.#resolve(reference, platform, credentials)
    const from = { origin: { ...found.origin, needsGiven: given !== undefined }, credentials }
    // One after the other, so that each counts those that were let in before.
    const row = await this.#admissions.run({}, async () => {
      await this.#assertRoom(request.name, found)
      return this.#work.admit({ name: formatReference(reference), platform: formatPlatform(platform), tags: request.tags, found, from })
    })
    return this.#names.present(row) ?? raise(notFound(request.name))
  }

  /**
   * Throws what a pull would throw for an image that its registry does not have, or not for the platform; pulls nothing. A registry that
   * does not answer, or not to us, has said nothing.
   */
  async assertThere(request: Pick<PullImageRequest, 'name' | 'platform'>): Promise<void> {
    const reference = parseReference(request.name)
    const platform = request.platform === undefined ? hostPlatform() : parsePlatform(request.platform)
    try {
      await this.#resolve(reference, platform, await credentialsFromFile(this.#uses.config.keychain, reference.registry))
    } catch (error) {
      const code = errorCodeOf(error)
      if (code === 'not_found' || code === 'platform_not_available') throw error
    }
  }

  /** An image on this host's disk. Resolves when it is ready; on throw nothing of it is left. */
  async importArchive(
    source: ImportSource,
    name?: string,
    options: { platform?: string; step?: Pick<Step, 'signal'> } = {},
  ): Promise<Image> {
    return await this.#import({ path: source.path }, name, options)
  }

  /** An archive as it is uploaded, plain or compressed. Like `importArchive` otherwise. */
  async importUpload(
    source: AsyncIterable<Uint8Array>,
    options: { name?: string; platform?: string },
    step: Pick<Step, 'signal'>,
  ): Promise<Image> {
    return await this.#import({ input: Readable.from(withIdleLimit(source, UPLOAD_IDLE_LIMIT_MS), { objectMode: false }) }, options.name, {
      ...options,
      step,
    })
  }

  /** Another name for an image that is ready. */
  tag(name: string, target: string): Image {
    const row = this.#getName(name)
    const reference = parseReference(target)
    if (reference.digest !== undefined) throw new AppError('invalid_name', `${target} names a digest: a tag is needed`)
    if (row.digest === undefined) throw new AppError('image_not_ready', `The image ${name} is not ready yet`)
    const named: ImageNameRow = { ...row, name: formatReference(reference), nextDigest: undefined, createdAtMs: Date.now() }
    this.#uses.db.transaction(() => {
      const before = this.#uses.rows.findName(named.name, named.platform)
      this.#uses.rows.putName(named)
      this.#shelf.forgetSuperseded(before, named)
      this.#uses.events.record({ kind: 'image.tagged', subject: named.name, data: { digest: row.digest, from: row.name } })
    })
    return this.#names.present(named) ?? raise(notFound(target))
  }

  // Pushing

  /** Begins to push an image that is ready; answers with the push as it stands. Throws what `Pushes.create` does. */
  async push(request: PushImageRequest): Promise<Push> {
    return await this.#pushes.create(request, givenCredentials(request.credentials))
  }

  /** Newest first. */
  pushes(): Push[] {
    return this.#pushes.list()
  }

  /** Throws `not_found`. */
  getPush(id: string): Push {
    return this.#pushes.get(id)
  }

  /** Resolves when the push is over. */
  async pushSettled(id: string): Promise<Push> {
    return await this.#pushes.settled(id)
  }

  // Removing

  /** Takes the name away; with the last name of an image goes its rootfs, and every layer that no other image has. */
  async remove(name: string): Promise<void> {
    await this.recover()
    const rows = this.#names.called(name)
    if (rows.length === 0) throw notFound(name)
    for (const row of rows) this.#shelf.refuseBusy(row)
    this.#uses.db.transaction(
      () => {
        for (const row of rows) this.#removeName(row)
      },
      { evenWhenFull: true },
    )
    await this.#shelf.sweep()
  }

  /** Deletes every image that no instance stands on and no work is under way for, and files that nothing speaks of. */
  async prune(): Promise<PruneImagesResponse> {
    const before = await this.usage()
    const { names } = await this.collect({ which: 'unused', unusedForMs: 0 })
    return { deleted: [...names], freed_bytes: Math.max(0, before - (await this.usage())) }
  }

  /**
   * Deletes images, or with `dryRun` says which would go at this moment. Never what an instance or a snapshot stands on, what is held, nor
   * what work is under way for. The transaction is the commit point; files that no row speaks of go now or at the next start.
   */
  async collect({ dryRun = false, ...wanted }: CollectImages & { readonly dryRun?: boolean }): Promise<CollectedImages> {
    await this.recover()
    const { rows, db, crashPoint } = this.#uses
    if (!dryRun) await crashPoint?.('collect', 'images')
    const shelf = { names: rows.names(), images: rows.all(), layers: rows.layers(), isBusy: (digest: string) => this.#shelf.isBusy(digest) }
    const plan = planCollection(shelf, wanted, Date.now())
    // Nothing awaits between the plan and its record: whoever comes to stand on an image is before both or after both.
    if (!dryRun && plan.digests.length > 0) {
      db.transaction(
        () => {
          for (const row of plan.kept) rows.putName(row)
          for (const row of plan.names) this.#removeName(row)
          for (const digest of plan.digests) rows.delete(digest)
        },
        { evenWhenFull: true },
      )
      await crashPoint?.('collect', 'image_files')
    }
    const bytes = await this.#shelf.bytesOf(plan)
    if (!dryRun) await this.#shelf.sweep()
    return { names: plan.names.map(({ name }) => name), digests: plan.digests, bytes }
  }

  /** Layers and root file systems that no row speaks of, of at least that age: what a sweep could not remove, or was not let. */
  collectStrays(wanted: { readonly olderThanMs: number; readonly dryRun: boolean }): Promise<{ names: string[]; bytes: number }> {
    return this.#shelf.collectStrays(wanted)
  }

  /** While it is held an image is neither deleted nor collected. For who is about to stand on it, or reads its layers. */
  hold(digest: string): Disposable {
    return this.#shelf.holdImage(digest)
  }

  #removeName(row: ImageNameRow): void {
    this.#uses.rows.deleteName(row.name, row.platform)
    this.#uses.events.record({ kind: 'image.removed', subject: row.name, data: { digest: row.digest ?? row.nextDigest } })
    this.#shelf.forgetUnnamed(row)
  }

  /** Throws `insufficient_resources` where the layers that are still to come would fill the disk, or their share of it. */
  async #assertRoom(name: string, { digest, layers }: Pick<FoundImage, 'digest' | 'layers'>): Promise<void> {
    if (this.#uses.rows.find(digest)?.status === 'ready' || this.#work.isUnderWay(digest)) return
    await this.#assertShare(`The image ${name} is not pulled`, layers)
  }

  /** Counts what is on its way with `layers`, by pulls and by uploads. */
  async #assertShare(refusal: string, layers: readonly Descriptor[]): Promise<void> {
    const { config, makeRoom } = this.#uses
    const limits = { maxShare: config.maxStorageShare, minFreeBytes: config.minFreeBytes }
    const coming = [...this.#work.layersUnderWay(), ...layers]
    const shortage = await this.#shelf.shortageOf(coming, this.registry.arriving, limits)
    if (shortage === undefined) return
    await makeRoom?.(shortage.bytes, shortage.of)
    const left = makeRoom === undefined ? shortage : await this.#shelf.shortageOf(coming, this.registry.arriving, limits)
    if (left === undefined) return
    throw new AppError('insufficient_resources', `${refusal}: ${left.why}`, {
      hint: 'Free space with: dormouse prune --all',
      detail: { resource: 'imageBytes', missing: left.bytes },
    })
  }

  async #resolve(reference: Reference, platform: Platform, credentials: Credentials | undefined): Promise<ResolvedImage> {
    const { config, limits } = this.#uses
    const limit = AbortSignal.timeout(RESOLVE_LIMIT_MS)
    const signal = AbortSignal.any([limit, this.#work.signal])
    try {
      const found = await resolveImage(reference, platform, {
        credentials,
        policy: config,
        mirrors: config.registryMirrors,
        limits,
        signal,
      })
      this.#work.signal.throwIfAborted()
      return found
    } catch (cause) {
      if (!limit.aborted) throw cause
      throw new AppError('registry_unavailable', `The registry ${reference.registry} did not answer within ${RESOLVE_LIMIT_MS / 1000}s`, {
        cause,
      })
    }
  }

  async #import(
    from: { path?: string; input?: Readable },
    name: string | undefined,
    options: { platform?: string; step?: Pick<Step, 'signal'> },
  ): Promise<Image> {
    const wanted = name === undefined ? undefined : normaliseReference(name)
    const platform = options.platform === undefined ? hostPlatform() : parsePlatform(options.platform)
    await this.recover()
    const signal = options.step ? AbortSignal.any([options.step.signal, this.#work.signal]) : this.#work.signal
    let row: ImageNameRow
    try {
      // Until there is a row, no one else knows that the blobs are needed.
      await using _hold = this.#shelf.hold()
      const { image: found } = await this.#work.ingest({ ...from, platform, ...(wanted === undefined ? {} : { name: wanted }) }, signal)
      const target = wanted ?? found.name
      if (target === undefined) {
        throw new AppError('invalid_name', 'The archive does not say what its image is called', {
          hint: 'Name it: dormouse image import FILE NAME',
        })
      }
      row = this.#work.admit({ name: target, platform: formatPlatform(platformOf(found, platform, target)), found })
    } finally {
      from.input?.destroy()
    }
    return await this.#imported(row)
  }

  /** Waits for the conversion. An import that turns out bad leaves no failed image behind: who imports gets the error itself. */
  async #imported({ name, platform, nextDigest }: ImageNameRow): Promise<Image> {
    const { rows, db } = this.#uses
    if (nextDigest === undefined) return this.getImage(name)
    await this.#work.settled(nextDigest)
    this.#work.signal.throwIfAborted()
    const image = rows.find(nextDigest)
    const row = rows.findName(name, platform)
    if (image?.status === 'ready' && row) return this.#names.present(row) ?? raise(notFound(name))
    db.transaction(() => {
      for (const waiting of rows.namesLeadingTo(nextDigest)) {
        if (waiting.digest === undefined) rows.deleteName(waiting.name, waiting.platform)
        else rows.putName({ ...waiting, nextDigest: undefined })
      }
      this.#shelf.forget(nextDigest)
    })
    await this.#shelf.sweep()
    throw new AppError(image?.errorCode ?? 'internal_error', image?.error ?? `The image ${name} could not be made`)
  }

  #getReady(name: string): ReadyImage {
    const row = this.#getName(name)
    const image = row.digest === undefined ? undefined : this.#uses.rows.find(row.digest)
    const ready = image && this.#names.ready(image, row.name)
    if (ready) return ready
    throw new AppError('image_not_ready', `The image ${name} is not ready`, { hint: `See how far it is: dormouse image inspect ${name}` })
  }

  #getName(name: string): ImageNameRow {
    return this.#names.find(name) ?? raise(notFound(name))
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
