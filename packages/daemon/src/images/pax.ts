import { invalidImage, type SparseRegion } from './tar-entry.ts'
import { parseCount } from './tar-numbers.ts'

/** What a PAX extended header says about the entry that follows. Only what is used is kept. */
export interface PaxRecords {
  /** Latest value of each plain record, as latin1. */
  readonly fields: Map<string, string>
  readonly xattrs: Map<string, Buffer>
  /** GNU sparse format 0.0 writes one pair of records for each region. */
  readonly sparsePairs: SparseRegion[]
}

const XATTR = 'SCHILY.xattr.'
const FIELDS = new Set(['path', 'linkpath', 'size', 'uid', 'gid', 'mtime'])
const GNU_SPARSE = 'GNU.sparse.'
const MAX_XATTRS = 1024

/**
 * Reads `<length> <key>=<value>\n` records. Everything is bytes: a value may hold newlines, NULs and what is not UTF-8
 * (security.capability does). Source: POSIX pax, "pax Extended Header".
 */
export function readPax(data: Buffer): PaxRecords {
  const records: PaxRecords = { fields: new Map(), xattrs: new Map(), sparsePairs: [] }
  let pairOffset: number | undefined
  for (let at = 0; at < data.length; ) {
    // Some writers fill the rest with NULs.
    if (data[at] === 0) {
      if (data.subarray(at).some((byte) => byte !== 0)) throw invalidImage('A PAX record has no length')
      break
    }
    const space = data.indexOf(0x20, at)
    const digits = space < 0 || space - at > 9 ? '' : data.toString('latin1', at, space)
    if (!/^\d+$/.test(digits)) throw invalidImage('A PAX record has no length')
    const end = at + Number(digits)
    const equals = data.indexOf(0x3d, space + 1)
    if (end > data.length || end <= space + 1 || data[end - 1] !== 0x0a) throw invalidImage('A PAX record has a wrong length')
    if (equals < 0 || equals >= end) throw invalidImage('A PAX record has no value')
    const key = data.toString('latin1', space + 1, equals)
    const value = data.subarray(equals + 1, end - 1)
    at = end

    if (key.startsWith(XATTR)) {
      const name = key.slice(XATTR.length)
      if (name === '' || name.includes('\0')) throw invalidImage('A PAX record has an attribute without a name')
      if (name.length > 255) throw invalidImage('A PAX record has an attribute with a name beyond 255 bytes')
      records.xattrs.set(name, Buffer.from(value))
      if (records.xattrs.size > MAX_XATTRS) throw invalidImage(`A file has more than ${MAX_XATTRS} extended attributes`)
    } else if (key === 'GNU.sparse.offset') {
      pairOffset = parseCount(value.toString('latin1'), key)
    } else if (key === 'GNU.sparse.numbytes') {
      if (pairOffset === undefined) throw invalidImage('A sparse file has a region without an offset')
      records.sparsePairs.push({ offset: pairOffset, length: parseCount(value.toString('latin1'), key) })
      pairOffset = undefined
    } else if (FIELDS.has(key) || key.startsWith(GNU_SPARSE)) {
      // An empty value takes the record back.
      if (value.length === 0) records.fields.delete(key)
      else records.fields.set(key, value.toString('latin1'))
    }
  }
  return records
}
