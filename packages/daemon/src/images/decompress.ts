/**
 * A layer's bytes as they were before compression. What it is compressed with is told by its first bytes, as Docker does it:
 * media types in the wild are not to be trusted with it.
 */
import { once } from 'node:events'
import zlib, { constants } from 'node:zlib'
import { buffersPass } from './buffer-collector.ts'
import type { ImageLimits } from './limits.ts'
import { invalidImage, tooLarge } from './tar-entry.ts'

export type Compression = 'none' | 'gzip' | 'zstd'

// One step in libuv's thread pool for each: too small, and the hand-over costs more than the work.
const OUTPUT_CHUNK = 256 * 1024
// Lets the decoder work ahead while what it gave is being written: with one chunk at a time every hand-over would be waited for.
const WORK_AHEAD = 1 << 20
// 32 MiB of window is what the strongest level of the usual encoders asks for; the format would allow for gigabytes.
const ZSTD_WINDOW_LOG_MAX = 25

export function compressionOf(head: Buffer): Compression {
  if (head.length >= 3 && head[0] === 0x1f && head[1] === 0x8b && head[2] === 0x08) return 'gzip'
  if (head.length >= 4) {
    const magic = head.readUInt32LE(0)
    // A skippable frame may come first.
    if (magic === 0xfd2fb528 || (magic & 0xfffffff0) >>> 0 === 0x184d2a50) return 'zstd'
  }
  return 'none'
}

/** Yields fresh buffers. Throws `invalid_image` on damage, a cut or trailing data, `image_too_large` on a bomb. */
export async function* decompress(source: AsyncIterable<Buffer>, limits: ImageLimits): AsyncGenerator<Buffer, void, void> {
  const input = new Input(source)
  const compression = compressionOf(await input.peek(4))
  let produced = 0
  const count = (chunk: Buffer): Buffer => {
    buffersPass(chunk.length)
    produced += chunk.length
    if (produced > limits.maxImageBytes) throw tooLarge(`A layer unpacks to more than ${limits.maxImageBytes} bytes`)
    if (produced > limits.ratioFloorBytes && produced > input.taken * limits.maxRatio) {
      throw tooLarge(`A layer unpacks to more than ${limits.maxRatio} times its size: this looks like a decompression bomb`)
    }
    return chunk
  }
  try {
    if (compression === 'none') {
      for (let chunk = await input.next(); chunk; chunk = await input.next()) yield count(chunk)
      return
    }
    // zstd streams may be many frames (zstd:chunked writes one for each file) and Node's decoder ends with the first.
    do {
      for await (const chunk of decodeOnce(input, compression)) yield count(chunk)
    } while (compression === 'zstd' && !(await input.isAtEnd()))
    for (let rest = await input.next(); rest; rest = await input.next()) {
      if (rest.some((byte) => byte !== 0)) throw invalidImage('A layer goes on after the end of its compressed data')
    }
  } finally {
    await input.close()
  }
}

async function* decodeOnce(input: Input, compression: 'gzip' | 'zstd'): AsyncGenerator<Buffer, void, void> {
  const buffers = { chunkSize: OUTPUT_CHUNK, readableHighWaterMark: WORK_AHEAD }
  const decoder =
    compression === 'gzip'
      ? zlib.createGunzip(buffers)
      : zlib.createZstdDecompress({ ...buffers, params: { [constants.ZSTD_d_windowLogMax]: ZSTD_WINDOW_LOG_MAX } })
  let failure: unknown
  const feeding = (async () => {
    let fed = 0
    for (;;) {
      const chunk = await input.next()
      if (decoder.destroyed || decoder.readableEnded) {
        if (chunk) input.giveBack(chunk)
        return
      }
      if (!chunk) {
        decoder.end()
        return
      }
      fed += chunk.length
      await new Promise<void>((resolve) => {
        decoder.once('close', resolve)
        decoder.write(chunk, () => {
          decoder.off('close', resolve)
          resolve()
        })
      })
      // It ended within this chunk: the rest is another frame, or does not belong here.
      const unused = fed - decoder.bytesWritten
      if (unused > 0) {
        input.giveBack(chunk.subarray(chunk.length - unused))
        return
      }
    }
  })().catch((error) => {
    failure = error
    decoder.destroy()
  })
  try {
    for await (const chunk of decoder) yield chunk as Buffer
  } catch (error) {
    if (failure === undefined) throw damaged(error)
  } finally {
    if (!decoder.closed) {
      decoder.destroy()
      await once(decoder, 'close').catch(() => undefined)
    }
    await feeding
  }
  if (failure !== undefined) throw failure
}

function damaged(cause: unknown): Error {
  const code = (cause as NodeJS.ErrnoException).code ?? ''
  if (code === 'Z_BUF_ERROR') return invalidImage('A layer is cut short', { cause })
  if (code === 'ZSTD_error_frameParameter_windowTooLarge') {
    return invalidImage(`A layer is compressed with a zstd window of more than ${2 ** (ZSTD_WINDOW_LOG_MAX - 20)} MiB`, { cause })
  }
  return invalidImage('A layer has damaged compressed data', { cause })
}

/** Chunks that can be looked at first and given back. */
class Input {
  readonly #iterator: AsyncIterator<Buffer>
  #front: Buffer | undefined
  #ended = false
  taken = 0

  constructor(source: AsyncIterable<Buffer>) {
    this.#iterator = source[Symbol.asyncIterator]()
  }

  async next(): Promise<Buffer | undefined> {
    const front = this.#front
    this.#front = undefined
    const chunk = front ?? (await this.#pull())
    if (chunk) this.taken += chunk.length
    return chunk
  }

  giveBack(chunk: Buffer): void {
    if (chunk.length === 0) return
    this.taken -= chunk.length
    this.#front = this.#front ? Buffer.concat([chunk, this.#front]) : chunk
  }

  async peek(length: number): Promise<Buffer> {
    let front = this.#front ?? Buffer.alloc(0)
    while (front.length < length) {
      const chunk = await this.#pull()
      if (!chunk) break
      front = front.length === 0 ? chunk : Buffer.concat([front, chunk])
    }
    this.#front = front.length > 0 ? front : undefined
    return front
  }

  async isAtEnd(): Promise<boolean> {
    return (await this.peek(1)).length === 0
  }

  async close(): Promise<void> {
    await this.#iterator.return?.()
  }

  async #pull(): Promise<Buffer | undefined> {
    while (!this.#ended) {
      const { done, value } = await this.#iterator.next()
      if (done) this.#ended = true
      else if (value.length > 0) {
        buffersPass(value.length)
        return value
      }
    }
    return undefined
  }
}
