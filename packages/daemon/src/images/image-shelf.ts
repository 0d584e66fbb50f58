import { readdir, rm, stat, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import type { Paths } from '../paths.ts'
import type { ImageNameRow, ImageRows } from '../store/images.ts'
import type { BlobStore } from './blob-store.ts'
import type { Descriptor } from './manifest.ts'

const SPARE_DISK_BYTES = 256 * 1024 ** 2
const CLOCK_SLACK_MS = 1000

/** What lies on the disk, who needs it, and what may go. Rows first: a file goes when no row speaks of it. */
export class ImageShelf {
  readonly #rows: ImageRows
  readonly #paths: Paths
  readonly #store: BlobStore
  readonly #layers: FilesIn
  readonly #rootfs: FilesIn
  readonly #isInUse: (digest: string) => boolean
  readonly #isUnderWay: (digest: string) => boolean
  /** Imports whose blobs no row speaks of yet. */
  #held = 0

  constructor(uses: {
    rows: ImageRows
    paths: Paths
    store: BlobStore
    isInUse: (digest: string) => boolean
    isUnderWay: (digest: string) => boolean
  }) {
    this.#rows = uses.rows
    this.#paths = uses.paths
    this.#store = uses.store
    this.#layers = new FilesIn(uses.paths.imageLayersDir)
    this.#rootfs = new FilesIn(uses.paths.imageRootfsDir)
    this.#isInUse = uses.isInUse
    this.#isUnderWay = uses.isUnderWay
  }

  isBusy(digest: string): boolean {
    return this.#isInUse(digest) || this.#isUnderWay(digest)
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

  /** Removes layers and root file systems that no row speaks of. */
  async sweep(): Promise<void> {
    if (this.#held > 0) return
    for (const file of await readdir(this.#paths.imageLayersDir)) {
      const digest = file.replace('-', ':')
      // Asked anew each time: rows may come while files go.
      if (this.#held === 0 && !this.#rows.isLayerInUse(digest)) await this.#store.remove(digest)
    }
    for (const file of await readdir(this.#paths.imageRootfsDir)) {
      const digest = file.replace('-', ':').replace(/\.squashfs$/, '')
      if (!this.#rows.find(digest) && !this.#isInUse(digest)) await rm(join(this.#paths.imageRootfsDir, file), { force: true })
    }
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

  /** Throws `in_use` or `conflict` where `row` is the last name of an image that someone needs. */
  refuseBusy(row: ImageNameRow): void {
    for (const digest of [row.digest, row.nextDigest]) {
      if (digest === undefined || this.#rows.namesLeadingTo(digest).length > 1) continue
      if (this.#isInUse(digest)) {
        throw new AppError('in_use', `The image ${row.name} is in use by an instance`, {
          hint: 'Delete its instances first: dormouse ps -a',
        })
      }
      if (this.#isUnderWay(digest)) {
        throw new AppError('conflict', `The image ${row.name} is being pulled`, { hint: 'Wait until it is ready or has failed' })
      }
    }
  }

  /** Bytes on disk, layers and root file systems. */
  async usage(): Promise<number> {
    const [layers, rootfs] = await Promise.all([this.#layers.bytes(), this.#rootfs.bytes()])
    return layers + rootfs
  }

  /** Throws `insufficient_resources` when the layers that are not here would fill the disk. */
  async checkDisk(layers: readonly Descriptor[]): Promise<void> {
    let missing = 0
    for (const { digest, size } of layers) if ((await this.#store.sizeOf(digest)) === undefined) missing += size
    const { bavail, bsize } = await statfs(this.#paths.imagesDir)
    if (missing + SPARE_DISK_BYTES <= bavail * bsize) return
    throw new AppError('insufficient_resources', `The image's layers need ${missing} bytes, but ${bavail * bsize} are free on the disk`, {
      hint: 'Free space with: dormouse image prune',
    })
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
