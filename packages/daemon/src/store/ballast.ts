/**
 * Room that is kept for a full disk. SQLite writes before it frees: without a few blocks it cannot even record that an instance is
 * stopped or deleted, which is what would make room again. So a file holds some, and gives them up piece by piece to what must be
 * written down. Guests write to the same disk and may take what is given up: then the next piece follows.
 */
import { closeSync, fstatSync, ftruncateSync, openSync } from 'node:fs'
import { open, statfs } from 'node:fs/promises'
import { runCommand } from '../host/run-command.ts'
import type { Logger } from '../log.ts'

export interface BallastUses {
  readonly path: string
  readonly log: Logger
}

const WHOLE_BYTES = 8 * 2 ** 20
// Some hundred pages of the database: more than one change needs, though guests take some of it.
const PIECE_BYTES = 512 * 1024
const TEND_EVERY_MS = 5000

export class Ballast {
  readonly #path: string
  readonly #log: Logger
  #isMaking = false
  /** It was said that it could not be made. */
  #isMissed = false

  constructor({ path, log }: BallastUses) {
    this.#path = path
    this.#log = log
  }

  /** Does `work`; when that fails for want of space, again, each time with a piece less. Throws its error when none is left. */
  spend<T>(work: () => T): T {
    for (;;) {
      try {
        return work()
      } catch (error) {
        if (!isDiskFull(error) || !this.#giveUpPiece()) throw error
      }
    }
  }

  /** Makes it, and makes it whole again when there is room, until it is disposed of. Only for the daemon that holds the data directory. */
  tend(): Disposable {
    void this.#make()
    const timer = setInterval(() => void this.#make(), TEND_EVERY_MS).unref()
    return { [Symbol.dispose]: () => clearInterval(timer) }
  }

  #giveUpPiece(): boolean {
    try {
      const file = openSync(this.#path, 'r+')
      try {
        const { size } = fstatSync(file)
        if (size === 0) return false
        ftruncateSync(file, Math.max(0, size - PIECE_BYTES))
        this.#log.warn({ leftBytes: Math.max(0, size - PIECE_BYTES) }, 'the disk is full: some of the ballast is given up')
        return true
      } finally {
        closeSync(file)
      }
    } catch {
      // The error that led here says more.
      return false
    }
  }

  /** Never rejects. */
  async #make(): Promise<void> {
    if (this.#isMaking) return
    this.#isMaking = true
    try {
      await using file = await open(this.#path, 'a', 0o600)
      const { size } = await file.stat()
      const { bavail, bsize } = await statfs(this.#path)
      // The last free blocks are others'.
      if (size >= WHOLE_BYTES || bavail * bsize < 2 * WHOLE_BYTES) return
      await runCommand(['fallocate', '--posix', '--length', `${WHOLE_BYTES}`, this.#path], {
        step: { signal: AbortSignal.timeout(60_000) },
      })
      this.#isMissed = false
      this.#log.info({ bytes: WHOLE_BYTES }, 'ballast made')
    } catch (error) {
      if (!this.#isMissed) this.#log.warn({ err: error }, 'no ballast could be made: on a full disk even a delete may fail')
      this.#isMissed = true
    } finally {
      this.#isMaking = false
    }
  }
}

// SQLite's primary result codes. Where the file system tells it late, a full disk is an I/O error.
const SQLITE_IOERR = 10
const SQLITE_FULL = 13

export function isDiskFull(error: unknown): boolean {
  const { errcode } = error as { errcode?: number }
  return errcode !== undefined && [SQLITE_IOERR, SQLITE_FULL].includes(errcode & 0xff)
}
