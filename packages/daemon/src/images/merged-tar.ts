/**
 * Layers into one tar stream, in two passes over their compressed files:
 *
 *   scan   bottom to top, headers only: which entry of which layer stands at each path (MergedTree); all bad input is found here
 *   merge  the surviving entries with their contents, each path once, files before further names of them
 *
 * A single layer needs no second pass as long as none of its entries takes the place of another: it is merged while it is scanned.
 *
 * Nothing of a layer is ever laid out on the host: the stream goes into tar2sqfs.
 */
import { createHash } from 'node:crypto'
import { decompress } from './decompress.ts'
import { readLayerPath, readLinkTarget } from './layer-path.ts'
import type { ImageLimits } from './limits.ts'
import { MergedTree } from './merged-tree.ts'
import { BLOCK, NO_XATTRS, printableName, type TarEntry, tooLarge } from './tar-entry.ts'
import { TarReader, type TarSink } from './tar-reader.ts'
import { encodeHeader, padding, TAR_END } from './tar-writer.ts'

/** A layer as it lies in the store, compressed or not. Each call of `open` reads from the start. */
export interface LayerFile {
  open(): AsyncIterable<Buffer>
}

export interface ScannedLayer {
  readonly entries: number
  /** sha256 of the uncompressed tar: what image configurations call the diff id. */
  readonly diffId: string
}

export class LayerMerge {
  readonly #limits: ImageLimits
  readonly #tree: MergedTree
  readonly #layers: { file: LayerFile; entries: number }[] = []
  readonly #readPath: typeof readLayerPath
  #bytes = 0
  #links = 0

  /** `readPath` says what a name means. */
  constructor(limits: ImageLimits, readPath = readLayerPath) {
    this.#limits = limits
    this.#readPath = readPath
    this.#tree = new MergedTree(limits)
  }

