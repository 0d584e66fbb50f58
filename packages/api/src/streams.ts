/**
 * What travels on streams: Server-Sent Events, and the WebSocket frames of exec and cp. Pure; both ends use it. docs/streams.md
 * tells the whole of it in words.
 */

// --- Server-Sent Events

export interface SseMessage {
  /** Without it only the id is told, from which a reader that comes back can go on. */
  readonly data?: string
  readonly id?: string
  readonly event?: string
  /** The server has said that nothing follows, ever: it was not the connection that ended. */
  readonly isEnd?: true
}

/** The id to go on from, told in a comment: no reader takes it for a message, and only ours knows what it says. */
export interface SsePlace {
  readonly place: string
}

/** One message. `data` must hold no line break: JSON never does. */
export function encodeSse(message: SseMessage | SsePlace): string {
  if ('place' in message) return `${PLACE_LINE}${message.place}\n`
  const id = message.id === undefined ? '' : `id: ${message.id}\n`
  const event = message.event === undefined ? '' : `event: ${message.event}\n`
  const data = message.data === undefined ? '' : `data: ${message.data}\n`
  return `${id}${event}${data}\n`
}

// Comments end with their line: some of the published clients take each blank line for the end of a message, and have none.

/** The last that a stream says when it has come to its end by itself. Readers who do not know it skip it, as any comment. */
export const SSE_END = ': end\n'

/** A line that readers skip; keeps idle connections open and shows who has gone. */
export const SSE_HEARTBEAT = ':\n'

const END_LINE = SSE_END.trimEnd()
const PLACE_LINE = ': at '

/** Longest line that a reader takes. The daemon cuts log lines far below it. */
const SSE_LINE_MAX = 4 * 1024 * 1024

/**
 * The messages of a byte stream, each with the id that holds for it. Comment lines are passed over; a stream that is cut mid-message
 * ends without it.
 */
export async function* decodeSse(bytes: AsyncIterable<Uint8Array>): AsyncGenerator<SseMessage & { readonly data: string }> {
  for await (const message of decodePlaces(bytes)) if (message.data !== undefined) yield message as typeof message & { data: string }
}

/** The same with what only says where the stream stands: ids without a message, in comments too, and its end. */
export async function* decodePlaces(bytes: AsyncIterable<Uint8Array>): AsyncGenerator<SseMessage> {
  let data: string[] = []
  let id: string | undefined
  let isNewId = false
  let event: string | undefined
  for await (const line of lines(bytes)) {
    if (line === '') {
      if (data.length > 0) yield { data: data.join('\n'), ...(id !== undefined && { id }), ...(event !== undefined && { event }) }
      else if (isNewId && id !== undefined) yield { id }
      data = []
      isNewId = false
      event = undefined
      continue
    }
    if (line === END_LINE) yield { isEnd: true }
    if (line.startsWith(PLACE_LINE)) {
      id = line.slice(PLACE_LINE.length)
      yield { id }
    }
    const colon = line.indexOf(':')
    if (colon === 0) continue
    const field = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1)
    if (field === 'data') data.push(value)
    else if (field === 'event') event = value
    else if (field === 'id') {
      id = value
      isNewId = true
    }
  }
}

async function* lines(bytes: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder()
  let rest = ''
  for await (const chunk of bytes) {
    const parts = (rest + decoder.decode(chunk, { stream: true })).split('\n')
    rest = parts.pop() ?? ''
    if (rest.length > SSE_LINE_MAX) throw new Error('The server sent a line that is too long')
    for (const part of parts) yield part.endsWith('\r') ? part.slice(0, -1) : part
  }
}

// --- exec

