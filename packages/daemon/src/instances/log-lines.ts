/**
 * Lines of a log that someone else writes and rotates (FILE becomes FILE.1). The last ones are found by reading backwards; a
 * follower reads on as the file grows, goes over to the new file after a rotation, and reads only as fast as its reader takes.
 * What one read of the file gives is one batch, so that a guest that writes nothing but newlines costs a step for each read and not
 * for each line. Memory is bounded whatever it writes: a line longer than `MAX_LINE` comes in pieces, and a batch holds at most
 * `CHUNK` lines, or `CHUNK + MAX_LINE` bytes of the file.
 */
import { watch } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { dirname } from 'node:path'

export interface ReadLog {
  /** So many of the last lines first. */
  readonly tail: number
  /** Then those that are yet to come, until `signal` aborts or `isOver` says that none will. */
  readonly follow: boolean
  readonly signal?: AbortSignal
  /** Asked once all that is there was read. `onChange` of it should be called when the answer may have changed. */
  readonly isOver?: () => boolean
  /** Registers what is to be called when `isOver` may have changed. */
  readonly onChange?: (listener: () => void) => Disposable
}

export const MAX_LINE = 64 * 1024
// What is read at once is a batch: all empty lines, it takes a few milliseconds to send.
export const CHUNK = 16 * 1024
// inotify tells of growth; this is for file systems that do not have it.
const LOOK_AGAIN_MS = 2000
const NEWLINE = 0x0a

/** Has anyone begun to write it? Between the two steps of a rotation only the older half is there. */
export async function isLogThere(path: string): Promise<boolean> {
  for (const half of [path, olderHalf(path)]) {
    await using handle = await openIfThere(half)
    if (handle !== undefined) return true
  }
  return false
}

const olderHalf = (path: string): string => `${path}.1`

/** A file that is not there yet counts as empty. The first batch is an empty one: what is written from then on will be read. */
export async function* readLog(path: string, options: ReadLog): AsyncGenerator<readonly string[], void, void> {
  const { follow, signal } = options
  const lines = new LineCutter()
  let handle = await openIfThere(path)
  // The watch begins before the first read, so that no growth falls between.
  using growth = follow ? new Growth(path, options) : undefined
  try {
    const inFile = handle === undefined ? { offset: 0, lines: 0 } : await findTail(handle, options.tail)
    let at = inFile.offset
    {
      await using older = inFile.lines < options.tail ? await openIfThere(olderHalf(path)) : undefined
      yield []
      if (older !== undefined) yield* readOlder(older, options.tail - inFile.lines, signal)
    }
    const buffer = Buffer.alloc(CHUNK)
    while (!signal?.aborted) {
      // Asked before reading: what was written before it was over is then read below.
      const isOver = options.isOver?.() ?? false
      const seen = growth?.count ?? 0
      if (handle !== undefined) {
        for (;;) {
          const { bytesRead } = await handle.read(buffer, 0, CHUNK, at)
          if (signal?.aborted) return
          if (bytesRead === 0) break
          at += bytesRead
          const batch = lines.cut(buffer.subarray(0, bytesRead))
          if (batch.length > 0) yield batch
        }
      }
      const next = await successorOf(path, handle, at)
      if (next.kind === 'file') {
        await handle?.close()
        handle = next.handle
        at = 0
        continue
      }
      if (next.kind === 'truncated') {
        at = 0
        continue
      }
      if (!follow || isOver) break
      await growth?.after(seen)
    }
    const rest = lines.rest()
    if (rest !== undefined && !signal?.aborted) yield [rest]
  } finally {
    await handle?.close()
  }
}

