/**
 * Lines of a log that someone else writes and rotates (FILE becomes FILE.1). The last ones are found by reading backwards; a
 * follower reads on as the file grows, goes over to the new file after a rotation, and reads only as fast as its reader takes.
 * What one read of the file gives is one batch, so that a guest that writes nothing but newlines costs a step for each read and not
 * for each line. Memory is bounded whatever it writes: a line longer than `MAX_LINE` comes in pieces, and a batch holds at most
 * `CHUNK` lines, or `CHUNK + MAX_LINE` bytes of the file.
 */
import { type Stats, watch } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { SharedReads } from './shared-reads.ts'

export interface ReadLog {
  /** So many of the last lines first. */
  readonly tail: number
  /** In place of `tail`: everything from the place that a batch has named. When that was rotated away, all that is left. */
  readonly from?: string
  /** What others have read of this log a moment ago. */
  readonly shared?: SharedReads
  /** Then those that are yet to come, until `signal` aborts or `isOver` says that none will. */
  readonly follow: boolean
  readonly signal?: AbortSignal
  /** Asked once all that is there was read. `onChange` of it should be called when the answer may have changed. */
  readonly isOver?: () => boolean
  /** Registers what is to be called when `isOver` may have changed. */
  readonly onChange?: (listener: () => void) => Disposable
}

export interface LogBatch {
  readonly lines: readonly string[]
  /** Where the line after these begins. */
  readonly place: string
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
export async function* readLog(path: string, options: ReadLog): AsyncGenerator<LogBatch, void, void> {
  const { follow, signal, shared } = options
  // The watch begins before the first read, so that no growth falls between.
  using growth = follow ? new Growth(path, options) : undefined
  let file: LogFile | undefined
  try {
    file = await openAtBegin(path, options)
    yield { lines: [], place: file?.place ?? 'none-0' }
    while (!signal?.aborted) {
      // Asked before reading: what was written before it was over is then read below.
      const isOver = options.isOver?.() ?? false
      const seen = growth?.count ?? 0
      for (let batch = await file?.read(shared); batch !== undefined; batch = await file?.read(shared)) {
        if (signal?.aborted) return
        if (batch.lines.length > 0) yield batch
      }
      if (signal?.aborted) return
      const next = await successorOf(path, file)
      if (next.kind === 'file') {
        // A rotation may fall into a line.
        if (file !== undefined) next.file.goOnFrom(file)
        await file?.[Symbol.asyncDispose]()
        file = next.file
        continue
      }
      if (next.kind === 'truncated') {
        shared?.forget()
        file?.rewind()
        continue
      }
      if (!follow || isOver) break
      await growth?.after(seen)
    }
    const rest = file?.rest()
    if (rest !== undefined && !signal?.aborted) yield rest
  } finally {
    await file?.[Symbol.asyncDispose]()
  }
}

/** The file in which to begin, the older half or the newer, at its place; undefined when nothing has begun to write it. */
async function openAtBegin(path: string, { tail, from }: ReadLog): Promise<LogFile | undefined> {
  await using unused = new AsyncDisposableStack()
  const file = unused.use(await LogFile.open(path))
  const older = unused.use(await LogFile.open(olderHalf(path)))
  let first = file
  if (from !== undefined) {
    const [, generation, offset] = PLACE.exec(from) ?? []
    const known = [file, older].find((one) => one?.generation === generation)
    first = known ?? older ?? file
    if (known !== undefined) known.at = Number(offset)
  } else {
    const inFile = await file?.findTail(tail)
    const missing = tail - (inFile?.lines ?? 0)
    if (file !== undefined) file.at = inFile?.offset ?? 0
    if (older !== undefined && missing > 0) {
      older.at = (await older.findTail(missing)).offset
      first = older
    }
  }
  unused.move()
  for (const one of [file, older]) if (one !== first) await one?.[Symbol.asyncDispose]()
  return first
}

const PLACE = /^([0-9a-z.]{1,40})-(\d{1,15})$/

/** One of the two files of a log, read line by line. */
class LogFile implements AsyncDisposable {
  /** Another file under the same name has another one, also where it was given the same inode. */
  readonly generation: string
  readonly inode: number
  readonly #handle: FileHandle
  readonly #lines = new LineCutter()
  /** Made when it is needed: most of those who follow find that another has read. */
  #buffer: Buffer | undefined
  /** Where the line began that the file before this one ended in. */
  #begunAt: string | undefined
  at = 0

