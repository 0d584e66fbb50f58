/**
 * Writes what a guest sends below one path of this host, and nowhere else.
 *
 * - Every parent of an entry was seen in this copy to be a real directory, never a link.
 * - A file is written under a name of ours and renamed when whole: a link in its place is replaced, not followed.
 * - Links come last, when nothing is written any more; those that lead out of the copy are left out unless asked for.
 * - Set-id bits are dropped, and owners are ours unless asked for.
 */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { chmod, type FileHandle, lchown, lstat, mkdir, open, rename, rm, symlink, utimes } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import type { CopyHeader } from '@dormouse/api/streams.ts'
import { Failure } from '../failure.ts'
import { staysInside } from './entry-path.ts'

export interface TreeOptions {
  /** Keep owner and group; needs root. */
  readonly keepOwner?: boolean
  /** Keep links that lead out of the copy too. */
  readonly keepEveryLink?: boolean
}

export class TreeWriter implements AsyncDisposable {
  readonly #root: string
  readonly #options: TreeOptions
  readonly #directories = new Set<string>()
  readonly #made: { path: string; header: CopyHeader }[] = []
  readonly #links: { path: string; depth: number; header: CopyHeader }[] = []
  #file: { handle: FileHandle; partial: string; path: string; header: CopyHeader } | undefined
  files = 0
  bytes = 0
  /** Links that were left out, as `path -> target`. */
  readonly skipped: string[] = []

  /** `root` is where the copy's first entry comes to lie; its parent exists and is the caller's choice. */
  constructor(root: string, options: TreeOptions = {}) {
    this.#root = root
    this.#options = options
    this.#directories.add(dirname(root))
  }

  /** Begins an entry; `below` are its segments below the copy's root, none for the root itself. */
  async begin(below: readonly string[], header: CopyHeader): Promise<void> {
    const path = join(this.#root, ...below)
    if (!this.#directories.has(dirname(path))) {
      throw new Failure(`The guest sent ${JSON.stringify(header.path)} before its directory`, { code: 'invalid_path' })
    }
    if (header.is_symlink) this.#links.push({ path, depth: below.length - 1, header })
    else if (header.is_dir) await this.#makeDirectory(path, header)
    else await this.#openFile(path, header)
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (this.#file === undefined) throw new Failure('The guest sent bytes that belong to no file', { code: 'invalid_path' })
    await this.#file.handle.writeFile(bytes)
    this.bytes += bytes.length
  }

  /** Ends the entry that was begun last. */
  async end(): Promise<void> {
    if (this.#file === undefined) return
    const { handle, partial, path, header } = this.#file
    await handle.chmod(header.mode & 0o777)
    await handle.utimes(timeOf(header), timeOf(header))
    await handle.close()
    if (this.#options.keepOwner) await lchown(partial, header.uid ?? 0, header.gid ?? 0)
    await rename(partial, path)
    this.#file = undefined
    this.files++
  }

  /** Links and directory modes, once every file is there: a read-only directory takes no files. */
  async finish(): Promise<void> {
    for (const { path, depth, header } of this.#links) {
      const target = header.link_target ?? ''
      if (!this.#options.keepEveryLink && !staysInside(target, depth)) {
        this.skipped.push(`${header.path} -> ${target}`)
        continue
      }
      if (this.#directories.has(path))
        throw new Failure(`The guest sent ${JSON.stringify(header.path)} as a directory and as a link`, { code: 'invalid_path' })
      await rm(path, { force: true })
      await symlink(target, path)
      if (this.#options.keepOwner) await lchown(path, header.uid ?? 0, header.gid ?? 0)
    }
    for (const { path, header } of this.#made.reverse()) {
      if (this.#options.keepOwner) await lchown(path, header.uid ?? 0, header.gid ?? 0)
      await chmod(path, header.mode & 0o777)
      await utimes(path, timeOf(header), timeOf(header))
    }
  }

  /** Takes away a file that was not finished. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#file === undefined) return
    await this.#file.handle.close()
    await rm(this.#file.partial, { force: true })
    this.#file = undefined
  }

  async #makeDirectory(path: string, header: CopyHeader): Promise<void> {
    const found = await lstat(path).catch(absent)
    if (found === undefined) {
      await mkdir(path, 0o700)
      this.#made.push({ path, header })
    } else if (!found.isDirectory()) {
      const what = found.isSymbolicLink() ? 'a link' : 'a file'
      throw new Failure(`${path} is ${what} here and a directory in the guest`, { hint: 'Move it away, or copy to another place' })
    }
    this.#directories.add(path)
  }

  async #openFile(path: string, header: CopyHeader): Promise<void> {
    const found = await lstat(path).catch(absent)
    if (found?.isDirectory())
      throw new Failure(`${path} is a directory here and a file in the guest`, { hint: 'Move it away, or copy to another place' })
    const partial = join(dirname(path), `.${basename(path).slice(0, 100)}.${randomBytes(6).toString('hex')}.partial`)
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
    this.#file = { handle: await open(partial, flags, 0o600), partial, path, header }
  }
}

const absent = (error: NodeJS.ErrnoException): undefined => {
  if (error.code !== 'ENOENT') throw error
}

// The guest chooses it; what the filesystem cannot hold is cut.
const timeOf = (header: CopyHeader): number => Math.min(Math.max(0, Number.isFinite(header.mtime) ? header.mtime : 0), 0xffff_ffff)