/** The first frame of an exec, text. An empty command is `/bin/sh`. */
export interface ExecStart {
  readonly command?: readonly string[]
  readonly tty?: boolean
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  readonly user?: string
  /** Seconds, after which it is killed and answers 124; 2147483 at most. */
  readonly timeout?: number
  /** Taken from the published clients and without effect: an instance that is not Running yet is refused before the first frame. */
  readonly wait_for_agent?: number
  readonly rows?: number
  readonly cols?: number
  /** Binary frames begin with a channel byte, and stdin can be ended; see `CHANNEL`. */
  readonly separate_streams?: boolean
  /**
   * With `separate_streams`: how many bytes of each output may be on their way before the caller has said by `credit` that it has
   * taken them. For callers whose WebSocket cannot be read slowly, as those of browsers cannot. Their stdin then has a window as well,
   * `STDIN_WINDOW`, so that what they say never waits behind input that no one reads.
   */
  readonly window?: number
}

/** What a `window` may be, in bytes. */
export const WINDOW = { least: 1024, most: 16 * 1024 * 1024 } as const

/** Bytes of stdin that a caller with a window may send before the daemon has said by `credit` that the guest has taken them. */
export const STDIN_WINDOW = 256 * 1024
/** What each frame of it counts beside its bytes: holding one costs more than they are, where they are few. */
export const STDIN_FRAME_COST = 64

/** Text frames of the caller after the first. */
export type ExecControl =
  | { readonly resize: { readonly rows: number; readonly cols: number } }
  | { readonly signal: string }
  | { readonly stdin: 'eof' }
  | { readonly credit: { readonly channel: OutputChannel; readonly bytes: number } }

/** Text frames of the server. The exit code is the last frame of all. `credit` comes to callers with a window: bytes of stdin that were taken. */
export type ExecNotice =
  | { readonly exitCode: number; readonly message?: string }
  | { readonly error: string; readonly code?: string }
  | { readonly credit: number }

/** With `separate_streams` each binary frame of the server begins with one of these; those of the caller are plain stdin. */
export const CHANNEL = { stdout: 1, stderr: 2 } as const
export type OutputChannel = keyof typeof CHANNEL

/** Exit codes that stand for how it ended, as shells have them. */
export const EXIT = { timedOut: 124, notExecutable: 126, notFound: 127 } as const

/** No binary frame of the server is longer. */
export const FRAME_MAX = 32 * 1024

/** Splits an output frame into its channel and its bytes. Undefined when the channel is none of ours. */
export function decodeOutput(frame: Uint8Array): { readonly channel: OutputChannel; readonly bytes: Uint8Array } | undefined {
  const bytes = frame.subarray(1)
  if (frame[0] === CHANNEL.stdout) return { channel: 'stdout', bytes }
  if (frame[0] === CHANNEL.stderr) return { channel: 'stderr', bytes }
  return undefined
}

// --- cp

/** The first frame of a copy, text. */
export interface CopyStart {
  readonly direction: 'to' | 'from'
  readonly guest_path: string
  readonly is_dir?: boolean
  readonly mode?: number
  readonly follow_links?: boolean
  readonly src_basename?: string
  readonly uid?: number
  readonly gid?: number
  /** Out of the guest: how many bytes may be on their way before the caller has said by `CopyCredit` that it has taken them. */
  readonly window?: number
}

/** What the caller of a copy with a window says of what it has taken. A header counts as `HEADER_COST` bytes. */
export interface CopyCredit {
  readonly type: 'credit'
  readonly bytes: number
}
export const HEADER_COST = 1024

/** Text frames of the server in a copy out of the guest. Paths are relative and begin with the name of what was asked for. */
export interface CopyHeader {
  readonly type: 'header'
  readonly path: string
  readonly mode: number
  readonly is_dir: boolean
  readonly is_symlink?: boolean
  readonly link_target?: string
  readonly size: number
  /** Seconds since 1970. */
  readonly mtime: number
  readonly uid?: number
  readonly gid?: number
}

export type CopyNotice =
  | CopyHeader
  | { readonly type: 'end'; readonly final: boolean }
  | { readonly type: 'error'; readonly message: string; readonly path?: string; readonly code?: string }
  | { readonly type: 'result'; readonly success: boolean; readonly error?: string; readonly bytes_written?: number; readonly code?: string }

/** What the caller sends after the last byte of a copy into the guest. */
export const COPY_END = { type: 'end' } as const
