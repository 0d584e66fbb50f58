/** From this host into a guest: one connection per file or directory, as the API has it; a few at a time. */
import { createReadStream, type Stats } from 'node:fs'
import { lstat, readdir, stat } from 'node:fs/promises'
import { basename, join, posix, resolve } from 'node:path'
import { AppError, ERROR_CODES } from '@dormouse/api/errors.ts'
import { COPY_END, type CopyNotice, type CopyStart } from '@dormouse/api/streams.ts'
import type { Daemon } from '../daemon.ts'
import { EXIT, Failure } from '../failure.ts'
import { Socket } from '../socket.ts'
import type { CopyReport } from './copy-out.ts'

export interface CopyInOptions {
  /** Owner and group go along. */
  readonly keepOwner?: boolean
  readonly onBytes?: (bytes: number) => void
}

const AT_ONCE = 4

/** Copies `source` as `cp -rL` would. Links to files become files; links to directories and special files are left out and reported. */
export async function copyIn(
  daemon: Daemon,
  source: string,
  instance: string,
  guestPath: string,
  options: CopyInOptions = {},
): Promise<CopyReport> {
  const contentsOnly = /(^|\/)\.$/.test(source)
  const found = await stat(source).catch((cause: NodeJS.ErrnoException) => {
    throw new Failure(`Cannot read ${source}: ${cause.code === 'ENOENT' ? 'it is not there' : cause.message}`, {
      exitCode: EXIT.notFound,
      cause,
    })
  })
  if (!found.isDirectory() && !found.isFile()) throw new Failure(`${source} is neither a file nor a directory`)
  const target = await targetOf(daemon, instance, guestPath, found, contentsOnly ? undefined : basename(resolve(source)))

  const copy = new Copy(daemon, instance, options)
  if (found.isDirectory()) await copy.directory(resolve(source), target, found)
  else await copy.file(resolve(source), target, found)
  return copy
}

async function targetOf(daemon: Daemon, instance: string, guestPath: string, source: Stats, name: string | undefined): Promise<string> {
  const there = await daemon.call('statInstancePath', { params: { id: instance }, query: { path: guestPath, follow_links: true } })
  if (there.exists && !there.is_dir && source.isDirectory())
    throw new Failure(`${guestPath} in ${instance} is a file; a directory cannot be copied onto it`, { exitCode: EXIT.conflict })
  const isInto = there.exists ? there.is_dir === true : guestPath.endsWith('/') && !source.isDirectory()
  return isInto && name !== undefined ? posix.join(guestPath, name) : posix.join(guestPath, '.')
}

class Copy implements CopyReport {
  readonly #daemon: Daemon
  readonly #instance: string
  readonly #options: CopyInOptions
  files = 0
  bytes = 0
  readonly skipped: string[] = []

  constructor(daemon: Daemon, instance: string, options: CopyInOptions) {
    this.#daemon = daemon
    this.#instance = instance
    this.#options = options
  }

  /** The directory first, then its files a few at a time, then the directories in it. */
  async directory(source: string, target: string, found: Stats): Promise<void> {
    await this.#send({ direction: 'to', guest_path: target, is_dir: true, ...this.#attributesOf(found) }, [])
    const directories: { path: string; target: string; found: Stats }[] = []
    const files: { path: string; target: string; found: Stats }[] = []
    for (const name of (await readdir(source)).sort()) {
      const path = join(source, name)
      const isLink = (await lstat(path)).isSymbolicLink()
      const each = await stat(path).catch(() => undefined)
      if (each?.isFile()) files.push({ path, target: posix.join(target, name), found: each })
      else if (each?.isDirectory() && !isLink) directories.push({ path, target: posix.join(target, name), found: each })
      else this.skipped.push(path)
    }
    const queue = files.values()
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        for (const file of queue) await this.file(file.path, file.target, file.found)
      }),
    )
    for (const each of directories) await this.directory(each.path, each.target, each.found)
  }

  async file(source: string, target: string, found: Stats): Promise<void> {
    await this.#send({ direction: 'to', guest_path: target, ...this.#attributesOf(found) }, createReadStream(source))
    this.files++
  }

  #attributesOf(found: Stats): Pick<CopyStart, 'mode' | 'uid' | 'gid'> {
    return { mode: found.mode & 0o7777, ...(this.#options.keepOwner && { uid: found.uid, gid: found.gid }) }
  }

  async #send(start: CopyStart, content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<void> {
    using socket = await Socket.open(this.#daemon, 'copyInstanceFiles', this.#instance)
    await socket.sendJson(start)
    const answered = resultOf(socket, start.guest_path)
    // It may come early, as a refusal: then the rest of the file is not sent.
    let isAnswered = false
    const settled = answered.finally(() => {
      isAnswered = true
    })
    settled.catch(() => {})
    for await (const piece of content) {
      if (isAnswered) break
      await socket.sendBytes(piece)
      this.bytes += piece.length
      this.#options.onBytes?.(this.bytes)
    }
    if (!isAnswered) await socket.sendJson(COPY_END)
    await settled
  }
}

async function resultOf(socket: Socket, path: string): Promise<void> {
  for (;;) {
    const frame = await socket.next()
    if (frame === undefined) throw new Failure(`The daemon ended the connection before ${path} was copied`)
    if (frame.kind === 'bytes') continue
    const notice = JSON.parse(frame.text) as CopyNotice & { readonly code?: string }
    if (notice.type === 'result' && notice.success) return
    const message = notice.type === 'result' ? notice.error : notice.type === 'error' ? notice.message : undefined
    if (message !== undefined) throw new AppError(ERROR_CODES.find((code) => code === notice.code) ?? 'internal_error', message)
  }
}
