/**
 * The work on images, one at a time or a few: pending → pulling → converting → ready, or failed. What a caller asks for is entered
 * with its row in one transaction and goes on without the caller; who wants to know follows the steps.
 */
import { randomBytes } from 'node:crypto'
import { chmod, rename } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { ImageProgress } from '@dormouse/api/images.ts'
import type { Config } from '../config/config.ts'
import type { Events } from '../events/events.ts'
import { syncDirectory } from '../host/files.ts'
import type { Logger } from '../log.ts'
import type { Paths } from '../paths.ts'
import type { Database } from '../store/database.ts'
import type { ImageNameRow, ImageRows, ImageStatus } from '../store/images.ts'
import type { FoundImage } from './archive-image.ts'
import type { BlobStore } from './blob-store.ts'
import { runJob } from './conversion.ts'
import type { ConvertJob, Ingested, Origin } from './conversion-job.ts'
import { parseImageConfig } from './image-config.ts'
import type { ImageShelf } from './image-shelf.ts'
import type { Credentials } from './keychain.ts'
import type { ImageLimits } from './limits.ts'
import type { Descriptor } from './manifest.ts'
import type { Platform } from './platform.ts'
import { ProgressFeed } from './progress-feed.ts'
import { WorkQueue } from './work-queue.ts'

/** Where an image can be pulled from again. */
export type StoredOrigin = Origin & { readonly needsGiven: boolean }

const INGESTS_AT_ONCE = 4

/** An image that someone wants under a name. */
export interface WantedImage {
  readonly name: string
  readonly platform: string
  readonly tags?: Readonly<Record<string, string>> | undefined
  readonly found: FoundImage
  /** Absent: its layers are in the store, and cannot be had again. */
  readonly from?: { readonly origin: StoredOrigin; readonly credentials: Credentials | undefined }
}

interface WorkUses {
  readonly db: Database
  readonly rows: ImageRows
  readonly paths: Paths
  readonly log: Logger
  readonly events: Events
  readonly config: Config['images']
  readonly limits: ImageLimits
  readonly store: BlobStore
  readonly shelf: () => ImageShelf
}

export class ImageWork implements AsyncDisposable {
  readonly #uses: WorkUses
  readonly #queue: WorkQueue<string>
  /** Uploads come at their senders' pace, so they do not take the place of a pull. */
  readonly #ingests = new WorkQueue<string>(INGESTS_AT_ONCE)
  readonly #feed = new ProgressFeed()
  /** By digest: settles, never rejects, when the work on it is done. */
  readonly #underWay = new Map<string, Promise<void>>()
  /** What is being pulled, or waits for it. */
  readonly #layers = new Map<string, readonly Descriptor[]>()
  /** By digest: the credentials that came with the request for what is under way. */
  readonly #given = new Map<string, string>()
  readonly #closing = new AbortController()

  constructor(uses: WorkUses) {
    this.#uses = uses
    this.#queue = new WorkQueue(uses.config.maxConcurrentPulls)
  }

  /** Ends what is under way and leaves its rows as they are: the next start takes it up again. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new AppError('shutting_down', 'The daemon is shutting down'))
    await Promise.all(this.#underWay.values())
  }

  /** Aborts when the daemon stops. */
  get signal(): AbortSignal {
    return this.#closing.signal
  }

  isUnderWay(digest: string): boolean {
    return this.#underWay.has(digest)
  }

