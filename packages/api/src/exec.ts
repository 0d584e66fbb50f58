/** A command in a guest, as its caller holds it. The frames are described in docs/streams.md. */
import { AppError, ERROR_CODES } from './errors.ts'
import { cutOff, type FrameSocket, noticeOf } from './frame-socket.ts'
import {
  decodeOutput,
  type ExecControl,
  type ExecNotice,
  type ExecStart,
  FRAME_MAX,
  type OutputChannel,
  STDIN_FRAME_COST,
  STDIN_WINDOW,
} from './streams.ts'

export interface ExecOptions {
  /** A terminal: one output, which is stdout, and a window that can be resized. */
  readonly tty?: boolean | undefined
  readonly rows?: number | undefined
  readonly cols?: number | undefined
  /** Over the instance's own. */
  readonly env?: Readonly<Record<string, string>> | undefined
  readonly cwd?: string | undefined
  readonly user?: string | undefined
  /** It is killed then, and its exit code is 124. */
  readonly timeoutMs?: number | undefined
  /** Hangs up when it aborts, which ends the command. */
  readonly signal?: AbortSignal | undefined
}

export interface ExecExit {
  /** The program's own; 124 after its timeout, 126 and 127 when it could not be run, 128 + n after signal n. */
  readonly exitCode: number
  /** How it ended, in words, where the code alone does not say it. */
  readonly message: string
}

/** How much of each output may be on its way or wait here, in bytes. */
const WINDOW_BYTES = 512 * 1024

/**
 * A command that runs. Its outputs are read at your pace: what is not read holds the command back, and never fills memory. So read both
 * at the same time; who wants none of one leaves its loop at once. Hanging up (`close`, the signal) ends it with all that it has started.
 */
export class Command implements Disposable {
  /** Read once. Ends with the command; what it wrote before is kept until you have read it. */
  readonly stdout: AsyncIterable<Uint8Array>
  readonly stderr: AsyncIterable<Uint8Array>
  /** Rejects with `AppError` when the guest or the daemon was lost before the end: how the command ended is then not known. */
  readonly exit: Promise<ExecExit>
  readonly #socket: FrameSocket
  readonly #outputs: Readonly<Record<OutputChannel, Output>>
  #stdinLeft = STDIN_WINDOW
  #isOver = false
  #wake: (() => void) | undefined

  constructor(socket: FrameSocket) {
    this.#socket = socket
    const output = (channel: OutputChannel) => new Output((bytes) => this.#control({ credit: { channel, bytes } }))
    this.#outputs = { stdout: output('stdout'), stderr: output('stderr') }
    this.stdout = this.#outputs.stdout
    this.stderr = this.#outputs.stderr
    this.exit = this.#listen().finally(() => {
      this.#isOver = true
      this.#wake?.()
      socket.close()
    })
    // Whoever only reads the output hears of the loss there.
    this.exit.catch(() => undefined)
  }

  /** To its standard input. Resolves when the next may come, one at a time; after the command's end it goes nowhere. */
  async write(input: string | Uint8Array): Promise<void> {
    const bytes = typeof input === 'string' ? new TextEncoder().encode(input) : input
    for (let at = 0; at < bytes.length && !this.#isOver; ) {
      const room = Math.min(this.#stdinLeft - STDIN_FRAME_COST, FRAME_MAX)
      if (room <= 0) {
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
        continue
      }
      const piece = bytes.subarray(at, at + room)
      this.#stdinLeft -= piece.length + STDIN_FRAME_COST
      at += piece.length
      await this.#socket.sendBytes(piece)
    }
  }

  /** No more input comes: what reads it sees its end. */
  endInput(): void {
    this.#control({ stdin: 'eof' })
  }

  /** To the program and what it runs in the foreground, by name: `SIGTERM`. */
  signal(name: string): void {
    this.#control({ signal: name })
  }

  resize(rows: number, cols: number): void {
    this.#control({ resize: { rows, cols } })
  }

  /** Hangs up. Repeat is harmless. */
  close(): void {
    this.#socket.close()
  }

  /** For `using`, where there is such a thing. */
  [Symbol.dispose](): void {
    this.close()
  }

  #control(control: ExecControl): void {
    this.#socket.sendJson(control)
  }

  async #listen(): Promise<ExecExit> {
    try {
      const exit = await this.#hear()
      for (const output of Object.values(this.#outputs)) output.end()
      return exit
    } catch (error) {
      for (const output of Object.values(this.#outputs)) output.end(error)
      throw error
    }
  }

  async #hear(): Promise<ExecExit> {
    // Said of the first frame it is the last word; said of a later one, the command goes on.
    let refusal: AppError | undefined
    for (;;) {
      const frame = await this.#socket.next()
      if (frame === undefined) throw refusal ?? cutOff('the command had ended')
      if (frame.kind === 'bytes') {
        const output = decodeOutput(frame.bytes)
        if (output) this.#outputs[output.channel].push(output.bytes)
        continue
      }
      const notice = noticeOf<ExecNotice>(frame.text)
      if (notice === undefined) continue
      if ('exitCode' in notice) return { exitCode: notice.exitCode, message: notice.message ?? '' }
      if ('credit' in notice) {
        this.#stdinLeft += notice.credit
        this.#wake?.()
        continue
      }
      refusal = new AppError(ERROR_CODES.find((code) => code === notice.code) ?? 'internal_error', notice.error)
    }
  }
}

/** The first frame of a command. */
export function startOf(command: readonly string[], options: ExecOptions): ExecStart {
  const { tty, rows, cols, env, cwd, user, timeoutMs } = options
  return {
    command,
    separate_streams: true,
    window: WINDOW_BYTES,
    ...(tty !== undefined && { tty }),
    ...(rows !== undefined && { rows }),
    ...(cols !== undefined && { cols }),
    ...(env !== undefined && { env }),
    ...(cwd !== undefined && { cwd }),
    ...(user !== undefined && { user }),
    ...(timeoutMs !== undefined && { timeout: timeoutMs / 1000 }),
  }
}

/** What has come of one output and was not read yet; at most a window. */
class Output implements AsyncIterable<Uint8Array> {
  readonly #chunks: Uint8Array[] = []
  readonly #repay: (bytes: number) => void
  #owed = 0
  #ended: { readonly error?: unknown } | undefined
  #wake: (() => void) | undefined

  constructor(repay: (bytes: number) => void) {
    this.#repay = repay
  }

  push(bytes: Uint8Array): void {
    // Whoever has stopped reading wants none of it, and the command must not stand still for that.
    if (this.#ended) this.#repay(bytes.length)
    else this.#chunks.push(bytes)
    this.#wake?.()
  }

  end(error?: unknown): void {
    this.#ended ??= error === undefined ? {} : { error }
    this.#wake?.()
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      for (;;) {
        const chunk = this.#chunks.shift()
        if (chunk !== undefined) {
          this.#take(chunk.length)
          yield chunk
        } else if (this.#ended) {
          if (this.#ended.error !== undefined) throw this.#ended.error
          return
        } else
          await new Promise<void>((resolve) => {
            this.#wake = resolve
          })
      }
    } finally {
      for (const chunk of this.#chunks.splice(0)) this.#owed += chunk.length
      this.end()
      if (this.#owed > 0) this.#repay(this.#owed)
      this.#owed = 0
    }
  }

  /** Told of in large pieces: a frame for each would cost more than it gives back. */
  #take(bytes: number): void {
    this.#owed += bytes
    if (this.#owed < WINDOW_BYTES / 4) return
    this.#repay(this.#owed)
    this.#owed = 0
  }
}
