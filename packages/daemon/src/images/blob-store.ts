/**
 * Layers as they came, each kept once under its digest and shared by all images that have it. What arrives is a draft: hashed and
 * counted while it streams, flushed, and given its name only when digest and size are right.
 */
import { createHash, type Hash, randomBytes } from 'node:crypto'
import { createReadStream, type ReadStream } from 'node:fs'
import { type FileHandle, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { syncDirectory } from '../host/files.ts'
import type { Paths } from '../paths.ts'
import { buffersPass } from './buffer-collector.ts'
import { algorithmOf } from './digest.ts'
import { FileTail } from './file-tail.ts'
import type { LayerFile } from './merged-tar.ts'
import { invalidImage } from './tar-entry.ts'

export class BlobStore {
  readonly #paths: Paths
  readonly #draftPrefix: string

  /** Drafts begin with `draftPrefix`, so that whoever outlives the job knows which are its own. */
  constructor(paths: Paths, draftPrefix = '') {
    this.#paths = paths
    this.#draftPrefix = draftPrefix
  }

  /** Makes the directories. VMMs run as users of their own and open what is in `rootfs` by its name; the rest is the daemon's alone. */
  async prepare(): Promise<void> {
    await mkdir(this.#paths.imagesDir, { recursive: true, mode: 0o711 })
    await mkdir(this.#paths.imageRootfsDir, { recursive: true, mode: 0o711 })
    for (const dir of [this.#paths.imageLayersDir, this.#paths.imageDraftsDir]) await mkdir(dir, { recursive: true, mode: 0o700 })
  }

  /** Removes the drafts of a job that is over, or all: those of a daemon that died are of no use to anyone. */
  async sweepDrafts(prefix = ''): Promise<void> {
    for (const name of await readdir(this.#paths.imageDraftsDir)) {
      if (name.startsWith(prefix)) await rm(join(this.#paths.imageDraftsDir, name), { recursive: true, force: true })
    }
  }

  /** Its size; undefined when it is not there. */
  async sizeOf(digest: string): Promise<number | undefined> {
    return (await stat(this.#paths.imageLayer(digest)).catch(() => undefined))?.size
  }

  file(digest: string): LayerFile {
    const path = this.#paths.imageLayer(digest)
    return { open: () => createReadStream(path, { highWaterMark: READ_CHUNK }) }
  }

  /** From `start` up to and with `end`. */
  read(digest: string, range: { start?: number; end?: number } = {}): ReadStream {
    return createReadStream(this.#paths.imageLayer(digest), { highWaterMark: READ_CHUNK, ...range })
  }

  async beginDraft(algorithm: 'sha256' | 'sha512' = 'sha256'): Promise<BlobDraft> {
    const path = join(this.#paths.imageDraftsDir, `${this.#draftPrefix}blob-${randomBytes(8).toString('hex')}`)
    return new BlobDraft(path, await open(path, 'wx', 0o600), algorithm, this.#paths)
  }

  /** Reads it and hashes it anew. One that is no longer what its name says is removed; one that is stays. */
  async removeIfDamaged(digest: string): Promise<void> {
    const hash = createHash(algorithmOf(digest))
    try {
      for await (const chunk of this.read(digest)) hash.update(chunk as Buffer)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'ENOENT') return
      // A disk that cannot give it has lost it.
      if (code !== 'EIO') throw error
    }
    if (`${algorithmOf(digest)}:${hash.digest('hex')}` !== digest) await this.remove(digest)
  }

  /** Repeat is harmless. */
  async remove(digest: string): Promise<void> {
    await rm(this.#paths.imageLayer(digest), { force: true })
  }
}

export const READ_CHUNK = 256 * 1024

/** A blob on its way. Exactly one of `publish` and `discard` ends it. */
export class BlobDraft {
  readonly #path: string
  readonly #handle: FileHandle
  readonly #algorithm: 'sha256' | 'sha512'
  readonly #hash: Hash
  readonly #paths: Paths
  #size = 0
  #isOpen = true
  /** Lets a reader follow while the draft grows. */
  readonly tail: FileTail

  constructor(path: string, handle: FileHandle, algorithm: 'sha256' | 'sha512', paths: Paths) {
    this.#path = path
    this.#handle = handle
    this.#algorithm = algorithm
    this.#hash = createHash(algorithm)
    this.#paths = paths
    this.tail = new FileTail(path)
  }

  /** How much has been taken and hashed: where a download that was cut goes on. */
  get size(): number {
    return this.#size
  }

  async write(chunk: Buffer): Promise<void> {
    buffersPass(chunk.length)
    this.#hash.update(chunk)
    for (let done = 0; done < chunk.length; ) {
      const { bytesWritten } = await this.#handle.write(chunk, done, chunk.length - done, this.#size + done).catch(diskFull)
      done += bytesWritten
    }
    this.#size += chunk.length
    this.tail.advance(this.#size)
  }

  /**
   * Gives the blob its place under `expected.digest`, or under what it turned out to be. Throws, and discards it, when it is something
   * else. `onVerified` comes before it has its place.
   */
  async publish(
    expected?: { digest: string; size?: number },
    onVerified?: (digest: string) => void | Promise<void>,
  ): Promise<{ digest: string; size: number }> {
    const digest = `${this.#algorithm}:${this.#hash.digest('hex')}`
    try {
      if (expected?.size !== undefined && this.#size !== expected.size) {
        throw invalidImage(`The blob ${expected.digest} has ${this.#size} bytes where ${expected.size} were declared`)
      }
      if (expected && digest !== expected.digest) throw invalidImage(`The blob ${expected.digest} is damaged: its digest is ${digest}`)
      await this.#handle.sync()
      await onVerified?.(digest)
      const place = this.#paths.imageLayer(digest)
      await rename(this.#path, place)
      this.tail.end(place)
      await syncDirectory(this.#paths.imageLayersDir)
      return { digest, size: this.#size }
    } catch (error) {
      await this.discard(error)
      throw error
    } finally {
      await this.#close()
    }
  }

  /** Repeat is harmless; does nothing after `publish`. */
  async discard(reason: unknown = new AppError('internal_error', 'The blob was given up')): Promise<void> {
    if (!this.#isOpen) return
    this.tail.fail(reason)
    await rm(this.#path, { force: true })
    await this.#close()
  }

  async #close(): Promise<void> {
    if (!this.#isOpen) return
    this.#isOpen = false
    await this.#handle.close()
  }
}

function diskFull(error: NodeJS.ErrnoException): never {
  if (error.code === 'ENOSPC' || error.code === 'EDQUOT') {
    throw new AppError('insufficient_resources', 'The disk is full: the image could not be written', {
      hint: 'Free space with: dormouse prune --all',
      cause: error,
    })
  }
  throw error
}
