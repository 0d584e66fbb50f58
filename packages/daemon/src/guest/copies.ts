/** Files into a guest and out of it, each by a stream of its own. */
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'
import { refusalOf } from './answers.ts'
import { type FieldReader, FieldWriter } from './fields.ts'
import { checkText } from './guest-config.ts'
import { windowFor } from './guest-exec.ts'
import type { GuestLink, LinkStream, StreamOwner } from './guest-link.ts'
import { Input } from './input.ts'
import { CHANNEL, KIND, OP, TAG } from './wire.ts'

/** One file, one directory without its contents, or a symbolic link. */
export interface CopyRequest {
  readonly path: string
  readonly isDir?: boolean
  /** Makes a link that points there. */
  readonly linkTarget?: string
  /** 0644 and 0755 unless given; a directory that is there keeps its own. */
  readonly mode?: number
  readonly uid?: number
  readonly gid?: number
  /** Seconds since 1970. */
  readonly mtime?: number
}

export type CopyEntry =
  | {
      readonly kind: 'header'
      /** Relative; begins with the last name of what was asked for. */
      readonly path: string
      readonly mode: number
      readonly isDir: boolean
      readonly linkTarget?: string
      /** As it was when the file was opened; what follows may differ when it is being written. */
      readonly size: number
      readonly mtime: number
      readonly uid: number
      readonly gid: number
    }
  | { readonly kind: 'data'; readonly bytes: Uint8Array }
  | { readonly kind: 'end' }

/** The file appears whole under its name, or not at all. */
export async function copyTo(
  link: GuestLink,
  request: CopyRequest,
  source: AsyncIterable<Uint8Array>,
  step: Step,
): Promise<{ bytesWritten: number }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ bytesWritten: number }>()
  promise.catch(() => undefined)
  const what = `${request.path} could not be written`
  let stream: LinkStream | undefined
  let isOver = false
  const input = new Input((bytes, isEnd) => isOver || stream?.data(bytes, isEnd))
  const settle = (act: () => void) => {
    isOver = true
    input.destroy()
    act()
  }
  const grant = (bytes: number) => input.grant(bytes) || stream?.accuse('it granted more than it can take')
  const owner: StreamOwner = {
    reply(fields) {
      const refusal = refusalOf(fields, what)
      if (refusal) settle(() => reject(refusal))
      else grant(fields.number(TAG.WINDOW) ?? 0)
      return { isLast: refusal !== undefined }
    },
    credit: grant,
    end(fields) {
      const refusal = refusalOf(fields, what)
      settle(() => (refusal ? reject(refusal) : resolve({ bytesWritten: fields.number(TAG.BYTES) ?? 0 })))
    },
    lost: (error) => settle(() => reject(error)),
  }
  stream = link.request(encodePut(request), owner)
  const giveUp = (cause: unknown) => {
    if (isOver) return
    stream?.abandon()
    settle(() => reject(cause instanceof AppError ? cause : new AppError('timed_out', `${what}: it was given up`, { cause })))
  }
  const onAbort = () => giveUp(step.signal.reason)
  step.signal.addEventListener('abort', onAbort, { once: true })
  if (step.signal.aborted) onAbort()
  try {
    // The guest may refuse before it was sent everything, and a source that waits must not hide that.
    void pour(source, input, () => isOver || request.isDir === true || request.linkTarget !== undefined).catch(giveUp)
    return await promise
  } finally {
    step.signal.removeEventListener('abort', onAbort)
  }
}

async function pour(source: AsyncIterable<Uint8Array>, input: Input, isEnough: () => boolean): Promise<void> {
  for await (const chunk of source) {
    if (isEnough()) break
    if (!input.write(chunk)) await drained(input)
  }
  if (!input.destroyed) input.end()
}

/** Resolves when it takes more, or never will. */
function drained(input: Input): Promise<void> {
  if (input.destroyed) return Promise.resolve()
  return new Promise((resolve) => {
    const done = () => {
      input.off('drain', done).off('close', done)
      resolve()
    }
    input.once('drain', done).once('close', done)
  })
}

function encodePut(request: CopyRequest): Buffer {
  const { linkTarget, mode, uid, gid, mtime } = request
  const kind = linkTarget !== undefined ? KIND.SYMLINK : request.isDir ? KIND.DIRECTORY : KIND.FILE
  const fields = new FieldWriter().number(TAG.OP, OP.PUT).text(TAG.PATH, checkPath(request.path)).number(TAG.FILE_KIND, kind)
  return fields
    .optional(linkTarget, (target) => fields.text(TAG.LINK_TARGET, checkText(target)))
    .optional(mode, (bits) => fields.number(TAG.MODE, bits & 0o7777))
    .optional(uid ?? gid, () => fields.number(TAG.UID, uid ?? 0).number(TAG.GID, gid ?? 0))
    .optional(mtime, (seconds) => fields.number(TAG.MTIME, Math.max(0, Math.trunc(seconds))))
    .finish()
}

