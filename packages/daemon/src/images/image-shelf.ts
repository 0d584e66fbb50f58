import { readdir, rm, stat, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { formatSize } from '@dormouse/api/units.ts'
import type { Paths } from '../paths.ts'
import type { ImageNameRow, ImageRows } from '../store/images.ts'
import type { RegistryRows } from '../store/registry.ts'
import type { BlobStore } from './blob-store.ts'
import type { Descriptor } from './manifest.ts'
import type { Arriving } from './registry/uploads.ts'

const SPARE_DISK_BYTES = 256 * 1024 ** 2
const CLOCK_SLACK_MS = 1000
// From the answer that a blob is here to the manifest that stands on it: between them come the blobs that are not.
const BLOB_HOLD_MS = 3_600_000
const MAX_HELD_BLOBS = 10_000

/** Of what is pulled or pushed to us. */
interface StorageLimits {
  /** Of the file system, for layers and root file systems together. */
  readonly maxShare: number
  readonly minFreeBytes: number
}

/** `of`: the share of the disk that images may take, or the disk itself. */
interface Shortage {
  readonly why: string
  readonly of: 'images' | 'disk'
  /** So many are missing. */
  readonly bytes: number
}

/** Frees so many bytes of what can be missed, as far as there are. */
export type MakeRoom = (bytes: number, of: Shortage['of']) => Promise<void>

const mib = (bytes: number): string => formatSize(Math.ceil(bytes / 2 ** 20) * 2 ** 20)
const digestOf = (file: string): string => file.replace('-', ':')

/** What lies on the disk, who needs it, and what may go. Rows first: a file goes when no row speaks of it. */
export class ImageShelf {
  readonly #rows: ImageRows
  readonly #paths: Paths
  readonly #store: BlobStore
  readonly #layers: FilesIn
  readonly #rootfs: FilesIn
  readonly #isInUse: (digest: string) => boolean
  readonly #isUnderWay: (digest: string) => boolean
  readonly #isBeingPushed: (digest: string) => boolean
  readonly #pushed: RegistryRows
  readonly #makeRoom: MakeRoom | undefined
  /** Imports whose blobs no row speaks of yet. */
  #held = 0
  /** Images that someone is about to stand on, or reads: how many. */
  readonly #holders = new Map<string, number>()
  /** By digest, until when. */
  readonly #heldBlobs = new Map<string, number>()

  constructor(uses: {
    rows: ImageRows
    paths: Paths
    store: BlobStore
    isInUse: (digest: string) => boolean
    isUnderWay: (digest: string) => boolean
    isBeingPushed: (digest: string) => boolean
    pushed: RegistryRows
    makeRoom?: MakeRoom
  }) {
    this.#rows = uses.rows
    this.#isBeingPushed = uses.isBeingPushed
    this.#pushed = uses.pushed
    this.#makeRoom = uses.makeRoom
    this.#paths = uses.paths
    this.#store = uses.store
    this.#layers = new FilesIn(uses.paths.imageLayersDir)
    this.#rootfs = new FilesIn(uses.paths.imageRootfsDir)
    this.#isInUse = uses.isInUse
    this.#isUnderWay = uses.isUnderWay
  }

  isBusy(digest: string): boolean {
    return this.#isInUse(digest) || this.#isUnderWay(digest) || this.#isBeingPushed(digest) || this.#holders.has(digest)
  }

  /** It is busy until it is disposed of. */
  holdImage(digest: string): Disposable {
    this.#holders.set(digest, (this.#holders.get(digest) ?? 0) + 1)
    let isHeld = true
    return {
      [Symbol.dispose]: () => {
        if (!isHeld) return
        isHeld = false
        const left = (this.#holders.get(digest) ?? 1) - 1
        if (left > 0) this.#holders.set(digest, left)
        else this.#holders.delete(digest)
      },
    }
  }

  /** Nothing is swept until it is disposed of; then comes a sweep. */
  hold(): AsyncDisposable {
    this.#held++
    return {
      [Symbol.asyncDispose]: async () => {
        this.#held--
        await this.sweep()
      },
    }
  }

  /** Keeps a blob for a while though no row may speak of it: who pushes was told that it is here. Repeat begins the while again. */
  holdBlob(digest: string): void {
    const now = Date.now()
    if (this.#heldBlobs.size >= MAX_HELD_BLOBS) {
      for (const [one, untilMs] of this.#heldBlobs) if (untilMs <= now) this.#heldBlobs.delete(one)
      const [oldest] = this.#heldBlobs.keys()
      if (oldest !== undefined && this.#heldBlobs.size >= MAX_HELD_BLOBS) this.#heldBlobs.delete(oldest)
    }
    this.#heldBlobs.set(digest, now + BLOB_HOLD_MS)
  }

  /** The manifest that it was kept for has come. */
  releaseBlob(digest: string): void {
    this.#heldBlobs.delete(digest)
  }

  #isHeldBlob(digest: string): boolean {
    return (this.#heldBlobs.get(digest) ?? 0) > Date.now()
  }

  /** Drops what was pushed and no name leads to, then removes layers and root file systems that no row speaks of. */
  async sweep(): Promise<void> {
    if (this.#held > 0) return
    this.#pushed.collect(Date.now(), (digest) => this.#isHeldBlob(digest))
    for (const file of await readdir(this.#paths.imageLayersDir)) {
      // Asked anew each time: rows may come while files go.
      if (this.isStrayLayer(digestOf(file))) await this.#store.remove(digestOf(file))
    }
    for (const file of await readdir(this.#paths.imageRootfsDir)) {
      if (this.#isStrayRootfs(file)) await rm(join(this.#paths.imageRootfsDir, file), { force: true })
    }
  }

  /** What a sweep would remove, of at least that age. `names` are file names. */
  async collectStrays({ olderThanMs, dryRun }: { readonly olderThanMs: number; readonly dryRun: boolean }) {
    const names: string[] = []
    let bytes = 0
    for (const [dir, isStray] of [
      [this.#paths.imageLayersDir, (file: string) => this.isStrayLayer(digestOf(file))],
      [this.#paths.imageRootfsDir, (file: string) => this.#isStrayRootfs(file)],
    ] as const) {
      for (const file of await readdir(dir)) {
        if (!isStray(file)) continue
        const facts = await stat(join(dir, file)).catch(() => undefined)
        if (facts === undefined || Date.now() - facts.mtimeMs < olderThanMs || !isStray(file)) continue
        if (!dryRun) await rm(join(dir, file), { force: true })
        names.push(file)
        bytes += facts.blocks * 512
      }
    }
    return { names, bytes }
  }

  /** No one needs it, nor is about to say so. */
  isStrayLayer(digest: string): boolean {
    return this.#held === 0 && !this.#rows.isLayerInUse(digest) && !this.#isHeldBlob(digest)
  }

  #isStrayRootfs(file: string): boolean {
    const digest = digestOf(file.replace(/\.squashfs$/, ''))
    return !this.#rows.find(digest) && !this.#isInUse(digest)
  }

  /** What these take on the disk. */
  async bytesOf({ digests, layers }: { readonly digests: readonly string[]; readonly layers: readonly string[] }): Promise<number> {
    const files = [...digests.map((digest) => this.#paths.imageRootfs(digest)), ...layers.map((digest) => this.#paths.imageLayer(digest))]
    let bytes = 0
    for (const file of files) bytes += ((await stat(file).catch(() => undefined))?.blocks ?? 0) * 512
    return bytes
  }

  /** Drops the row of an image that no one needs; its files go with the next sweep. */
  forget(digest: string): void {
    if (!this.isBusy(digest)) this.#rows.delete(digest)
  }

  /** Forgets what `row` led to and no other name does. */
  forgetUnnamed(row: ImageNameRow): void {
    for (const digest of [row.digest, row.nextDigest]) {
      if (digest !== undefined && this.#rows.namesLeadingTo(digest).length === 0) this.forget(digest)
    }
  }

  /** A failed image that a name led to goes when the name gets another. */
  forgetSuperseded(before: ImageNameRow | undefined, after: ImageNameRow): void {
    for (const digest of [before?.digest, before?.nextDigest]) {
      if (digest === undefined || digest === after.digest || digest === after.nextDigest) continue
      if (this.#rows.find(digest)?.status === 'failed' && this.#rows.namesLeadingTo(digest).length === 0) this.forget(digest)
    }
  }

  /** Throws `in_use` or `conflict` where `row` leads to an image that someone needs and no name but those of `going` leads to. */
  refuseBusy(row: ImageNameRow, going: ReadonlySet<string> = new Set([row.name])): void {
    for (const digest of [row.digest, row.nextDigest]) {
      if (digest === undefined || !this.#rows.namesLeadingTo(digest).every(({ name }) => going.has(name))) continue
      if (this.#isInUse(digest) || this.#holders.has(digest)) {
        throw new AppError('in_use', `The image ${row.name} is in use by an instance`, {
          hint: 'Delete its instances first: dormouse ps -a',
        })
      }
      if (this.#isUnderWay(digest)) {
        throw new AppError('conflict', `The image ${row.name} is being pulled`, { hint: 'Wait until it is ready or has failed' })
      }
      if (this.#isBeingPushed(digest)) {
        throw new AppError('conflict', `The image ${row.name} is being pushed to a registry`, {
          hint: 'Wait until the push is over: GET /pushes',
        })
      }
    }
  }

  /** Bytes on disk, layers and root file systems. */
  async usage(): Promise<number> {
    const { layersBytes, rootfsBytes } = await this.usageByKind()
    return layersBytes + rootfsBytes
  }

  async usageByKind(): Promise<{ readonly layersBytes: number; readonly rootfsBytes: number }> {
    const [layersBytes, rootfsBytes] = await Promise.all([this.#layers.bytes(), this.#rootfs.bytes()])
    return { layersBytes, rootfsBytes }
  }

  /** Digests of what lies there, whether a row speaks of it or not. */
  async files(): Promise<{ readonly layers: string[]; readonly rootfs: string[] }> {
    const [layers, rootfs] = await Promise.all([readdir(this.#paths.imageLayersDir), readdir(this.#paths.imageRootfsDir)])
    return { layers: layers.map(digestOf), rootfs: rootfs.map((file) => digestOf(file.replace(/\.squashfs$/, ''))) }
  }

  /** Why `coming` layers may not be fetched, or what is `arriving` not taken; undefined when they may. */
  async shortageOf(coming: readonly Descriptor[], arriving: Arriving, limits: StorageLimits): Promise<Shortage | undefined> {
    const distinct = new Map(coming.map((layer) => [layer.digest, layer.size]))
    let missing = 0
    for (const [digest, size] of distinct) if ((await this.#store.sizeOf(digest)) === undefined) missing += size
    const [used, { blocks, bavail, bsize }] = await Promise.all([this.usage(), statfs(this.#paths.imagesDir)])
    const most = limits.maxShare * blocks * bsize
    const unwritten = missing + arriving.unwrittenBytes
    missing += arriving.bytes
    if (used + missing > most) {
      const share = `${mib(most)}, which is ${limits.maxShare} of the disk`
      return {
        why: `with ${mib(missing)} more, images would take ${mib(used + missing)} and may take ${share}`,
        of: 'images',
        bytes: used + missing - most,
      }
    }
    const free = bavail * bsize
    if (free - unwritten >= limits.minFreeBytes) return undefined
    const why = `what is on its way takes ${mib(unwritten)} of the ${mib(free)} that are free, and ${mib(limits.minFreeBytes)} are to stay free`
    return { why, of: 'disk', bytes: limits.minFreeBytes + unwritten - free }
  }

  /** Throws `insufficient_resources` when the layers that are not here would fill the disk. */
  async checkDisk(layers: readonly Descriptor[]): Promise<void> {
    let missing = 0
    for (const { digest, size } of layers) if ((await this.#store.sizeOf(digest)) === undefined) missing += size
    await this.checkRoom(missing, "The image's layers need")
  }

  /** Throws `insufficient_resources` when so many bytes would fill the disk. */
  async checkRoom(bytes: number, what = 'The upload needs'): Promise<void> {
    const needed = bytes + SPARE_DISK_BYTES
    let free = await this.#freeBytes()
    if (needed > free && this.#makeRoom !== undefined) {
      await this.#makeRoom(needed - free, 'disk')
      free = await this.#freeBytes()
    }
    if (needed <= free) return
    throw new AppError('insufficient_resources', `${what} ${bytes} bytes, but ${free} are free on the disk`, {
      hint: 'Free space with: dormouse prune --all',
    })
  }

  async #freeBytes(): Promise<number> {
    const { bavail, bsize } = await statfs(this.#paths.imagesDir)
    return bavail * bsize
  }
}

/**
 * What the files of a directory hold, which all lie there whole. They are looked at again when one has come or gone: each create asks,
 * and there may be hundreds.
 */
export class FilesIn {
  readonly #dir: string
  #known: { readonly changedAtMs: number; readonly bytes: number } | undefined

  constructor(dir: string) {
    this.#dir = dir
  }

  async bytes(): Promise<number> {
    const changedAtMs = (await stat(this.#dir).catch(() => undefined))?.mtimeMs
    if (changedAtMs !== undefined && changedAtMs === this.#known?.changedAtMs) return this.#known.bytes
    const lookedAtMs = Date.now()
    const bytes = await bytesIn(this.#dir)
    // The clock of a file system ticks slowly: two changes close to each other may bear the same time.
    const isSettled = changedAtMs !== undefined && changedAtMs < lookedAtMs - CLOCK_SLACK_MS
    this.#known = isSettled ? { changedAtMs, bytes } : undefined
    return bytes
  }
}

/** What the files of `dir` hold; nothing when it was not made yet. */
async function bytesIn(dir: string): Promise<number> {
  const names = await readdir(dir).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return []
    throw error
  })
  const sizes = await Promise.all(names.map(async (name) => (await stat(join(dir, name)).catch(() => undefined))?.size ?? 0))
  return sizes.reduce((sum, size) => sum + size, 0)
}
