/**
 * Images that come as files: OCI layouts (a directory, or a tar of one) and what `docker save` writes, old and new. A tar is read
 * once, as it streams: its blobs go into the store under what they hash to, and its documents say afterwards which of them are an
 * image. Names inside an archive are keys of a table, never paths on the host.
 */
import { createReadStream } from 'node:fs'
import { lstat, open } from 'node:fs/promises'
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { type BlobDraft, type BlobStore, READ_CHUNK } from './blob-store.ts'
import { decompress } from './decompress.ts'
import { algorithmOf } from './digest.ts'
import type { ImageLimits } from './limits.ts'
import { isDigest } from './reference.ts'
import { invalidImage, printableName, type TarEntry, tooLarge } from './tar-entry.ts'
import { TarReader, type TarSink } from './tar-reader.ts'

/** An archive whose contents can be asked for by name. Blobs that are asked for are in the store afterwards. */
export interface Archive {
  /** A small file; undefined when it is not there. */
  document(name: string): Promise<Buffer | undefined>
  /** Undefined when it is not there. */
  blob(name: string): Promise<{ digest: string; size: number } | undefined>
  /** All that was put into the store, asked for or not. */
  readonly stored: ReadonlySet<string>
}

// An archive of a multi-platform image has some thousands; a layer's own files are not entries of it.
const MAX_FILES = 20_000
const MAX_NAME = 1024
const MAX_ALIASES = 16

/** Reads a tar, compressed or not, into the store. What was stored before a failure stays there: the caller sweeps. */
export async function readArchive(
  source: AsyncIterable<Buffer>,
  store: BlobStore,
  limits: ImageLimits,
  stored: Set<string>,
): Promise<Archive> {
  const sink = new ArchiveSink(store, limits, stored)
  const reader = new TarReader(sink)
  try {
    for await (const chunk of decompress(source, limits)) {
      reader.write(chunk)
      await sink.settle()
    }
    reader.end()
    await sink.settle()
  } catch (error) {
    await sink.discard(error)
    throw error
  }
  return sink
}

class ArchiveSink implements TarSink, Archive {
  readonly #store: BlobStore
  readonly #limits: ImageLimits
  readonly stored: Set<string>
  readonly #blobs = new Map<string, { digest: string; size: number }>()
  readonly #documents = new Map<string, Buffer>()
  readonly #aliases = new Map<string, string>()
  #work: (() => Promise<void> | void)[] = []
  #draft: BlobDraft | undefined
  #small: Buffer[] | undefined
  #name = ''
  #documentBytes = 0

  constructor(store: BlobStore, limits: ImageLimits, stored: Set<string>) {
    this.#store = store
    this.#limits = limits
    this.stored = stored
  }

  async document(name: string): Promise<Buffer | undefined> {
    const key = this.#resolve(name)
    const kept = this.#documents.get(key)
    if (kept) return kept
    const blob = this.#blobs.get(key)
    return blob && readSmall(this.#store.file(blob.digest).open(), this.#limits)
  }

  async blob(name: string): Promise<{ digest: string; size: number } | undefined> {
    return this.#blobs.get(this.#resolve(name))
  }

  entry(entry: TarEntry): void {
    const name = nameOf(entry)
    if (this.#blobs.size + this.#documents.size + this.#aliases.size >= MAX_FILES)
      throw tooLarge(`The archive has more than ${MAX_FILES} files`)
    if (entry.sparse) throw invalidImage(`The archive has a sparse file: ${printableName(name)}`)
    switch (entry.kind) {
      case 'dir':
        return
      case 'symlink':
        // docker save writes a layer that occurs twice as a link to the first.
        this.#aliases.set(name, normalise(path.posix.join(path.posix.dirname(name), entry.linkName), entry.linkName))
        return
      case 'link':
        this.#aliases.set(name, normalise(entry.linkName, entry.linkName))
        return
      case 'file':
        this.#work.push(() => this.#begin(name, entry.size))
        return
      default:
        throw invalidImage(`The archive has something that is no file: ${printableName(name)}`)
    }
  }

  data(slice: Buffer): void {
    this.#work.push(() => {
      this.#small?.push(slice)
      return this.#draft?.write(slice)
    })
  }

  endEntry(): void {
    this.#work.push(() => this.#finish())
  }

  /** Does what the entries of the last chunk asked for. */
  async settle(): Promise<void> {
    const work = this.#work
    this.#work = []
    for (const step of work) await step()
  }

  async discard(reason: unknown): Promise<void> {
    this.#work = []
    await this.#draft?.discard(reason)
  }

