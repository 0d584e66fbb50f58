/**
 * A tar archive as it streams by: give it chunks, it tells of entries and passes their contents on as slices of those chunks,
 * without a copy. Synchronous, so the caller's own loop is the back-pressure.
 *
 * It reads what the world writes (v7, ustar, star, GNU with long names and sparse files, PAX with binary attributes, base-256
 * numbers), and says `invalid_image` to all else. It judges form, not meaning: where a name leads is for `layer-path.ts`.
 */
import { type PaxRecords, readPax } from './pax.ts'
import { BLOCK, type EntryKind, invalidImage, NO_XATTRS, paddingOf, printableName, type SparseRegion, type TarEntry } from './tar-entry.ts'
import { parseCount, parseTime, readCount, readNumber } from './tar-numbers.ts'
import { checkRegions, readOldGnuRegions, SparseMapReader, sparseOfRecords } from './tar-sparse.ts'

export interface TarSink {
  entry(entry: TarEntry): void
  /** Content of the entry last told of. The slice belongs to the chunk that was written. */
  data(slice: Buffer): void
  /** All content of the entry last told of has been passed on. */
  endEntry(): void
}

// Go's archive/tar, which wrote and read nearly every layer there is, draws the same line.
const MAX_META = 1 << 20

type State = 'header' | 'meta' | 'sparse extension' | 'sparse map' | 'data' | 'padding' | 'end'

export class TarReader {
  readonly #sink: TarSink
  #state: State = 'header'
  /** A block that began in an earlier chunk. */
  readonly #partial = Buffer.alloc(BLOCK)
  #partialLength = 0
  /** Bytes left of the data, the padding or the meta entry. */
  #left = 0
  #afterPadding: 'header' | 'meta done' | 'entry done' = 'header'

  #meta: { readonly type: string; readonly buffer: Buffer; filled: number } | undefined
  #longName: string | undefined
  #longLink: string | undefined
  #pax: PaxRecords | undefined
  #zeroBlocks = 0
  /** An old GNU sparse header whose extension blocks are still to come, or a PAX 1.0 one whose map is. */
  #unfinished: { entry: TarEntry; regions: SparseRegion[] } | undefined
  #map: SparseMapReader | undefined

  constructor(sink: TarSink) {
    this.#sink = sink
  }

