/** A directory as a tar stream, in the order of names. For OCI layouts: plain files and directories, all else is passed over. */
import { createReadStream } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { tarEnd, tarHeader, tarPadding } from './tar.ts'

export async function* packTree(root: string): AsyncGenerator<Uint8Array> {
  for await (const entry of walk(root, '')) {
    if (entry.kind === 'directory') {
      yield tarHeader({ ...entry, path: `${entry.path}/`, size: 0, mode: 0o755 })
      continue
    }
    yield tarHeader({ ...entry, mode: 0o644 })
    let left = entry.size
    // A file that grows meanwhile must not run into the next header; one that shrinks cannot be mended.
    for await (const piece of createReadStream(join(root, entry.path), { end: Math.max(0, entry.size - 1) })) {
      if (left > 0) yield piece.subarray(0, left)
      left -= piece.length
    }
    if (left > 0) throw new Error(`${entry.path} became shorter while it was read`)
    yield tarPadding(entry.size)
  }
  yield tarEnd()
}

/** How long the stream of `packTree` will be, about. */
export async function packedSize(root: string): Promise<number> {
  let size = 1024
  for await (const entry of walk(root, '')) size += 512 + (entry.kind === 'file' ? entry.size + tarPadding(entry.size).length : 0)
  return size
}

interface Found {
  readonly path: string
  readonly kind: 'file' | 'directory'
  readonly size: number
  readonly mtimeSeconds: number
}

async function* walk(root: string, below: string): AsyncGenerator<Found> {
  const entries = await readdir(join(root, below), { withFileTypes: true })
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = below === '' ? entry.name : `${below}/${entry.name}`
    if (!entry.isFile() && !entry.isDirectory()) continue
    const { size, mtimeMs } = await stat(join(root, path))
    const kind = entry.isDirectory() ? 'directory' : 'file'
    yield { path, kind, size, mtimeSeconds: mtimeMs / 1000 }
    if (kind === 'directory') yield* walk(root, path)
  }
}
