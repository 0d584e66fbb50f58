/**
 * What we write and read of the format ourselves: an empty layer, which is three small tables, and the head of one. `qemu-img create`
 * would make the same and take 20 ms to start. Every number is big-endian; the names are those of QEMU's docs/interop/qcow2.txt.
 */
import type { FileHandle } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'

const MAGIC = 0x514649fb
const CLUSTER_BITS = 16
const CLUSTER = 1 << CLUSTER_BITS
const HEADER_LENGTH = 112
/** One cluster of mappings (an L2 table) is for as much of the disk. */
const BYTES_PER_L1_ENTRY = (CLUSTER / 8) * CLUSTER
// Clusters in their order: header, refcount table, refcount block, L1 table.
const REFCOUNT_TABLE = CLUSTER
const REFCOUNT_BLOCK = 2 * CLUSTER
const L1_TABLE = 3 * CLUSTER
const REFCOUNT_BYTES = 2

/**
 * Makes an empty file a layer of a disk of `bytes`, in which nothing has been written. It names no backing file: what lies below a
 * layer is said by the row of who uses it, and never by the layer itself, which its guest's VMM writes.
 */
export async function writeEmptyQcow2(file: FileHandle, bytes: number): Promise<void> {
  const l1Entries = Math.ceil(bytes / BYTES_PER_L1_ENTRY)
  const l1Clusters = Math.ceil((l1Entries * 8) / CLUSTER)
  // Its end is an empty list of extensions.
  const header = Buffer.alloc(HEADER_LENGTH + 8)
  header.writeUInt32BE(MAGIC, 0)
  header.writeUInt32BE(3, 4)
  header.writeUInt32BE(CLUSTER_BITS, 20)
  header.writeBigUInt64BE(BigInt(bytes), 24)
  header.writeUInt32BE(l1Entries, 36)
  header.writeBigUInt64BE(BigInt(L1_TABLE), 40)
  header.writeBigUInt64BE(BigInt(REFCOUNT_TABLE), 48)
  header.writeUInt32BE(1, 56)
  header.writeUInt32BE(Math.log2(REFCOUNT_BYTES * 8), 96)
  header.writeUInt32BE(HEADER_LENGTH, 100)
  const refcountTable = Buffer.alloc(8)
  refcountTable.writeBigUInt64BE(BigInt(REFCOUNT_BLOCK))
  const refcounts = Buffer.alloc((3 + l1Clusters) * REFCOUNT_BYTES)
  for (let at = 0; at < refcounts.length; at += REFCOUNT_BYTES) refcounts.writeUInt16BE(1, at)
  await file.truncate(L1_TABLE + l1Entries * 8)
  await Promise.all([
    file.write(header, 0, header.length, 0),
    file.write(refcountTable, 0, refcountTable.length, REFCOUNT_TABLE),
    file.write(refcounts, 0, refcounts.length, REFCOUNT_BLOCK),
  ])
}

/**
 * How large the disk is that a layer is of. Throws when its head is not as we wrote it: a VMM that was taken over by its guest can write
 * what it likes there, and a name of another file (a backing file, a data file) would be opened by whoever reads the layer next.
 */
export async function readQcow2Size(file: FileHandle): Promise<number> {
  const head = Buffer.alloc(HEADER_LENGTH)
  const { bytesRead } = await file.read(head, 0, head.length, 0)
  const isOurs =
    bytesRead === head.length &&
    head.readUInt32BE(0) === MAGIC &&
    head.readUInt32BE(4) === 3 &&
    // The length of the backing file's name; its encryption; any feature that changes how it is to be read, data files among them.
    head.readUInt32BE(16) === 0 &&
    head.readUInt32BE(32) === 0 &&
    head.readBigUInt64BE(72) === 0n
  const bytes = isOurs ? head.readBigUInt64BE(24) : 0n
  if (isOurs && bytes <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(bytes)
  throw new AppError('internal_error', 'A layer of the disk is damaged: its head is not as it was made', {
    hint: 'The VM that wrote to it may have been taken over by its guest. Go back to a snapshot, or delete the instance',
  })
}
