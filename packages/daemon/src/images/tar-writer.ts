/** Tar headers as tar2sqfs likes them: ustar, with one PAX record for each thing that ustar cannot hold. */
import { BLOCK, type EntryKind, paddingOf, type SparseRegion, type TarEntry } from './tar-entry.ts'

const TYPES: Readonly<Record<EntryKind, string>> = { file: '0', link: '1', symlink: '2', char: '3', block: '4', dir: '5', fifo: '6' }
const MAX_OCTAL_7 = 0o7777777
const MAX_OCTAL_11 = 0o77777777777
const ZEROS = Buffer.alloc(BLOCK)

/** Two blocks of zeros: the end of an archive. */
export const TAR_END: Buffer = Buffer.alloc(2 * BLOCK)

/** What fills content of `size` up to the block. */
export const padding = (size: number): Buffer => ZEROS.subarray(0, paddingOf(size))

/**
 * The header of an entry, and its extended header where it needs one. A sparse file's map (GNU format 1.0) is part of it: what
 * follows is the stored content alone, padded to `contentSizeOf`. Most headers are one block: it is written into `into`, and is no
 * longer true once the next one is.
 */
export function encodeHeader(entry: TarEntry, into: Buffer = Buffer.alloc(BLOCK)): Buffer {
  const records: Buffer[] = []
  const record = (key: string, value: string | Buffer): void => {
    records.push(paxRecord(key, typeof value === 'string' ? Buffer.from(value, 'latin1') : value))
  }
  const name = entry.kind === 'dir' ? `${entry.name}/` : entry.name
  const map = entry.sparse && encodeMap(entry.sparse)
  const size = contentSizeOf(entry)
  if (entry.sparse) {
    record('GNU.sparse.major', '1')
    record('GNU.sparse.minor', '0')
    record('GNU.sparse.name', name)
    record('GNU.sparse.realsize', String(entry.size))
  } else if (name.length > 100) record('path', name)
  if (entry.linkName.length > 100) record('linkpath', entry.linkName)
  if (size > MAX_OCTAL_11) record('size', String(size))
  if (entry.uid > MAX_OCTAL_7) record('uid', String(entry.uid))
  if (entry.gid > MAX_OCTAL_7) record('gid', String(entry.gid))
  if (entry.mtime < 0 || entry.mtime > MAX_OCTAL_11) record('mtime', String(entry.mtime))
  for (const [key, value] of entry.xattrs) record(`SCHILY.xattr.${key}`, value)

  const main = block({ ...entry, name: name.slice(0, 100), size, type: TYPES[entry.kind] }, into)
  if (records.length === 0) return map ? Buffer.concat([main, map]) : main
  const body = Buffer.concat(records)
  const extended = block(
    { ...entry, name: 'pax', linkName: '', size: body.length, type: 'x', mtime: 0, devMajor: 0, devMinor: 0 },
    Buffer.alloc(BLOCK),
  )
  return Buffer.concat([extended, body, padding(body.length), main, ...(map ? [map] : [])])
}

/** What the header says of the size: the stored content, and for a sparse file its map. */
export function contentSizeOf(entry: TarEntry): number {
  if (entry.kind !== 'file') return 0
  return entry.sparse ? entry.storedSize + encodeMap(entry.sparse).length : entry.storedSize
}

interface HeaderFields extends Pick<TarEntry, 'name' | 'mode' | 'uid' | 'gid' | 'size' | 'mtime' | 'linkName' | 'devMajor' | 'devMinor'> {
  readonly type: string
}

function block(fields: HeaderFields, header: Buffer): Buffer {
  header.fill(0)
  const octal = (value: number, offset: number, digits: number): void => {
    const fits = value >= 0 && value < 8 ** digits ? value : 0
    header.write(fits.toString(8).padStart(digits, '0'), offset, digits, 'latin1')
  }
  header.write(fields.name, 0, 100, 'latin1')
  octal(fields.mode, 100, 7)
  octal(fields.uid, 108, 7)
  octal(fields.gid, 116, 7)
  octal(fields.size, 124, 11)
  octal(fields.mtime, 136, 11)
  header.fill(0x20, 148, 156)
  header.write(fields.type, 156, 1, 'latin1')
  header.write(fields.linkName, 157, 100, 'latin1')
  header.write('ustar\0' + '00', 257, 8, 'latin1')
  octal(fields.devMajor, 329, 7)
  octal(fields.devMinor, 337, 7)
  let sum = 0
  for (let i = 0; i < BLOCK; i++) sum += header[i] as number
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 8, 'latin1')
  return header
}

/** `<length> <key>=<value>\n`, where the length counts its own digits. */
function paxRecord(key: string, value: Buffer): Buffer {
  const rest = 1 + key.length + 1 + value.length + 1
  let length = rest + String(rest).length
  if (rest + String(length).length !== length) length = rest + String(length).length
  return Buffer.concat([Buffer.from(`${length} ${key}=`, 'latin1'), value, Buffer.from('\n')])
}

function encodeMap(regions: readonly SparseRegion[]): Buffer {
  const numbers = [regions.length, ...regions.flatMap(({ offset, length }) => [offset, length])]
  const text = Buffer.from(numbers.map((number) => `${number}\n`).join(''))
  return Buffer.concat([text, padding(text.length)])
}