async function* readOlder(
  handle: FileHandle,
  count: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<readonly string[], void, void> {
  const lines = new LineCutter()
  let { offset } = await findTail(handle, count)
  const buffer = Buffer.alloc(CHUNK)
  while (!signal?.aborted) {
    const { bytesRead } = await handle.read(buffer, 0, CHUNK, offset)
    if (bytesRead === 0) break
    offset += bytesRead
    const batch = lines.cut(buffer.subarray(0, bytesRead))
    if (batch.length > 0) yield batch
  }
  const rest = lines.rest()
  if (rest !== undefined && !signal?.aborted) yield [rest]
}

/** Where the last `count` lines begin, and how many there are. */
async function findTail(handle: FileHandle, count: number): Promise<{ offset: number; lines: number }> {
  const { size } = await handle.stat()
  if (count <= 0 || size === 0) return { offset: size, lines: 0 }
  const buffer = Buffer.alloc(CHUNK)
  let lines = 0
  for (let end = size; end > 0; ) {
    const start = Math.max(0, end - CHUNK)
    const { bytesRead } = await handle.read(buffer, 0, end - start, start)
    // A newline at the very end closes the last line and begins none.
    for (let index = Math.min(bytesRead, end - start) - 1; index >= 0; index--) {
      if (buffer[index] !== NEWLINE || start + index === size - 1) continue
      if (++lines === count) return { offset: start + index + 1, lines }
    }
    end = start
  }
  return { offset: 0, lines: lines + 1 }
}

type Successor = { readonly kind: 'none' } | { readonly kind: 'truncated' } | { readonly kind: 'file'; readonly handle: FileHandle }

/** What is to be read once the end of `handle` is reached. */
async function successorOf(path: string, handle: FileHandle | undefined, at: number): Promise<Successor> {
  const now = await stat(path).catch(() => undefined)
  if (now === undefined) return { kind: 'none' }
  if (handle !== undefined) {
    const held = await handle.stat()
    if (held.ino === now.ino && held.dev === now.dev) return held.size < at ? { kind: 'truncated' } : { kind: 'none' }
    // What was written to the old file before it was renamed comes first.
    if (held.size > at) return { kind: 'none' }
  }
  const opened = await openIfThere(path)
  return opened === undefined ? { kind: 'none' } : { kind: 'file', handle: opened }
}

/** Counts the changes around a file, and waits for the next. */
class Growth implements Disposable {
  count = 0
  readonly #stop = new AbortController()
  readonly #listening: Disposable | undefined
  #wake: (() => void) | undefined

  constructor(path: string, options: ReadLog) {
    const changed = (): void => {
      this.count++
      this.#wake?.()
    }
    options.signal?.addEventListener('abort', changed, { once: true, signal: this.#stop.signal })
    this.#listening = options.onChange?.(changed)
    try {
      const watcher = watch(dirname(path), { persistent: false, signal: this.#stop.signal }, changed)
      // The directory goes when the instance is deleted.
      watcher.on('error', () => undefined)
    } catch {
      // No inotify left (its instances are limited per user): looking again has to do.
    }
  }

  /** Resolves when something has changed since `count` was `seen`, or it is time to look again. */
  async after(seen: number): Promise<void> {
    if (this.count !== seen) return
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#wake = resolve
    const timer = setTimeout(resolve, LOOK_AGAIN_MS)
    await promise
    clearTimeout(timer)
    this.#wake = undefined
  }

  [Symbol.dispose](): void {
    this.#stop.abort()
    this.#listening?.[Symbol.dispose]()
  }
}

/** Cuts a stream of bytes into lines, long ones into pieces. */
class LineCutter {
  #held: Buffer = Buffer.alloc(0)

  /** What came after the last newline. */
  rest(): string | undefined {
    const held = this.#held
    this.#held = Buffer.alloc(0)
    return held.length > 0 ? text(held) : undefined
  }

  /** The lines that are whole now. `chunk` is at most `CHUNK` long, and may be used again afterwards. */
  cut(chunk: Buffer): string[] {
    const lines: string[] = []
    let data = this.#held.length > 0 ? Buffer.concat([this.#held, chunk]) : chunk
    // What was held belongs to the first line, so no other can be too long.
    while (firstLine(data) > MAX_LINE) {
      const piece = wholeCharacters(data.subarray(0, MAX_LINE))
      lines.push(text(piece))
      data = data.subarray(piece.length)
    }
    const end = data.lastIndexOf(NEWLINE)
    // Decoded at once: a newline is never part of a character, so what is broken in one line stays within it.
    if (end >= 0) for (const line of data.toString('utf8', 0, end).split('\n')) lines.push(withoutReturn(line))
    this.#held = Buffer.from(data.subarray(end + 1))
    return lines
  }
}

/** How long the line is that `data` begins with, as far as it is there. */
function firstLine(data: Buffer): number {
  const newline = data.indexOf(NEWLINE)
  return newline < 0 ? data.length : newline
}

const text = (line: Buffer): string => withoutReturn(line.toString('utf8'))
const withoutReturn = (line: string): string => (line.endsWith('\r') ? line.slice(0, -1) : line)

/** Without a character that is cut at the end. */
function wholeCharacters(piece: Buffer): Buffer {
  for (let back = 1; back <= 3; back++) {
    const byte = piece[piece.length - back] ?? 0
    if (byte < 0x80) break
    if (byte >= 0xc0) {
      const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2
      return length > back ? piece.subarray(0, piece.length - back) : piece
    }
  }
  return piece
}

async function openIfThere(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, 'r')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}
