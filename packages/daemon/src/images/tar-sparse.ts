/**
 * The sparse formats of GNU tar: the old one in the header itself (type `S`), and PAX 0.0 (pairs of records), 0.1 (one record) and
 * 1.0 (a map before the data). Source: GNU tar manual, "Storing Sparse Files".
 */
import type { PaxRecords } from './pax.ts'
import { BLOCK, invalidImage, type SparseRegion } from './tar-entry.ts'
import { parseCount, readCount } from './tar-numbers.ts'

// 1 MiB of map in format 1.0; more than any file system's worth of holes in a file that is part of an image.
const MAX_SPARSE_REGIONS = 65_536

/** The regions of an old GNU header or of one of its extension blocks, appended to `into`. True when another extension follows. */
export function readOldGnuRegions(block: Buffer, kind: 'header' | 'extension', into: SparseRegion[]): boolean {
  const start = kind === 'header' ? 386 : 0
  const slots = kind === 'header' ? 4 : 21
  for (let slot = 0; slot < slots; slot++) {
    const at = start + slot * 24
    if (block[at] === 0) break
    into.push({ offset: readCount(block, at, 12, 'sparse offset'), length: readCount(block, at + 12, 12, 'sparse length') })
  }
  if (into.length > MAX_SPARSE_REGIONS) throw invalidImage(`A sparse file has more than ${MAX_SPARSE_REGIONS} regions`)
  return block[start + slots * 24] !== 0
}

/** Regions of formats 0.0 and 0.1; undefined when the records describe none. */
export function sparseOfRecords(pax: PaxRecords): SparseRegion[] | undefined {
  if (pax.sparsePairs.length > 0) return pax.sparsePairs
  const map = pax.fields.get('GNU.sparse.map')
  if (map === undefined) return pax.fields.has('GNU.sparse.numblocks') ? [] : undefined
  const numbers = map.split(',')
  if (numbers.length % 2 !== 0) throw invalidImage('A sparse file has a map of odd length')
  const regions: SparseRegion[] = []
  for (let i = 0; i < numbers.length; i += 2) {
    regions.push({ offset: parseCount(numbers[i] ?? '', 'sparse offset'), length: parseCount(numbers[i + 1] ?? '', 'sparse length') })
  }
  return regions
}

/** Reads the map of format 1.0, which comes in whole blocks before the data. */
export class SparseMapReader {
  readonly regions: SparseRegion[] = []
  /** Bytes taken, always whole blocks. */
  taken = 0
  #text = ''
  #count: number | undefined
  #offset: number | undefined

  /** True when the map is whole. */
  take(block: Buffer): boolean {
    this.taken += BLOCK
    this.#text += block.toString('latin1')
    let start = 0
    for (let end = this.#text.indexOf('\n', start); end >= 0; end = this.#text.indexOf('\n', start)) {
      this.#number(parseCount(this.#text.slice(start, end), 'sparse map'))
      start = end + 1
      // What follows in this block is padding.
      if (this.regions.length === this.#count) return true
    }
    this.#text = this.#text.slice(start)
    if (this.#text.length > 32) throw invalidImage('A sparse file has a map that is no list of numbers')
    return false
  }

  #number(value: number): void {
    if (this.#count === undefined) {
      if (value > MAX_SPARSE_REGIONS) throw invalidImage(`A sparse file has more than ${MAX_SPARSE_REGIONS} regions`)
      this.#count = value
    } else if (this.#offset === undefined) {
      this.#offset = value
    } else {
      this.regions.push({ offset: this.#offset, length: value })
      this.#offset = undefined
    }
  }
}

/** Throws unless the regions are in order, apart from each other, within `size`, and as long as what is stored. */
export function checkRegions(regions: readonly SparseRegion[], size: number, storedSize: number): SparseRegion[] {
  let end = 0
  let stored = 0
  for (const { offset, length } of regions) {
    if (offset < end || offset + length > size) throw invalidImage('A sparse file has regions that overlap or lie outside of it')
    end = offset + length
    stored += length
  }
  if (stored !== storedSize) throw invalidImage(`A sparse file has ${storedSize} bytes in the archive, but its map says ${stored}`)
  // GNU tar marks the end with an empty region.
  return regions.filter(({ length }) => length > 0)
}
