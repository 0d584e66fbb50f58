/**
 * Files in the VMM's own directory. What lies there may have been put there by a VMM that was taken over: no name is followed, and what is
 * read is no one's but the VMM's user's.
 */
import { constants } from 'node:fs'
import { type FileHandle, mkdir, open, rm } from 'node:fs/promises'
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { OWN_DIR } from '../own-dir.ts'

/** A new directory of the VMM's below its own, held open; `path` leads to that one, whatever becomes of its name. */
export class OwnFiles implements AsyncDisposable {
  readonly #handle: FileHandle
  readonly #uid: number
  readonly #file: string

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
    await (await open(this.#pathOf(name), 'wx', 0o600)).close()
  }

  /** What the VMM has written there. */
  async read(name: string): Promise<string> {
    await using handle = await open(this.#pathOf(name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    const facts = await handle.stat()
    if (!facts.isFile() || facts.uid !== this.#uid || facts.size > MOST_BYTES) {
      throw new AppError('internal_error', `The VMM's ${name} is not a file that it would write`)
    }
    return await handle.readFile('utf8')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close()
    await rm(this.#file, { recursive: true, force: true })
  }

  #pathOf(name: string): string {
    return `/proc/self/fd/${this.#handle.fd}/${name}`
  }
}

const DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW
/** 70 KB with one processor; each adds some 40. */
const MOST_BYTES = 16 << 20

async function using<T>(handle: FileHandle, work: (handle: FileHandle) => Promise<T>): Promise<T> {
  await using _handle = handle
  return await work(handle)
}