  private constructor(handle: FileHandle, { ino, birthtimeMs }: Stats) {
    this.#handle = handle
    this.inode = ino
    this.generation = `${ino.toString(36)}.${Math.trunc(birthtimeMs * 1000).toString(36)}`
  }

  static async open(path: string): Promise<LogFile | undefined> {
    const handle = await openIfThere(path)
    return handle && new LogFile(handle, await handle.stat())
  }

  stat(): Promise<Stats> {
    return this.#handle.stat()
  }

  /** Where the next line begins. */
  get place(): string {
    return this.#begunAt ?? `${this.generation}-${this.at - this.#lines.held}`
  }

  /** From the beginning again. */
  rewind(): void {
    this.at = 0
    this.#lines.drop()
  }

  /** Takes over what `older` ended with. */
  goOnFrom(older: LogFile): void {
    if (older.#lines.held === 0) return
    this.#begunAt = older.place
    this.#lines.takeFrom(older.#lines)
  }

  /** What comes next; without lines where a line goes on. Undefined at the end of the file. */
  async read(shared?: SharedReads): Promise<LogBatch | undefined> {
    if (shared === undefined || this.#lines.held > 0) return this.#readOn()
    let isOwn = false
    let own: LogBatch | undefined
    const found = await shared.at(this.generation, this.at, async () => {
      isOwn = true
      own = await this.#readOn()
      return own && this.#lines.held === 0 ? { batch: own, next: this.at } : undefined
    })
    if (isOwn) return own
    // That another has found nothing there was true before the file grew: everyone finds the end himself.
    if (found === undefined) return this.#readOn()
    this.at = found.next
    return found.batch
  }

  async #readOn(): Promise<LogBatch | undefined> {
    this.#buffer ??= Buffer.allocUnsafe(CHUNK)
    const { bytesRead } = await this.#handle.read(this.#buffer, 0, CHUNK, this.at)
    if (bytesRead === 0) return undefined
    this.at += bytesRead
    const { lines, isCut } = this.#lines.cut(this.#buffer.subarray(0, bytesRead))
    if (lines.length > 0) this.#begunAt = undefined
    // Back to where a line begins: there others may stand too.
    if (isCut) this.at -= this.#lines.drop()
    return { lines, place: this.place }
  }

  /** What came after the last newline. */
  rest(): LogBatch | undefined {
    const rest = this.#lines.rest()
    return rest === undefined ? undefined : { lines: [rest], place: `${this.generation}-${this.at}` }
  }

  /** Where the last `count` lines begin, and how many there are. */
  findTail(count: number): Promise<{ offset: number; lines: number }> {
    return findTail(this.#handle, count)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close()
  }
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

type Successor = { readonly kind: 'none' } | { readonly kind: 'truncated' } | { readonly kind: 'file'; readonly file: LogFile }

/** What is to be read once the end of `file` is reached. */
async function successorOf(path: string, file: LogFile | undefined): Promise<Successor> {
  const now = await stat(path).catch(() => undefined)
  if (now === undefined) return { kind: 'none' }
  if (file !== undefined) {
    // The file is held open, so no other can have its inode.
    if (file.inode === now.ino) return now.size < file.at ? { kind: 'truncated' } : { kind: 'none' }
    // What was written to the old file before it was renamed comes first.
    if ((await file.stat()).size > file.at) return { kind: 'none' }
  }
  const opened = await LogFile.open(path)
  return opened === undefined ? { kind: 'none' } : { kind: 'file', file: opened }
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

  /** Bytes that came after the last newline. */
  get held(): number {
    return this.#held.length
  }

  takeFrom(other: LineCutter): void {
    this.#held = other.#held
  }

  /** Forgets them, and tells how many they were. */
  drop(): number {
    const { length } = this.#held
    this.#held = Buffer.alloc(0)
    return length
  }

  /** What came after the last newline. */
  rest(): string | undefined {
    const held = this.#held
    this.#held = Buffer.alloc(0)
    return held.length > 0 ? text(held) : undefined
  }

  /** The lines that are whole now; `isCut` when the last of them ended with a newline. `chunk` is at most `CHUNK` long, and may be used again afterwards. */
  cut(chunk: Buffer): { readonly lines: readonly string[]; readonly isCut: boolean } {
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
    return { lines, isCut: end >= 0 }
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