  /** Lays the next layer over those that were given before. Throws `invalid_image` or `image_too_large`; the merge is of no use then. */
  async scan(file: LayerFile): Promise<ScannedLayer> {
    const scan = new LayerScan(this.#tree, this.#limits, (bytes) => this.#countBytes(bytes), { readPath: this.#readPath })
    this.#tree.beginLayer(this.#layers.length)
    const reader = new TarReader(scan)
    const hash = createHash('sha256')
    for await (const chunk of decompress(file.open(), this.#limits)) {
      hash.update(chunk)
      reader.write(chunk)
    }
    reader.end()
    this.#layers.push({ file, entries: scan.entries })
    return { entries: scan.entries, diffId: `sha256:${hash.digest('hex')}` }
  }

  /**
   * The merged tar of an image of one layer, in one pass; `onScanned` is told of the layer before the stream ends. Throws
   * `TakesTwoPasses` when an entry takes the place of another: begin again with `scan` and `stream`.
   */
  async *scanAndStream(file: LayerFile, onScanned: (layer: ScannedLayer) => void): AsyncGenerator<Buffer, void, void> {
    const writer = new EntryWriter()
    const scan = new LayerScan(this.#tree, this.#limits, (bytes) => this.#countBytes(bytes), { readPath: this.#readPath, writer })
    this.#tree.beginLayer(0)
    const reader = new TarReader(scan)
    const hash = createHash('sha256')
    for await (const chunk of decompress(file.open(), this.#limits)) {
      hash.update(chunk)
      reader.write(chunk)
      yield* writer.take(false)
    }
    reader.end()
    this.#links = scan.links
    yield* writer.take(true)
    onScanned({ entries: scan.entries, diffId: `sha256:${hash.digest('hex')}` })
    yield TAR_END
  }

  /** The merged tar, in chunks that may be kept. */
  async *stream(): AsyncGenerator<Buffer, void, void> {
    this.#links = 0
    this.#tree.settle()
    for (const [index, { file, entries }] of this.#layers.entries()) {
      const { nodeOf, links } = this.#tree.survivors(index, entries)
      if (nodeOf.every((node) => node < 0)) continue
      const writer = new EntryWriter()
      const reader = new TarReader(new SurvivorSink(this.#tree, nodeOf, writer))
      for await (const chunk of decompress(file.open(), this.#limits)) {
        reader.write(chunk)
        yield* writer.take(false)
      }
      reader.end()
      for (const { node, primary } of links) writer.link(this.#tree.pathOf(node), this.#tree.pathOf(primary))
      this.#links += links.length
      yield* writer.take(true)
    }
    yield TAR_END
  }

  /** How many inodes a file system made of the stream has. True once the stream has ended. */
  get inodes(): number {
    return this.#tree.settle() - this.#links
  }

  #countBytes(bytes: number): void {
    this.#bytes += bytes
    if (this.#bytes > this.#limits.maxImageBytes) throw tooLarge(`The image's files are larger than ${this.#limits.maxImageBytes} bytes`)
  }
}

/** Expected, and rare: a layer that has a path twice, or removes what it has put there itself. */
export class TakesTwoPasses extends Error {
  override readonly name = 'TakesTwoPasses'
}

/** Enters a layer into the tree, and passes its contents on at once where a writer is given. */
class LayerScan implements TarSink {
  readonly #tree: MergedTree
  readonly #limits: ImageLimits
  readonly #onBytes: (bytes: number) => void
  readonly #readPath: typeof readLayerPath
  readonly #writer: EntryWriter | undefined
  entries = 0
  links = 0

  constructor(
    tree: MergedTree,
    limits: ImageLimits,
    onBytes: (bytes: number) => void,
    { readPath, writer }: { readPath: typeof readLayerPath; writer?: EntryWriter },
  ) {
    this.#readPath = readPath
    this.#tree = tree
    this.#limits = limits
    this.#onBytes = onBytes
    this.#writer = writer
  }

  entry(entry: TarEntry): void {
    const path = this.#readPath(entry.name, this.#limits)
    const target = entry.kind === 'link' && path.kind === 'entry' ? readLinkTarget(entry.linkName, entry.name, this.#limits) : undefined
    if (entry.kind === 'symlink' && entry.linkName.length > this.#limits.maxPathBytes) {
      throw tooLarge(`The symbolic link ${printableName(entry.name)} leads to a name longer than ${this.#limits.maxPathBytes} bytes`)
    }
    this.#onBytes(entry.size)
    this.#tree.apply(this.entries++, path, entry.kind, target)
    if (this.#writer) this.#write(this.#writer, entry, target)
  }

  data(slice: Buffer): void {
    this.#writer?.data(slice)
  }

  endEntry(): void {
    this.#writer?.end()
  }

  #write(writer: EntryWriter, entry: TarEntry, target: readonly string[] | undefined): void {
    if (this.#tree.isDisturbed) throw new TakesTwoPasses()
    const node = this.#tree.placed
    if (node < 0) return
    if (target) {
      this.links++
      writer.link(this.#tree.pathOf(node), target.join('/'))
    } else writer.begin(entry, this.#tree.pathOf(node))
  }
}

/** Passes on what survives of a layer that was scanned before. */
class SurvivorSink implements TarSink {
  readonly #tree: MergedTree
  readonly #nodeOf: Int32Array
  readonly #writer: EntryWriter
  #ordinal = 0

  constructor(tree: MergedTree, nodeOf: Int32Array, writer: EntryWriter) {
    this.#tree = tree
    this.#nodeOf = nodeOf
    this.#writer = writer
  }

  entry(entry: TarEntry): void {
    const node = this.#nodeOf[this.#ordinal++] ?? -1
    if (node >= 0) this.#writer.begin(entry, this.#tree.pathOf(node))
  }

  data(slice: Buffer): void {
    this.#writer.data(slice)
  }

  endEntry(): void {
    this.#writer.end()
  }
}

const BATCH = 128 * 1024
// Larger slices are passed on as they are, smaller ones copied together.
const SMALL = 16 * 1024

/** Gathers entries into chunks. What is not begun is not written. */
class EntryWriter {
  #isOpen = false
  #stored = 0
  #ready: Buffer[] = []
  #batch = Buffer.allocUnsafeSlow(BATCH)
  #filled = 0
  /** Copied before the next one is made: a buffer for each would be what a conversion takes most memory for. */
  readonly #header = Buffer.alloc(BLOCK)

  begin(entry: TarEntry, name: string): void {
    this.#isOpen = true
    this.#stored = entry.storedSize
    this.#push(encodeHeader({ ...entry, name, xattrs: withoutOverlay(entry.xattrs) }, this.#header))
  }

  data(slice: Buffer): void {
    if (this.#isOpen) this.#push(slice)
  }

  end(): void {
    if (this.#isOpen) this.#push(padding(this.#stored))
    this.#isOpen = false
  }

  /** A further name of a file that was written before. */
  link(name: string, primary: string): void {
    this.#push(encodeHeader({ ...LINK, name, linkName: primary }, this.#header))
  }

  /** What has gathered; the last incomplete batch only when `all`. */
  take(all: boolean): Buffer[] {
    if (all) this.#endBatch()
    const ready = this.#ready
    this.#ready = []
    return ready
  }

  #push(bytes: Buffer): void {
    if (bytes.length > SMALL) {
      this.#endBatch()
      this.#ready.push(bytes)
      return
    }
    if (this.#filled + bytes.length > BATCH) this.#endBatch()
    bytes.copy(this.#batch, this.#filled)
    this.#filled += bytes.length
  }

  #endBatch(): void {
    if (this.#filled === 0) return
    this.#ready.push(this.#batch.subarray(0, this.#filled))
    this.#batch = Buffer.allocUnsafeSlow(BATCH)
    this.#filled = 0
  }
}

const LINK: TarEntry = {
  name: '',
  kind: 'link',
  mode: 0o644,
  uid: 0,
  gid: 0,
  mtime: 0,
  size: 0,
  storedSize: 0,
  linkName: '',
  devMajor: 0,
  devMinor: 0,
  xattrs: NO_XATTRS,
}

/** What an overlay on the builder's machine left behind would be obeyed by the overlay in the guest. */
function withoutOverlay(xattrs: ReadonlyMap<string, Buffer>): ReadonlyMap<string, Buffer> {
  if (xattrs.size === 0) return xattrs
  return new Map([...xattrs].filter(([name]) => !name.startsWith('trusted.overlay.')))
}
