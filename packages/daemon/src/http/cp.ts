/** Files into and out of a guest, over a WebSocket. The frames are described in docs/streams.md. */
import { AppError } from '@dormouse/api/errors.ts'
import { type CopyCredit, type CopyStart, FRAME_MAX, HEADER_COST, WINDOW } from '@dormouse/api/streams.ts'
import { Type } from 'typebox'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import { FIRST_FRAME_MS, readFirstFrame } from './first-frame.ts'
import { StreamCredit } from './stream-credit.ts'
import type { GuestDoor } from './uses.ts'
import type { Frame, WebSocketPeer } from './web-socket-peer.ts'

const Start = Type.Object(
  {
    direction: Type.Enum(['to', 'from']),
    guest_path: Type.String({ minLength: 1, maxLength: 4096, pattern: '^/[^\\u0000]*$', description: 'an absolute path' }),
    is_dir: Type.Optional(Type.Boolean()),
    mode: Type.Optional(Type.Integer({ minimum: 0, maximum: 0o177777 })),
    follow_links: Type.Optional(Type.Boolean()),
    src_basename: Type.Optional(Type.String({ maxLength: 255, pattern: '^[^/\\u0000]*$', description: 'a name without slashes' })),
    uid: Type.Optional(Type.Integer({ minimum: 0, maximum: 0xffff_fffe })),
    gid: Type.Optional(Type.Integer({ minimum: 0, maximum: 0xffff_fffe })),
    window: Type.Optional(Type.Integer({ minimum: WINDOW.least, maximum: WINDOW.most })),
  },
  { additionalProperties: false },
)

/** The published client still writes its last file when it has read the last frame, and takes a close before that for a failure. */
const LEAVE_MS = 5_000

export interface CopyUses {
  readonly guest: GuestDoor
  readonly log: Logger
  readonly closing: AbortSignal
}

export async function copyFiles(peer: WebSocketPeer, { guest, log, closing }: CopyUses): Promise<void> {
  using _ = peer
  const step: Step = { signal: AbortSignal.any([peer.gone, closing]), log }
  let start: CopyStart | undefined
  try {
    start = readFirstFrame(Start, await peer.next(FIRST_FRAME_MS), 'what to copy,') as CopyStart
    if (start.direction === 'to') await copyIn(peer, guest, start, step)
    else await copyOut(peer, guest, start, step)
  } catch (error) {
    log.debug({ err: error }, 'copy failed')
    const message = error instanceof AppError ? error.message : 'The guest did not answer'
    const code = error instanceof AppError ? error.code : 'guest_unavailable'
    if (start?.direction === 'to') await peer.sendJson({ type: 'result', success: false, error: message, code })
    else await peer.sendJson({ type: 'error', message, code, ...(start && { path: start.guest_path }) })
  }
  await peer.leave(LEAVE_MS)
}

async function copyIn(peer: WebSocketPeer, guest: GuestDoor, start: CopyStart, step: Step): Promise<void> {
  const isDir = start.is_dir === true
  const { bytesWritten } = await guest.copyTo(
    {
      path: await targetOf(guest, start, step),
      isDir,
      mode: (start.mode ?? (isDir ? 0o755 : 0o644)) & 0o7777,
      // As the published server has it: an owner is set only when both are given and neither is root.
      ...((start.uid ?? 0) > 0 && (start.gid ?? 0) > 0 && { uid: start.uid, gid: start.gid }),
    },
    incoming(peer),
    step,
  )
  await peer.sendJson({ type: 'result', success: true, bytes_written: bytesWritten })
}

/** A file that is copied onto a directory lands inside it, when the caller says by which name. */
async function targetOf(guest: GuestDoor, start: CopyStart, step: Step): Promise<string> {
  const { guest_path: path, src_basename: name } = start
  if (start.is_dir === true || name === undefined || name === '' || name === '.' || name === '..') return path
  const { is_dir: isDir } = await guest.stat(path, { followLinks: true }, step)
  return isDir === true ? `${path.replace(/\/+$/, '')}/${name}` : path
}

/** The file's bytes, until the caller says that it was all. A caller who leaves before has sent half a file. */
async function* incoming(peer: WebSocketPeer): AsyncGenerator<Uint8Array> {
  for await (const frame of peer.frames()) {
    if (!frame.isText) yield frame.data
    else if (isEnd(frame)) return
    else throw new AppError('invalid_request', 'A text frame came that is not the end of the file')
  }
  throw new AppError('invalid_request', 'The connection closed before the end of the file')
}

async function copyOut(peer: WebSocketPeer, guest: GuestDoor, start: CopyStart, step: Step): Promise<void> {
  // The end of an entry is sent once the next has begun: only then is it known that it was not the last.
  let isOpen = false
  const credit = new StreamCredit(start.window)
  peer.gone.addEventListener('abort', () => credit.close())
  if (start.window !== undefined) void takeCredit(peer, credit)
  for await (const entry of guest.copyFrom(start.guest_path, { followLinks: start.follow_links ?? false }, step)) {
    if (entry.kind === 'data') {
      for (const chunk of chunksOf(entry.bytes)) {
        await credit.takeWhole(chunk.length)
        await peer.send(chunk)
      }
    } else if (entry.kind === 'header') {
      if (isOpen) await peer.sendJson({ type: 'end', final: false })
      isOpen = true
      const { kind: _, ...header } = entry
      await credit.takeWhole(HEADER_COST)
      await peer.sendJson({
        type: 'header',
        path: header.path,
        mode: header.mode,
        is_dir: header.isDir,
        ...(header.linkTarget !== undefined && { is_symlink: true, link_target: header.linkTarget }),
        size: header.size,
        mtime: header.mtime,
        uid: header.uid,
        gid: header.gid,
      })
    }
    if (peer.gone.aborted) return
  }
  await peer.sendJson({ type: 'end', final: true })
}

/** What else a caller says who reads at his own pace is of no interest. */
async function takeCredit(peer: WebSocketPeer, credit: StreamCredit): Promise<void> {
  for await (const frame of peer.frames()) {
    const value = frame.isText ? (parse(frame) as Partial<CopyCredit> | null | undefined) : undefined
    if (value?.type === 'credit' && Number.isSafeInteger(value.bytes) && Number(value.bytes) > 0) credit.grant(Number(value.bytes))
  }
}

/**
 * Frames of a file's bytes. The published client takes a binary frame that happens to be valid JSON for a message and loses it,
 * so such bytes are cut in two, neither of which is JSON.
 */
export function* chunksOf(bytes: Uint8Array): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += FRAME_MAX) {
    let chunk = bytes.subarray(at, at + FRAME_MAX)
    while (looksLikeMessage(chunk)) {
      // An opening bracket alone is no JSON, and what follows it has a closing one too many.
      yield chunk.subarray(0, 1)
      chunk = chunk.subarray(1)
    }
    if (chunk.length > 0) yield chunk
  }
}

function looksLikeMessage(chunk: Uint8Array): boolean {
  if (chunk[0] !== 0x7b && chunk[0] !== 0x5b) return false
  try {
    JSON.parse(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length).toString())
    return true
  } catch {
    return false
  }
}

const isEnd = (frame: Frame): boolean => (parse(frame) as { type?: unknown } | null | undefined)?.type === 'end'

function parse(frame: Frame): unknown {
  try {
    return JSON.parse(frame.data.toString())
  } catch {
    return undefined
  }
}
