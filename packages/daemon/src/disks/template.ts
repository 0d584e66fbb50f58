/**
 * A filesystem that was just made, as the few blocks of it that are not zero:
 *
 *     "DMT1" · size u64 · count u32 · count × (offset u64, length u32) · the blocks one after another      (little-endian)
 */
import { type FileHandle, open } from 'node:fs/promises'
import { runCommand } from '../host/run-command.ts'
import type { Step } from '../lib/step.ts'

export interface Template {
  readonly bytes: number
  readonly extents: readonly { readonly offset: number; readonly data: Uint8Array }[]
}

const MAGIC = 'DMT1'
const HEADER = 16
const ENTRY = 12
const BLOCK = 4096
const ZEROS = Buffer.alloc(BLOCK)

/** Writes the template's blocks into an empty file that has its size already. */
export async function applyTemplate(template: Template, file: FileHandle): Promise<void> {
  await Promise.all(template.extents.map(({ offset, data }) => file.write(data, 0, data.length, offset)))
}

/** The packed form of the filesystem in `path`. Only what is written on is read: the holes of a large file cost nothing. */
export async function packTemplate(path: string, bytes: number, step: Step): Promise<Buffer> {
  // Node has no SEEK_DATA; qemu-img tells where the data is.
  const { stdout } = await runCommand(['qemu-img', 'map', '--output=json', '-f', 'raw', path], { step, maxOutputBytes: 8 << 20 })
  const segments = (JSON.parse(stdout) as { start: number; length: number; data: boolean }[]).filter(({ data }) => data)
  const extents: { offset: number; data: Buffer }[] = []
  await using file = await open(path, 'r')
  for (const { start, length } of segments) {
    const segment = Buffer.alloc(length)
    await file.read(segment, 0, length, start)
    extents.push(...nonZeroRuns(segment, start))
  }
  const table = Buffer.alloc(HEADER + extents.length * ENTRY)
  table.write(MAGIC, 'latin1')
  table.writeBigUInt64LE(BigInt(bytes), 4)
  table.writeUInt32LE(extents.length, 12)
  extents.forEach(({ offset, data }, index) => {
    table.writeBigUInt64LE(BigInt(offset), HEADER + index * ENTRY)
    table.writeUInt32LE(data.length, HEADER + index * ENTRY + 8)
  })
  return Buffer.concat([table, ...extents.map(({ data }) => data)])
}

/** Throws when the text is no template for disks of `bytes`. */
export function readTemplate(packed: Buffer, bytes: number): Template {
  if (packed.length < HEADER || packed.toString('latin1', 0, 4) !== MAGIC || packed.readBigUInt64LE(4) !== BigInt(bytes)) {
    throw new Error('It is no template of that size')
  }
  const count = packed.readUInt32LE(12)
  let at = HEADER + count * ENTRY
  const extents = Array.from({ length: count }, (_, index) => {
    const offset = Number(packed.readBigUInt64LE(HEADER + index * ENTRY))
    const length = packed.readUInt32LE(HEADER + index * ENTRY + 8)
    const data = packed.subarray(at, at + length)
    at += length
    if (data.length !== length) throw new Error('It is cut short')
    return { offset, data }
  })
  return { bytes, extents }
}

function nonZeroRuns(segment: Buffer, start: number): { offset: number; data: Buffer }[] {
  const runs: { offset: number; data: Buffer }[] = []
  for (let from = 0; from < segment.length; ) {
    if (isZero(segment, from)) {
      from += BLOCK
      continue
    }
    let to = from + BLOCK
    while (to < segment.length && !isZero(segment, to)) to += BLOCK
    runs.push({ offset: start + from, data: segment.subarray(from, Math.min(to, segment.length)) })
    from = to
  }
  return runs
}

function isZero(segment: Buffer, from: number): boolean {
  const block = segment.subarray(from, from + BLOCK)
  return block.equals(block.length === BLOCK ? ZEROS : ZEROS.subarray(0, block.length))
}