  /** Of all that is being pulled, whether they are here already or not. */
  layersUnderWay(): Descriptor[] {
    return [...this.#layers.values()].flat()
  }

  positionOf(digest: string): number | undefined {
    return this.#queue.positionOf(digest)
  }

  /** Resolves when nothing is under way for `digest`. */
  async settled(digest: string): Promise<void> {
    await this.#underWay.get(digest)
  }

  /** Resolves at the next step of `digest`. */
  async changed(digest: string, signal: AbortSignal): Promise<void> {
    await this.#feed.changed(digest, signal)
  }

  /**
   * Enters the image under its name and starts the work, unless it is here (the name moves at once) or under way (it is joined).
   * Throws `credential_conflict` where it is under way with other credentials than those that came with this request.
   */
  admit({ name, platform, tags, found, from }: WantedImage): ImageNameRow {
    const { db, rows, events, shelf } = this.#uses
    const { digest } = found
    const isReady = rows.find(digest)?.status === 'ready'
    const isUnderWay = this.#underWay.has(digest)
    const given = from?.origin.needsGiven ? JSON.stringify(from.credentials) : undefined
    if (isUnderWay && given !== undefined && given !== this.#given.get(digest)) {
      throw new AppError('credential_conflict', `The image ${name} is being pulled already, with other credentials`, {
        hint: `Wait until it is ready or has failed: dormouse image inspect ${name}`,
      })
    }
    const before = rows.findName(name, platform)
    const row: ImageNameRow = {
      name,
      platform,
      digest: isReady ? digest : before?.digest,
      nextDigest: isReady ? undefined : digest,
      tags: tags ?? before?.tags ?? {},
      createdAtMs: isReady && before?.digest === digest ? before.createdAtMs : Date.now(),
    }
    db.transaction(() => {
      if (!isReady && !isUnderWay) {
        const origin = from && JSON.stringify(from.origin)
        const facts = { errorCode: undefined, error: undefined, rootfsBytes: undefined, createdAtMs: Date.now() }
        rows.put(
          { digest, platform, status: 'pending', manifest: found.manifest, config: found.config, origin, ...facts },
          found.layers.map((layer) => layer.digest),
        )
        this.#record(digest, 'pending', name)
      }
      rows.putName(row)
      if (isReady) events.record({ kind: 'image.pulled', subject: name, data: { digest } })
      shelf().forgetSuperseded(before, row)
    })
    if (!isReady && !isUnderWay && given !== undefined) this.#given.set(digest, given)
    // What it is entered together with may still be undone.
    if (!isReady && !isUnderWay)
      db.afterCommit(() => this.start(found, from && { ...from.origin, credentials: async () => from.credentials }))
    return row
  }

  /** Starts work that has its row already. */
  start(found: FoundImage, from: (Origin & { credentials: () => Promise<Credentials | undefined> }) | undefined): void {
    const { digest } = found
    this.#feed.publish(digest, { digest, status: 'pending' })
    const done = this.#queue
      .run(digest, async () => {
        this.signal.throwIfAborted()
        const { registry = '', host = '', repository = '' } = from ?? {}
        const source = from && { origin: { registry, host, repository }, credentials: await from.credentials(), policy: this.#policy() }
        if (source) this.#setStatus(digest, 'pulling')
        this.#finish(digest, await this.#convert(digest, found, source))
      })
      .catch((error) => this.#fail(digest, error))
      // The disk may be too full to write even that down. The next start of the daemon takes it up again.
      .catch((err) => this.#uses.log.error({ err, digest }, 'the failure of an image could not be recorded'))
      .finally(() => {
        this.#underWay.delete(digest)
        this.#layers.delete(digest)
        this.#given.delete(digest)
        this.#feed.end(digest)
      })
    this.#underWay.set(digest, done)
    if (from !== undefined) this.#layers.set(digest, found.layers)
  }

  /** Puts an archive's blobs into the store, in its turn, and says which image it holds. */
  async ingest(archive: { path?: string; input?: Readable; name?: string; platform: Platform }, signal: AbortSignal): Promise<Ingested> {
    const { path, input, name, platform } = archive
    const drafts = draftPrefix()
    const job = {
      kind: 'ingest',
      dirs: this.#dirs(),
      drafts,
      path,
      platform,
      limits: this.#uses.limits,
      ...(name === undefined ? {} : { name }),
    } as const
    return await this.#ingests.run(drafts, async () => {
      try {
        return await runJob(job, { signal, ...(input === undefined ? {} : { input }) })
      } finally {
        await this.#uses.store.sweepDrafts(drafts)
      }
    })
  }

  /** Each step of the work on `digest` as it comes; a slow follower sees fewer. Ends after `ready` or `failed`. */
  async *steps(name: string, digest: string, signal: AbortSignal): AsyncGenerator<ImageProgress, void, void> {
    let last = ''
    while (!signal.aborted) {
      const image = this.#uses.rows.find(digest)
      const latest = this.#feed.latest(digest)
      const isMoving = image !== undefined && image.status !== 'ready' && image.status !== 'failed'
      const step: ImageProgress =
        isMoving && latest
          ? { ...latest, name, digest, status: image.status }
          : { name, digest, status: image?.status ?? 'failed', ...(image?.error === undefined ? {} : { error: image.error }) }
      const text = JSON.stringify(step)
      if (text !== last) yield step
      last = text
      if (!isMoving) return
      await this.#feed.changed(digest, signal)
    }
  }

  /** Layers to a rootfs in its place. Gives its size. */
  async #convert(digest: string, found: FoundImage, from: ConvertJob['from']): Promise<number> {
    const { paths, config, limits, store, shelf } = this.#uses
    const distinct = [...new Map(found.layers.map((layer) => [layer.digest, layer])).values()]
    await shelf().checkDisk(distinct)
    const drafts = draftPrefix()
    const draft = join(paths.imageDraftsDir, `${drafts}rootfs`)
    try {
      const { rootfsBytes } = await runJob(
        {
          kind: 'convert',
          dirs: this.#dirs(),
          drafts,
          layers: found.layers.map(({ mediaType, digest, size }) => ({ mediaType, digest, size })),
          diffIds: parseImageConfig(found.config).diffIds,
          ...(from === undefined ? {} : { from }),
          rootfs: draft,
          compression: config.rootfsCompression,
          limits,
        },
        {
          signal: this.signal,
          onProgress: (layers) => this.#feed.publish(digest, progressOf(digest, 'pulling', distinct, layers)),
          onConverting: () => this.#setStatus(digest, 'converting', distinct),
        },
      )
      // VMMs run as users of their own.
      await chmod(draft, 0o644)
      await rename(draft, paths.imageRootfs(digest))
      await syncDirectory(paths.imageRootfsDir)
      return rootfsBytes
    } finally {
      // What a process that was killed has left, too.
      await store.sweepDrafts(drafts)
    }
  }

  /** The commit point: the image is there, and every name that waited for it leads to it. */
  #finish(digest: string, rootfsBytes: number): void {
    const { db, rows, events, log } = this.#uses
    db.transaction(() => {
      rows.setStatus(digest, 'ready', { rootfsBytes })
      rows.moveNames(digest)
      this.#record(digest, 'ready')
      for (const { name } of rows.namesLeadingTo(digest)) events.record({ kind: 'image.pulled', subject: name, data: { digest } })
    })
    log.info({ digest, rootfsBytes }, 'image ready')
  }

