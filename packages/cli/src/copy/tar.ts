/** Tar headers, written: ustar, with a PAX record before an entry whose name, link target or size does not fit. */

const BLOCK = 512
const OCTAL_SIZE_MAX = 0o77777777777

export interface TarEntry {
  /** Relative; a directory's ends in a slash. */
  readonly path: string
  readonly kind: 'file' | 'directory' | 'link'
  readonly mode: number
  readonly size: number
  readonly mtimeSeconds: number
  readonly linkTarget?: string
  readonly uid?: number
  readonly gid?: number
}

const TYPE = { file: '0', link: '2', directory: '5', pax: 'x' } as const

/** The header of one entry; its content follows, then `tarPadding`. */
export function tarHeader(entry: TarEntry): Buffer {
  const records: string[] = []
  if (!fits(entry.path, 100)) records.push(paxRecord('path', entry.path))
  if (entry.linkTarget !== undefined && !fits(entry.linkTarget, 100)) records.push(paxRecord('linkpath', entry.linkTarget))
  if (entry.size > OCTAL_SIZE_MAX) records.push(paxRecord('size', String(entry.size)))
  const own = block(entry, TYPE[entry.kind])
  if (records.length === 0) return own
  const pax = Buffer.from(records.join(''))
  const before = block({ ...entry, path: 'PaxHeader', size: pax.length, linkTarget: '', mode: 0o644 }, TYPE.pax)
  return Buffer.concat([before, pax, tarPadding(pax.length), own])
}

/** Zeros up to the next block. */
export const tarPadding = (size: number): Buffer => Buffer.alloc((BLOCK - (size % BLOCK)) % BLOCK)

export const tarEnd = (): Buffer => Buffer.alloc(2 * BLOCK)

const fits = (text: string, bytes: number): boolean => Buffer.byteLength(text) <= bytes

function block(entry: TarEntry, type: string): Buffer {
  const header = Buffer.alloc(BLOCK)
  Buffer.from(entry.path).copy(header, 0, 0, 100)
  octal(header, entry.mode & 0o7777, 100, 8)
  octal(header, smallId(entry.uid), 108, 8)
  octal(header, smallId(entry.gid), 116, 8)
  octal(header, entry.kind === 'file' || type === TYPE.pax ? Math.min(entry.size, OCTAL_SIZE_MAX) : 0, 124, 12)
  octal(header, Math.max(0, Math.floor(entry.mtimeSeconds)), 136, 12)
  header.write('        ', 148)
  header.write(type, 156)
  Buffer.from(entry.linkTarget ?? '').copy(header, 157, 0, 100)
  header.write('ustar\u000000', 257)
  let sum = 0
  for (const byte of header) sum += byte
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return header
}

// Seven octal digits; a larger id is someone of a user namespace, who means nothing elsewhere.
const smallId = (id: number | undefined): number => (id !== undefined && id <= 0o7777777 ? id : 0)

const octal = (header: Buffer, value: number, at: number, length: number): void =>
  void header.write(`${value.toString(8).padStart(length - 1, '0')}\0`, at)

/** `LENGTH key=value\n`, where the length counts itself. */
function paxRecord(key: string, value: string): string {
  const rest = Buffer.byteLength(` ${key}=${value}\n`)
  let length = rest + String(rest).length
  if (String(length).length > String(rest).length) length = rest + String(length).length
  return `${length} ${key}=${value}\n`
}
