import { lstat, readdir } from 'node:fs/promises'
import { join } from 'node:path'

/** What files take of the disk: blocks, so that holes do not count, and each file once, under however many names it is met. */
export class DiskBlocks {
  readonly #met = new Set<string>()

  /** Of a file, or of all that is in a directory; nothing when it is not there. `sharedBytes`: of files that have other names, too. */
  async of(path: string): Promise<{ readonly bytes: number; readonly sharedBytes: number }> {
    const facts = await lstat(path).catch(() => undefined)
    if (facts === undefined) return NOTHING
    if (!facts.isDirectory()) {
      const file = `${facts.dev}:${facts.ino}`
      if (this.#met.has(file)) return NOTHING
      this.#met.add(file)
      const bytes = facts.blocks * 512
      return { bytes, sharedBytes: facts.nlink > 1 ? bytes : 0 }
    }
    let [bytes, sharedBytes] = [facts.blocks * 512, 0]
    for (const name of await namesIn(path)) {
      const inside = await this.of(join(path, name))
      bytes += inside.bytes
      sharedBytes += inside.sharedBytes
    }
    return { bytes, sharedBytes }
  }
}

const NOTHING = { bytes: 0, sharedBytes: 0 } as const

/** Names in a directory; none when it is not there. */
export async function namesIn(dir: string): Promise<string[]> {
  try {
    return await readdir(dir)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') return []
    throw error
  }
}

/** When the newest of a file, or of a directory and what lies in it, was last changed; undefined when it is not there. */
export async function changedAtMs(path: string): Promise<number | undefined> {
  const facts = await lstat(path).catch(() => undefined)
  if (facts === undefined) return undefined
  let newest = Math.max(facts.mtimeMs, facts.ctimeMs)
  if (facts.isDirectory()) for (const name of await namesIn(path)) newest = Math.max(newest, (await changedAtMs(join(path, name))) ?? 0)
  return newest
}
