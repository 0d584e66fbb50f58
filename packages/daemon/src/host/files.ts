import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { copyFile, type FileHandle, open, rename, rm } from 'node:fs/promises'
import path from 'node:path'

/**
 * Writes a file so that a reader, or the next boot after a power cut, sees the old content or the new and never a part: draft
 * beside it, flush, rename, flush the directory.
 */
export async function writeFileAtomically(file: string, content: string | Uint8Array, options: { mode?: number } = {}): Promise<void> {
  const draft = `${file}.${randomBytes(6).toString('hex')}.draft`
  try {
    await using handle = await open(draft, 'wx', options.mode ?? 0o600)
    await handle.writeFile(content)
    await handle.sync()
    await rename(draft, file)
  } catch (error) {
    await rm(draft, { force: true })
    throw error
  }
  await syncDirectory(path.dirname(file))
}

/** Flushes the names in a directory: without it a rename may be undone by a power cut. */
export async function syncDirectory(dir: string): Promise<void> {
  await using handle = await open(dir, 'r')
  await handle.sync()
}

/**
 * Makes a finished draft directory visible under its name in one step. Its files must have been flushed before. An older
 * directory of that name makes this fail (ENOTEMPTY or EEXIST): who publishes decides what becomes of the old one.
 */
export async function publishDirectory(draft: string, target: string): Promise<void> {
  await syncDirectory(draft)
  await rename(draft, target)
  await syncDirectory(path.dirname(target))
}

/** Flushes a file that someone else wrote. */
export async function syncFile(file: string): Promise<void> {
  await using handle = await open(file, 'r')
  await handle.sync()
}

/** How a clone came about: `reflink` shares the blocks, `copied` wrote the non-zero ones. */
export type CloneKind = 'reflink' | 'copied'

/**
 * A copy of `source` that costs nothing where the file system can share blocks, and only the bytes that are not zero elsewhere.
 * `target` must not exist. Does not flush.
 */
export async function cloneFile(source: string, target: string, signal?: AbortSignal): Promise<CloneKind> {
  try {
    await copyFile(source, target, constants.COPYFILE_FICLONE_FORCE | constants.COPYFILE_EXCL)
    return 'reflink'
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? ''
    if (code === 'EEXIST' || code === 'ENOENT' || code === 'EACCES') throw error
  }
  await copySparsely(source, target, signal)
  return 'copied'
}

const CHUNK = 1 << 20
const BLOCK = 4096
const zeros = Buffer.alloc(BLOCK)

/** Node has no SEEK_HOLE, so holes are read; blocks of zeros are not written. A cut-short copy is removed. */
async function copySparsely(source: string, target: string, signal?: AbortSignal): Promise<void> {
  await using from = await open(source, 'r')
  const { size, mode } = await from.stat()
  try {
    await using to = await open(target, 'wx', mode & 0o777)
    const buffer = Buffer.alloc(CHUNK)
    for (let at = 0; ; ) {
      signal?.throwIfAborted()
      const { bytesRead } = await from.read(buffer, 0, CHUNK, at)
      if (bytesRead === 0) break
      await writeNonZero(to, buffer.subarray(0, bytesRead), at)
      at += bytesRead
    }
    await to.truncate(size)
  } catch (error) {
    await rm(target, { force: true })
    throw error
  }
}

async function writeNonZero(to: FileHandle, data: Buffer, at: number): Promise<void> {
  const isZero = (from: number): boolean => {
    const block = data.subarray(from, from + BLOCK)
    return block.equals(block.length === BLOCK ? zeros : zeros.subarray(0, block.length))
  }
  for (let from = 0; from < data.length; ) {
    if (isZero(from)) {
      from += BLOCK
      continue
    }
    let end = from + BLOCK
    while (end < data.length && !isZero(end)) end += BLOCK
    end = Math.min(end, data.length)
    await to.write(data, from, end - from, at + from)
    from = end
  }
}
