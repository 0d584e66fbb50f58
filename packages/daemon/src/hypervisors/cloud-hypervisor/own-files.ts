/**
 * Files in the VMM's own directory. What lies there may have been put there by a VMM that was taken over: no name is followed, and what is
 * read is no one's but the VMM's user's.
 */
import { constants } from 'node:fs'
import { type FileHandle, mkdir, open, rmdir, unlink } from 'node:fs/promises'
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { OWN_DIR } from '../own-dir.ts'

/** A new directory of the VMM's below its own, held open; `path` leads to that one, whatever becomes of its name. */
export class OwnFiles implements AsyncDisposable {
  readonly #handle: FileHandle
  readonly #uid: number
  readonly #file: string
  readonly #names = new Set<string>()

  private constructor(handle: FileHandle, uid: number, file: string) {
    this.#handle = handle
    this.#uid = uid
    this.#file = file
  }

  static async make(runDir: string, name: string): Promise<OwnFiles> {
    const file = path.join(runDir, OWN_DIR, name)
    const { uid, gid } = await using(await open(path.dirname(file), DIRECTORY), (own) => own.stat())
    await mkdir(file, { mode: 0o700 })
    const handle = await open(file, DIRECTORY)
    try {
      await handle.chown(uid, gid)
    } catch (error) {
      await handle.close()
      throw error
    }
    return new OwnFiles(handle, uid, file)
  }

  /** An empty file under that name; what it is written into is the caller's. */
  async create(name: string): Promise<void> {
    this.#names.add(name)
    await (await open(this.#pathOf(name), 'wx', 0o600)).close()
  }

  /** What the VMM has written there, which is no more than `mostBytes`: whatever is made of it, the daemon does nothing else meanwhile. */
  async read(name: string, mostBytes: number): Promise<string> {
    this.#names.add(name)
    await using handle = await open(this.#pathOf(name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    const facts = await handle.stat()
    // It may grow while it is read.
    const bytes = Buffer.alloc(Math.min(facts.size, mostBytes) + 1)
    let length = 0
    for (let read = -1; read !== 0 && length < bytes.length; length += read)
      ({ bytesRead: read } = await handle.read(bytes, length, bytes.length - length))
    if (!facts.isFile() || facts.uid !== this.#uid || length === bytes.length) {
      throw new AppError('internal_error', `The VMM's ${name} is not a file that it would write`)
    }
    return bytes.toString('utf8', 0, length)
  }

  /** Removes what was asked for by name, in that directory alone. What else a VMM has put there goes with all that is its own. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const name of this.#names) await unlink(this.#pathOf(name)).catch(() => undefined)
    await this.#handle.close()
    await rmdir(this.#file).catch(() => undefined)
  }

  #pathOf(name: string): string {
    return `/proc/self/fd/${this.#handle.fd}/${name}`
  }
}

const DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW

async function using<T>(handle: FileHandle, work: (handle: FileHandle) => Promise<T>): Promise<T> {
  await using _handle = handle
  return await work(handle)
}
