/** Files into a guest and out of it, as their caller holds them. The frames are described in docs/streams.md. */
import { AppError, ERROR_CODES } from './errors.ts'
import { cutOff, type FrameSocket, noticeOf } from './frame-socket.ts'
import { COPY_END, type CopyCredit, type CopyHeader, type CopyNotice, type CopyStart, HEADER_COST } from './streams.ts'

export interface CopyToOptions {
  /** Permission bits; 0644 unless given, 0755 of a directory. */
  readonly mode?: number | undefined
  /** Set when both are given and neither is 0. */
  readonly uid?: number | undefined
  readonly gid?: number | undefined
  /** A file that is copied onto a directory lands inside it by this name. */
  readonly name?: string | undefined
  readonly signal?: AbortSignal | undefined
}

export interface CopyFromOptions {
  /** What links lead to, in place of the links. */
  readonly followLinks?: boolean | undefined
  readonly signal?: AbortSignal | undefined
}

/** A file, a directory or a link that came out of a guest. Names and link targets are the guest's: check them before you use them as paths. */
export interface CopiedEntry {
  /** Relative; begins with the last name of what was asked for. A directory comes before what is in it. */
  readonly path: string
  readonly kind: 'file' | 'directory' | 'link'
  readonly mode: number
  /** As it was when it was opened; what follows may differ when it is being written. */
  readonly size: number
  readonly modifiedAt: Date
  readonly uid: number | undefined
  readonly gid: number | undefined
  readonly linkTarget: string | undefined
  /** Its bytes, to be read before the next entry is asked for; what is left then is passed over. A file counts only once they have ended. */
  readonly bytes: AsyncIterable<Uint8Array>
}

/** What goes into a file. */
export type FileContent = string | Uint8Array | AsyncIterable<Uint8Array> | Iterable<Uint8Array>

const WINDOW_BYTES = 1024 * 1024

/** The file appears whole under its path, or not at all. `content` undefined makes a directory. Resolves with its size. */
export async function sendFile(
  socket: FrameSocket,
  path: string,
  content: FileContent | undefined,
  options: CopyToOptions,
): Promise<number> {
  const { mode, uid, gid, name } = options
  const start: CopyStart = {
    direction: 'to',
    guest_path: path,
    ...(content === undefined && { is_dir: true }),
    ...(mode !== undefined && { mode }),
    ...(uid !== undefined && { uid }),
    ...(gid !== undefined && { gid }),
    ...(name !== undefined && { src_basename: name }),
  }
  socket.sendJson(start)
  // It may come early, as a refusal: then the rest is not sent.
  let isAnswered = false
  const result = resultOf(socket, path).finally(() => {
    isAnswered = true
  })
  result.catch(() => undefined)
  for await (const piece of piecesOf(content)) {
    if (isAnswered) break
    await socket.sendBytes(piece)
  }
  if (!isAnswered) socket.sendJson(COPY_END)
  return result
}

function piecesOf(content: FileContent | undefined): AsyncIterable<Uint8Array> | Iterable<Uint8Array> {
  if (content === undefined) return []
  if (typeof content === 'string') return [new TextEncoder().encode(content)]
  return content instanceof Uint8Array ? [content] : content
}

async function resultOf(socket: FrameSocket, path: string): Promise<number> {
  for (;;) {
    const frame = await socket.next()
    if (frame === undefined) throw cutOff(`${path} was copied`)
    const notice = frame.kind === 'text' ? noticeOf<CopyNotice>(frame.text) : undefined
    if (notice?.type === 'error') throw refusalOf(notice.code, notice.message)
    if (notice?.type !== 'result') continue
    if (!notice.success) throw refusalOf(notice.code, notice.error ?? `${path} was not copied`)
    return notice.bytes_written ?? 0
  }
}

/** Everything below `path`, entry by entry, at the pace of the reader. Throws as the guest refuses, or when it is cut off. */
export async function* receiveFiles(
  socket: FrameSocket,
  path: string,
  options: CopyFromOptions,
): AsyncGenerator<CopiedEntry, void, undefined> {
  const start: CopyStart = {
    direction: 'from',
    guest_path: path,
    window: WINDOW_BYTES,
    ...(options.followLinks !== undefined && { follow_links: options.followLinks }),
  }
  socket.sendJson(start)
  const wire = new CopyWire(socket, path)
  for (;;) {
    const header = await wire.header()
    if (header === undefined) return
    const bytes = wire.content()
    yield entryOf(header, bytes)
    // What its reader has left.
    for await (const _ of bytes);
    if (wire.isOver) return
  }
}

class CopyWire {
  isOver = false
  readonly #socket: FrameSocket
  readonly #path: string
  #owed = 0

  constructor(socket: FrameSocket, path: string) {
    this.#socket = socket
    this.#path = path
  }

  async header(): Promise<CopyHeader | undefined> {
    for (;;) {
      const notice = await this.#next()
      if (notice instanceof Uint8Array) continue
      if (notice.type === 'header') {
        this.#take(HEADER_COST)
        return notice
      }
      if (notice.type === 'end' && notice.final) return undefined
    }
  }

  /** The bytes of the entry whose header was read last. Read to its end however often it is begun. */
  content(): AsyncIterable<Uint8Array> {
    const wire = this
    let isOver = false
    return {
      async *[Symbol.asyncIterator]() {
        while (!isOver) {
          const notice = await wire.#next()
          if (notice instanceof Uint8Array) {
            wire.#take(notice.length)
            yield notice
          } else if (notice.type === 'end') {
            isOver = true
            wire.isOver = notice.final
          }
        }
      },
    }
  }

  async #next(): Promise<CopyNotice | Uint8Array> {
    for (;;) {
      const frame = await this.#socket.next()
      if (frame === undefined) throw cutOff(`${this.#path} was copied`)
      if (frame.kind === 'bytes') return frame.bytes
      const notice = noticeOf<CopyNotice>(frame.text)
      if (notice?.type === 'error') throw refusalOf(notice.code, notice.message)
      if (notice !== undefined) return notice
    }
  }

  #take(bytes: number): void {
    this.#owed += bytes
    if (this.#owed < WINDOW_BYTES / 4) return
    this.#socket.sendJson({ type: 'credit', bytes: this.#owed } satisfies CopyCredit)
    this.#owed = 0
  }
}

function entryOf(header: CopyHeader, bytes: AsyncIterable<Uint8Array>): CopiedEntry {
  return {
    path: header.path,
    kind: header.is_symlink ? 'link' : header.is_dir ? 'directory' : 'file',
    mode: header.mode,
    size: header.size,
    modifiedAt: new Date(header.mtime * 1000),
    uid: header.uid,
    gid: header.gid,
    linkTarget: header.link_target,
    bytes,
  }
}

const refusalOf = (code: string | undefined, message: string): AppError =>
  new AppError(ERROR_CODES.find((known) => known === code) ?? 'internal_error', message)