  async #fail(digest: string, error: unknown): Promise<void> {
    const { db, rows, log, shelf } = this.#uses
    // Not a failure: the next start takes it up again.
    if (this.signal.aborted) return
    const code = errorCodeOf(error) ?? 'internal_error'
    const message = error instanceof AppError ? error.message : 'The image could not be made: see the log of the daemon'
    log.warn({ digest, err: error }, 'image failed')
    db.transaction(() => {
      if (!rows.find(digest)) return
      rows.setStatus(digest, 'failed', { errorCode: code, error: message })
      // Whole layers are kept for the next try only where that may do better.
      if (code !== 'registry_unavailable' && code !== 'rate_limited') rows.dropLayers(digest)
      this.#record(digest, 'failed')
    })
    await shelf()
      .sweep()
      .catch((err) => log.warn({ err }, 'sweeping after a failed image failed'))
  }

  #setStatus(digest: string, status: ImageStatus, layers?: readonly Descriptor[]): void {
    this.#uses.db.transaction(() => {
      this.#uses.rows.setStatus(digest, status)
      this.#record(digest, status)
    })
    const sizes = layers?.map(({ size }) => size)
    this.#feed.publish(digest, layers && sizes ? progressOf(digest, status, layers, sizes) : { digest, status })
  }

  #record(digest: string, status: ImageStatus, name?: string): void {
    const leading = this.#uses.rows.namesLeadingTo(digest).map((row) => row.name)
    for (const subject of new Set([...(name === undefined ? [] : [name]), ...leading])) {
      this.#uses.events.record({ kind: 'image.changed', subject, data: { digest, status } })
    }
  }

  #dirs(): ConvertJob['dirs'] {
    return { dataDir: this.#uses.paths.dataDir, runDir: this.#uses.paths.runDir }
  }

  #policy(): NonNullable<ConvertJob['from']>['policy'] {
    const { allowPrivateRegistries, insecureRegistries } = this.#uses.config
    return { allowPrivateRegistries, insecureRegistries }
  }
}

const draftPrefix = (): string => `${randomBytes(8).toString('hex')}-`

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
