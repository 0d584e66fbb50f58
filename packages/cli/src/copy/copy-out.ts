/** From a guest to this host, or to a tar stream. */
import { realpath, stat } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { AppError, ERROR_CODES } from '@dormouse/api/errors.ts'
import type { CopyHeader, CopyNotice } from '@dormouse/api/streams.ts'
import type { Daemon } from '../daemon.ts'
import { EXIT, Failure } from '../failure.ts'
import { writeOut } from '../output/write-out.ts'
import { Socket } from '../socket.ts'
import { parseEntryPath } from './entry-path.ts'
import { tarEnd, tarHeader, tarPadding } from './tar.ts'
import { type TreeOptions, TreeWriter } from './tree-writer.ts'

export interface CopyReport {
  readonly files: number
  readonly bytes: number
  readonly skipped: readonly string[]
}

export interface CopyOutOptions extends TreeOptions {
  readonly followLinks?: boolean
  readonly onBytes?: (bytes: number) => void
}

type Piece =
  | { readonly kind: 'header'; readonly below: readonly string[]; readonly header: CopyHeader }
  | { readonly kind: 'data'; readonly bytes: Uint8Array }
  | { readonly kind: 'end' }

/** Copies `guestPath` as `cp -r` would: into `target` when it is a directory, else as `target`. `dir/.` means what is in the directory. */
export async function copyOut(
  daemon: Daemon,
  instance: string,
  guestPath: string,
  target: string,
  options: CopyOutOptions = {},
): Promise<CopyReport> {
  const contentsOnly = /\/\.$/.test(guestPath)
  const { root, isInto } = await rootOf(target, guestPath, contentsOnly)
  await using writer = new TreeWriter(root, options)
  let isAnything = false
  for await (const piece of piecesOf(daemon, instance, guestPath, options)) {
    if (piece.kind === 'header') {
      isAnything = true
      const isLoneFile = piece.below.length === 0 && !piece.header.is_dir
      if (isLoneFile && !isInto && target.endsWith('/')) throw new Failure(`There is no directory ${target}`, { exitCode: EXIT.notFound })
      await writer.begin(piece.below, piece.header)
    } else if (piece.kind === 'data') {
      await writer.write(piece.bytes)
      options.onBytes?.(writer.bytes)
    } else await writer.end()
  }
  await writer.finish()
  if (!isAnything) throw nothing(guestPath)
  return { files: writer.files, bytes: writer.bytes, skipped: writer.skipped }
}

/** The name is what the caller asked for, never what the guest calls it. */
async function rootOf(target: string, guestPath: string, contentsOnly: boolean): Promise<{ root: string; isInto: boolean }> {
  const found = await stat(target).catch(() => undefined)
  if (found?.isDirectory()) {
    // Where a link of the caller's own leads is the caller's choice; below it none is followed.
    const directory = await realpath(target)
    return { root: contentsOnly ? directory : join(directory, basename(guestPath) || 'root'), isInto: true }
  }
  const parent = dirname(resolve(target))
  if (!(await stat(parent).catch(() => undefined))?.isDirectory())
    throw new Failure(`There is no directory ${parent}`, { exitCode: EXIT.notFound })
  return { root: resolve(target), isInto: false }
}

/** `cp NAME:PATH -`: the same as a tar stream on standard output. */
export async function copyOutAsTar(
  daemon: Daemon,
  instance: string,
  guestPath: string,
  options: { followLinks?: boolean } = {},
): Promise<void> {
  const name = basename(guestPath) === '.' || basename(guestPath) === '' ? '.' : basename(guestPath)
  let left = 0
  let size = 0
  for await (const piece of piecesOf(daemon, instance, guestPath, options)) {
    if (piece.kind === 'header') {
      const { header } = piece
      const kind = header.is_symlink ? 'link' : header.is_dir ? 'directory' : 'file'
      size = left = kind === 'file' ? header.size : 0
      const path = [name, ...piece.below].join('/') + (kind === 'directory' ? '/' : '')
      await writeOut(
        process.stdout,
        tarHeader({
          path,
          kind,
          mode: header.mode,
          size,
          mtimeSeconds: header.mtime,
          linkTarget: header.link_target ?? '',
          uid: header.uid ?? 0,
          gid: header.gid ?? 0,
        }),
      )
    } else if (piece.kind === 'data') {
      left -= piece.bytes.length
      if (left < 0) throw changed(guestPath)
      await writeOut(process.stdout, piece.bytes)
    } else {
      if (left > 0) throw changed(guestPath)
      await writeOut(process.stdout, tarPadding(size))
      size = 0
    }
  }
  await writeOut(process.stdout, tarEnd())
}

const nothing = (path: string): Failure => new Failure(`${path} is neither a file, nor a directory, nor a link`)
const changed = (path: string): Failure => new Failure(`A file in ${path} changed its size while it was copied`, { hint: 'Copy it again' })

/** What the guest sends, each name checked. */
async function* piecesOf(daemon: Daemon, instance: string, guestPath: string, options: { followLinks?: boolean }): AsyncGenerator<Piece> {
  using socket = await Socket.open(daemon, 'copyInstanceFiles', instance)
  await socket.sendJson({
    direction: 'from',
    guest_path: guestPath.replace(/\/\.$/, '') || '/',
    follow_links: options.followLinks === true,
  })
  let root: string | undefined
  for (;;) {
    const frame = await socket.next()
    if (frame === undefined) throw new Failure('The daemon ended the connection before the copy was over')
    if (frame.kind === 'bytes') {
      yield { kind: 'data', bytes: frame.bytes }
      continue
    }
    const notice = JSON.parse(frame.text) as CopyNotice
    switch (notice.type) {
      case 'header': {
        const [first = '', ...below] = parseEntryPath(notice.path.replace(/^\/+$/, 'root'))
        root ??= first
        if (first !== root) throw new Failure(`The guest sent a second root: ${JSON.stringify(notice.path)}`, { code: 'invalid_path' })
        yield { kind: 'header', below, header: notice }
        break
      }
      case 'end':
        yield { kind: 'end' }
        if (notice.final) return
        break
      case 'error':
        throw new AppError(ERROR_CODES.find((code) => code === notice.code) ?? 'internal_error', notice.message)
      case 'result':
        break
    }
  }
}