/** Walks a file or tree in the guest: for each entry a header, its bytes, an end. Directories come before what is in them. */
export async function* copyFrom(
  link: GuestLink,
  path: string,
  options: { readonly followLinks: boolean },
  step: Step,
): AsyncGenerator<CopyEntry> {
  const walk = new Walk(windowFor(link), `${path} could not be read`)
  const fields = new FieldWriter().number(TAG.OP, OP.GET).text(TAG.PATH, checkPath(path)).flag(TAG.FOLLOW, options.followLinks)
  walk.stream = link.request(fields.number(TAG.WINDOW, walk.window).finish(), walk)
  const onAbort = () => walk.giveUp(new AppError('timed_out', `${path} could not be read: it was given up`, { cause: step.signal.reason }))
  step.signal.addEventListener('abort', onAbort, { once: true })
  if (step.signal.aborted) onAbort()
  try {
    for (;;) {
      const entry = await walk.next()
      if (!entry) return
      yield entry
    }
  } finally {
    step.signal.removeEventListener('abort', onAbort)
    // A reader who leaves early wants no more of it.
    walk.giveUp(new AppError('timed_out', `${path} was not read to its end`))
  }
}

interface Queued {
  readonly entry: CopyEntry
  readonly size: number
}

class Walk implements StreamOwner {
  stream: LinkStream | undefined
  readonly window: number
  readonly #what: string
  readonly #queue: Queued[] = []
  #waiting: PromiseWithResolvers<void> | undefined
  #error: AppError | undefined
  #isOver = false
  #inFile = false
  #underway = 0
  #owed = 0

  constructor(window: number, what: string) {
    this.window = window
    this.#what = what
  }

  /** Undefined at the end; throws what went wrong. What was taken may be sent again. */
  async next(): Promise<CopyEntry | undefined> {
    while (this.#queue.length === 0) {
      if (this.#error) throw this.#error
      if (this.#isOver) return undefined
      this.#waiting = Promise.withResolvers<void>()
      await this.#waiting.promise
    }
    const { entry, size } = this.#queue.shift() as Queued
    this.#underway -= size
    this.#owed += size
    if (!this.#isOver && this.#owed > 0 && (this.#owed >= this.window / 4 || this.#queue.length === 0)) {
      const owed = this.#owed
      this.#owed = 0
      this.stream?.credit(CHANNEL.STDOUT, owed)
    }
    return entry
  }

  reply(fields: FieldReader): { isLast: boolean } {
    const refusal = refusalOf(fields, this.#what)
    if (refusal) this.lost(refusal)
    return { isLast: refusal !== undefined }
  }

  entry(fields: FieldReader, size: number): void {
    const path = fields.text(TAG.PATH)
    if (this.#inFile || path === undefined || !isInside(path)) {
      this.stream?.accuse('it named a path that leads out, or began a file inside another')
      return
    }
    const kind = fields.number(TAG.FILE_KIND, KIND.OTHER)
    const linkTarget = kind === KIND.SYMLINK ? (fields.text(TAG.LINK_TARGET) ?? '') : undefined
    this.#inFile = kind === KIND.FILE
    this.#put(size, {
      kind: 'header',
      path,
      mode: fields.number(TAG.MODE, 0o7777) ?? 0,
      isDir: kind === KIND.DIRECTORY,
      ...(linkTarget !== undefined && { linkTarget }),
      size: kind === KIND.FILE ? (fields.number(TAG.SIZE) ?? 0) : 0,
      mtime: fields.number(TAG.MTIME) ?? 0,
      uid: fields.number(TAG.UID, 0xffff_ffff) ?? 0,
      gid: fields.number(TAG.GID, 0xffff_ffff) ?? 0,
    })
    if (kind !== KIND.FILE) this.#put(0, { kind: 'end' })
  }

  data(_channel: number, bytes: Buffer, isEnd: boolean): void {
    if (!this.#inFile) {
      this.stream?.accuse('it sent bytes of no file')
      return
    }
    if (bytes.length > 0) this.#put(bytes.length, { kind: 'data', bytes })
    if (!isEnd) return
    this.#inFile = false
    this.#put(0, { kind: 'end' })
  }

  end(fields: FieldReader): void {
    this.#error = refusalOf(fields, this.#what)
    this.#isOver = true
    this.#waiting?.resolve()
  }

  lost(error: AppError): void {
    this.#isOver = true
    this.#error = error
    this.#waiting?.resolve()
  }

  giveUp(error: AppError): void {
    if (this.#isOver) return
    this.stream?.abandon()
    this.lost(error)
  }

  #put(size: number, entry: CopyEntry): void {
    this.#underway += size
    if (this.#underway + this.#owed > this.window) {
      this.stream?.accuse('it sent more than it was given credit for')
      return
    }
    this.#queue.push({ entry, size })
    this.#waiting?.resolve()
  }
}

/** A relative path that stays below where it begins, whatever the guest had in mind. */
const isInside = (path: string): boolean =>
  path !== '' && !path.startsWith('/') && !path.includes('\0') && path.split('/').every((name) => name !== '' && name !== '..')

export function checkPath(path: string): string {
  if (!path.startsWith('/')) throw new AppError('invalid_path', `${JSON.stringify(path)} is not an absolute path`)
  // PATH_MAX with its NUL.
  if (Buffer.byteLength(path) > 4095) throw new AppError('invalid_path', 'The path is longer than 4095 bytes')
  return checkText(path)
}