  write(chunk: Buffer): void {
    let at = 0
    while (at < chunk.length) {
      switch (this.#state) {
        case 'data': {
          const slice = chunk.subarray(at, at + this.#left)
          at += slice.length
          this.#left -= slice.length
          this.#sink.data(slice)
          if (this.#left === 0) this.#padOr('entry done')
          break
        }
        case 'meta': {
          at += this.#takeMeta(chunk.subarray(at, at + this.#left))
          break
        }
        case 'padding': {
          const skipped = Math.min(this.#left, chunk.length - at)
          at += skipped
          this.#left -= skipped
          if (this.#left === 0) this.#finish(this.#afterPadding)
          break
        }
        case 'end':
          for (; at < chunk.length; at++) {
            if (chunk[at] !== 0) throw invalidImage('The tar archive goes on after its end')
          }
          break
        default: {
          const block = this.#takeBlock(chunk, at)
          at += block.taken
          if (block.block) this.#block(block.block)
        }
      }
    }
  }

  /** The archive ends here. Throws when that is in the middle of something. */
  end(): void {
    const inHeader = this.#state === 'header' && this.#partialLength === 0
    const nothingPending = this.#longName === undefined && this.#longLink === undefined && this.#pax === undefined
    // A missing end marker is common and harmless: the digest says that nothing is missing.
    if (this.#state !== 'end' && !(inHeader && nothingPending)) throw invalidImage('The tar archive is cut short')
  }

  #takeBlock(chunk: Buffer, at: number): { taken: number; block?: Buffer } {
    if (this.#partialLength === 0 && chunk.length - at >= BLOCK) return { taken: BLOCK, block: chunk.subarray(at, at + BLOCK) }
    const taken = chunk.copy(this.#partial, this.#partialLength, at, Math.min(chunk.length, at + BLOCK - this.#partialLength))
    this.#partialLength += taken
    if (this.#partialLength < BLOCK) return { taken }
    this.#partialLength = 0
    return { taken, block: this.#partial }
  }

  #block(block: Buffer): void {
    switch (this.#state) {
      case 'header':
        this.#header(block)
        return
      case 'sparse extension': {
        const { entry, regions } = this.#unfinished ?? noEntry()
        if (!readOldGnuRegions(block, 'extension', regions)) this.#begin(withRegions(entry, regions))
        return
      }
      case 'sparse map': {
        const { entry } = this.#unfinished ?? noEntry()
        const map = this.#map ?? noEntry()
        if (map.taken + BLOCK > entry.storedSize)
          throw invalidImage(`The sparse file ${printableName(entry.name)} has a map beyond its end`)
        if (map.take(block)) this.#begin(withRegions({ ...entry, storedSize: entry.storedSize - map.taken }, map.regions))
      }
    }
  }

  #header(block: Buffer): void {
    if (isZero(block)) {
      this.#zeroBlocks++
      if (this.#zeroBlocks === 2) this.#state = 'end'
      return
    }
    if (this.#zeroBlocks > 0) throw invalidImage('The tar archive goes on after its end')
    checkChecksum(block)
    const type = String.fromCharCode(block[156] ?? 0)
    const size = readCount(block, 124, 12, 'size')
    switch (type) {
      case 'x':
      case 'X':
      case 'g':
      case 'L':
      case 'K':
        if (size > MAX_META)
          throw invalidImage(`A tar header is followed by ${size} bytes of long names or records; the limit is ${MAX_META}`)
        this.#meta = { type, buffer: Buffer.alloc(size), filled: 0 }
        this.#left = size
        if (size === 0) this.#finish('meta done')
        else this.#state = 'meta'
        return
      default:
        this.#entryHeader(block, type, size)
    }
  }

  #takeMeta(slice: Buffer): number {
    const meta = this.#meta ?? noEntry()
    slice.copy(meta.buffer, meta.filled)
    meta.filled += slice.length
    this.#left -= slice.length
    if (this.#left === 0) this.#padOr('meta done')
    return slice.length
  }

  #metaDone(): void {
    const { type, buffer } = this.#meta ?? noEntry()
    this.#meta = undefined
    if (type === 'L') this.#longName = untilNul(buffer)
    else if (type === 'K') this.#longLink = untilNul(buffer)
    else if (type !== 'g') this.#pax = readPax(buffer)
    // 'g', records for all that follows, is ignored as Docker does: git puts a comment there.
  }

  #entryHeader(block: Buffer, type: string, headerSize: number): void {
    const pax = this.#pax
    const fields = pax?.fields
    const sparseRecords = pax && sparseOfRecords(pax)
    const hasSparseMap = fields?.get('GNU.sparse.major') === '1' && fields.get('GNU.sparse.minor') === '0'
    const name = fields?.get('GNU.sparse.name') ?? fields?.get('path') ?? this.#longName ?? headerName(block)
    const linkName = fields?.get('linkpath') ?? this.#longLink ?? untilNul(block.subarray(157, 257))
    this.#longName = this.#longLink = this.#pax = undefined
    const number = (key: string, otherwise: number): number => {
      const text = fields?.get(key)
      return text === undefined ? otherwise : parseCount(text, key)
    }

    const kind = kindOf(type, name)
    if (kind === 'skipped') {
      this.#left = number('size', headerSize)
      this.#skip()
      return
    }
    if (name.includes('\0') || linkName.includes('\0')) throw invalidImage(`The name ${printableName(name)} has a NUL in it`)
    const hasContent = kind === 'file'
    const storedSize = hasContent ? number('size', headerSize) : 0
    const mtime = fields?.get('mtime')
    const entry: TarEntry = {
      name,
      kind,
      mode: readCount(block, 100, 8, 'mode') & 0o7777,
      uid: number('uid', readCount(block, 108, 8, 'owner')),
      gid: number('gid', readCount(block, 116, 8, 'group')),
      mtime: mtime === undefined ? readNumber(block, 136, 12, 'time') : parseTime(mtime, 'time'),
      size: storedSize,
      storedSize,
      linkName: kind === 'link' || kind === 'symlink' ? linkName : '',
      devMajor: kind === 'char' || kind === 'block' ? readCount(block, 329, 8, 'device number') : 0,
      devMinor: kind === 'char' || kind === 'block' ? readCount(block, 337, 8, 'device number') : 0,
      xattrs: pax && pax.xattrs.size > 0 ? pax.xattrs : NO_XATTRS,
    }

    if (type === 'S') {
      const regions: SparseRegion[] = []
      const sparse = { ...entry, size: readCount(block, 483, 12, 'size') }
      if (readOldGnuRegions(block, 'header', regions)) {
        this.#unfinished = { entry: sparse, regions }
        this.#state = 'sparse extension'
      } else this.#begin(withRegions(sparse, regions))
    } else if (hasContent && hasSparseMap) {
      this.#unfinished = { entry: { ...entry, size: number('GNU.sparse.realsize', storedSize) }, regions: [] }
      this.#map = new SparseMapReader()
      this.#state = 'sparse map'
    } else if (hasContent && sparseRecords) {
      this.#begin(withRegions({ ...entry, size: number('GNU.sparse.size', number('GNU.sparse.realsize', storedSize)) }, sparseRecords))
    } else {
      // A size on what has no content is noise, as Go's reader takes it: v7 tar writes one for directories.
      this.#begin(entry)
    }
  }

  /** Tells of the entry and goes on to its content. */
  #begin(entry: TarEntry): void {
    this.#unfinished = this.#map = undefined
    this.#sink.entry(entry)
    this.#left = entry.storedSize
    this.#tail = paddingOf(entry.storedSize)
    if (this.#left > 0) this.#state = 'data'
    else {
      this.#state = 'header'
      this.#sink.endEntry()
    }
  }
  #tail = 0

  #skip(): void {
    this.#left += paddingOf(this.#left)
    this.#afterPadding = 'header'
    this.#state = this.#left > 0 ? 'padding' : 'header'
  }

  #padOr(after: 'meta done' | 'entry done'): void {
    this.#left = after === 'meta done' ? paddingOf((this.#meta ?? noEntry()).buffer.length) : this.#tail
    if (this.#left === 0) this.#finish(after)
    else {
      this.#afterPadding = after
      this.#state = 'padding'
    }
  }

  #finish(what: 'header' | 'meta done' | 'entry done'): void {
    this.#state = 'header'
    if (what === 'meta done') this.#metaDone()
    else if (what === 'entry done') this.#sink.endEntry()
  }
}

function kindOf(type: string, name: string): EntryKind | 'skipped' {
  switch (type) {
    case '0':
    case '\0':
      // v7 tar has no type for directories; a slash at the end says it.
      return name.endsWith('/') ? 'dir' : 'file'
    case '7':
    case 'S':
      return 'file'
    case '1':
      return 'link'
    case '2':
      return 'symlink'
    case '3':
      return 'char'
    case '4':
      return 'block'
    case '5':
      return 'dir'
    case '6':
      return 'fifo'
    case 'V': // a volume's label
      return 'skipped'
    default:
      throw invalidImage(`The entry ${printableName(name)} is of a type that is not known: ${JSON.stringify(type)}`)
  }
}

/** The prefix is a prefix only in POSIX headers: old GNU ones keep times and sparse maps there. */
function headerName(block: Buffer): string {
  const name = untilNul(block.subarray(0, 100))
  if (block.toString('latin1', 257, 263) !== 'ustar\0') return name
  const isStar = block.toString('latin1', 508, 512) === 'tar\0'
  const prefix = untilNul(block.subarray(345, isStar ? 476 : 500))
  return prefix === '' ? name : `${prefix}/${name}`
}

function untilNul(bytes: Buffer): string {
  const end = bytes.indexOf(0)
  return end < 0 ? bytes.toString('latin1') : bytes.toString('latin1', 0, end)
}

function withRegions(entry: TarEntry, regions: readonly SparseRegion[]): TarEntry {
  return { ...entry, sparse: checkRegions(regions, entry.size, entry.storedSize) }
}

const ZERO_BLOCK = Buffer.alloc(BLOCK)
const isZero = (block: Buffer): boolean => block[0] === 0 && block.equals(ZERO_BLOCK)

function checkChecksum(block: Buffer): void {
  let unsigned = 0
  let signed = 0
  for (let i = 0; i < BLOCK; i++) {
    // The sum is taken with the field itself as spaces.
    const byte = i >= 148 && i < 156 ? 0x20 : (block[i] as number)
    unsigned += byte
    signed += byte > 127 ? byte - 256 : byte
  }
  const expected = readNumber(block, 148, 8, 'checksum')
  // Some old writers summed signed bytes.
  if (expected !== unsigned && expected !== signed)
    throw invalidImage('A tar header has a wrong checksum: the archive is damaged, or is no tar')
}

function noEntry(): never {
  throw new Error('The tar reader lost its entry')
}
