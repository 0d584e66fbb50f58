import { type FileHandle, open } from 'node:fs/promises'
import type { LayerFile } from './merged-tar.ts'

const CHUNK = 256 * 1024

/**
 * Reads a file while it is being written by someone else here, so that a layer is looked through as it arrives. The file may
 * get its place in the store meanwhile.
 */
export class FileTail implements LayerFile {
  #path: string
  #size = 0
  #isEnded = false
  #failure: { reason: unknown } | undefined
  #waiting: (() => void)[] = []

  constructor(path: string) {
    this.#path = path
  }

  /** `size` bytes can be read now. */
  advance(size: number): void {
    this.#size = size
    this.#wake()
  }

  /** The file is whole, and from now on at `path`. */
  end(path: string): void {
    this.#path = path
    this.#isEnded = true
    this.#wake()
  }

  /** Readers get what was there and then this error. */
  fail(reason: unknown): void {
    this.#failure ??= { reason }
    this.#wake()
  }

  async *open(): AsyncGenerator<Buffer, void, void> {
    await using handle = await this.#openFile()
    for (let at = 0; ; ) {
      if (this.#failure) throw this.#failure.reason
      if (at < this.#size) {
        const buffer = Buffer.allocUnsafeSlow(Math.min(CHUNK, this.#size - at))
        const { bytesRead } = await handle.read(buffer, 0, buffer.length, at)
        if (bytesRead === 0) throw new Error(`${this.#path} became shorter while it was read`)
        at += bytesRead
        yield buffer.subarray(0, bytesRead)
      } else if (this.#isEnded) return
      else await new Promise<void>((resolve) => this.#waiting.push(resolve))
    }
  }

  async #openFile(): Promise<FileHandle> {
    const path = this.#path
    return await open(path, 'r').catch((error) => {
      // It got its place in this very moment.
      if (path !== this.#path) return open(this.#path, 'r')
      throw error
    })
  }

  #wake(): void {
    const waiting = this.#waiting
    this.#waiting = []
    for (const wake of waiting) wake()
  }
}