  async #begin(name: string, size: number): Promise<void> {
    this.#name = name
    if (/\.json$|^oci-layout$|^repositories$|\/VERSION$|\/json$/.test(name)) {
      if (size > this.#limits.maxDocumentBytes)
        throw tooLarge(`The archive's ${printableName(name)} is larger than ${this.#limits.maxDocumentBytes} bytes`)
      this.#documentBytes += size
      if (this.#documentBytes > 16 * this.#limits.maxDocumentBytes) throw tooLarge('The archive has too many documents')
      this.#small = []
      return
    }
    this.#draft = await this.#store.beginDraft(name.startsWith('blobs/sha512/') ? 'sha512' : 'sha256')
  }

  async #finish(): Promise<void> {
    // Directories and links have no content to finish.
    if (this.#small) this.#documents.set(this.#name, Buffer.concat(this.#small))
    else if (this.#draft) {
      const declared = digestOfName(this.#name)
      const blob = await this.#draft.publish(declared === undefined ? undefined : { digest: declared })
      this.stored.add(blob.digest)
      this.#blobs.set(this.#name, blob)
    }
    this.#small = this.#draft = undefined
  }

  #resolve(name: string): string {
    let key = normalise(name, name)
    for (let hops = 0; hops < MAX_ALIASES && !this.#blobs.has(key) && !this.#documents.has(key); hops++) {
      const next = this.#aliases.get(key)
      if (next === undefined) break
      key = next
    }
    return key
  }
}

/** An OCI layout that lies unpacked in a directory of the host. */
class LayoutDirectory implements Archive {
  readonly #dir: string
  readonly #store: BlobStore
  readonly #limits: ImageLimits
  readonly stored: Set<string>

  constructor(dir: string, store: BlobStore, limits: ImageLimits, stored: Set<string>) {
    this.#dir = dir
    this.#store = store
    this.#limits = limits
    this.stored = stored
  }

  async document(name: string): Promise<Buffer | undefined> {
    const file = await this.#file(name)
    return file === undefined ? undefined : await readSmall(createReadStream(file, { highWaterMark: READ_CHUNK }), this.#limits)
  }

  async blob(name: string): Promise<{ digest: string; size: number } | undefined> {
    const digest = digestOfName(name)
    if (digest === undefined) return undefined
    const size = await this.#store.sizeOf(digest)
    if (size !== undefined) return { digest, size }
    const file = await this.#file(name)
    if (file === undefined) return undefined
    const draft = await this.#store.beginDraft(algorithmOf(digest))
    try {
      for await (const chunk of createReadStream(file, { highWaterMark: READ_CHUNK })) await draft.write(chunk as Buffer)
    } catch (error) {
      await draft.discard(error)
      throw error
    }
    const blob = await draft.publish({ digest })
    this.stored.add(digest)
    return blob
  }

  /** Undefined when there is none. Links are not followed and only plain files are opened. */
  async #file(name: string): Promise<string | undefined> {
    const file = path.join(this.#dir, normalise(name, name))
    const facts = await lstat(file).catch(() => undefined)
    if (!facts) return undefined
    if (!facts.isFile()) throw invalidImage(`${printableName(name)} in the layout is no plain file`)
    return file
  }
}

/** What is at `file`: a layout's directory, or an archive. */
export async function openArchive(file: string, store: BlobStore, limits: ImageLimits, stored: Set<string>): Promise<Archive> {
  const handle = await open(file, 'r').catch((cause) => {
    throw new AppError('path_not_found', `${file} cannot be opened`, { cause })
  })
  try {
    const facts = await handle.stat()
    if (facts.isDirectory()) return new LayoutDirectory(file, store, limits, stored)
    if (!facts.isFile()) throw invalidImage(`${file} is neither a directory nor a plain file`)
  } finally {
    await handle.close()
  }
  return await readArchive(createReadStream(file, { highWaterMark: READ_CHUNK }), store, limits, stored)
}

async function readSmall(source: AsyncIterable<Buffer>, limits: ImageLimits): Promise<Buffer> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of source) {
    length += chunk.length
    if (length > limits.maxDocumentBytes) throw tooLarge(`A document of the archive is larger than ${limits.maxDocumentBytes} bytes`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

const nameOf = (entry: TarEntry): string => normalise(entry.name, entry.name)

/** `./a//b/` is `a/b`. Throws for what leads out of the archive. */
function normalise(name: string, asWritten: string): string {
  if (asWritten.startsWith('/')) throw invalidImage(`The archive has an absolute name: ${printableName(asWritten)}`)
  if (name.length > MAX_NAME) throw invalidImage('The archive has a name that is too long')
  const plain = path.posix.normalize(name).replace(/\/$/, '')
  if (plain === '..' || plain.startsWith('../') || name.split('/').includes('..')) {
    throw invalidImage(`The archive has a name that leads out of it: ${printableName(asWritten)}`)
  }
  return plain
}

function digestOfName(name: string): string | undefined {
  const [, algorithm, hex] = /^blobs\/([a-z0-9]+)\/([0-9a-f]+)$/.exec(name) ?? []
  const digest = `${algorithm}:${hex}`
  return isDigest(digest) ? digest : undefined
}
