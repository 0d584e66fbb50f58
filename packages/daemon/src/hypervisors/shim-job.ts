import type { Socket } from 'node:net'
import { AppError } from '@dormouse/api/errors.ts'
import { workerError } from '../host/disk-full.ts'
import { connectTo } from '../host/unix-socket.ts'
import type { Step } from '../lib/step.ts'

/** No answer of a shim's comes near it. */
const MAX_LINE = 4096
/** How long a worker that was hung up on may take to remove its files: it may be in the middle of a flush. */
const HANG_UP_LIMIT_MS = 5000

/**
 * One job of a shim, on a connection of its own. The worker that does it ends with the connection: when the step's signal aborts we
 * hang up, and wait for the other side to close, so that who is told has nothing of the job's left beside it.
 */
export class ShimJob implements Disposable {
  readonly #socket: Socket
  readonly #what: string
  readonly #signal: AbortSignal
  readonly #closed: Promise<void>
  readonly #lines: string[] = []
  #wake: () => void = () => undefined
  #text = ''
  #isClosed = false

  private constructor(socket: Socket, what: string, signal: AbortSignal) {
    this.#socket = socket
    this.#what = what
    this.#signal = signal
    socket.setEncoding('utf8')
    socket.on('data', (chunk: string) => this.#read(chunk))
    socket.on('error', () => undefined)
    this.#closed = new Promise((resolve) => {
      socket.once('close', () => {
        this.#isClosed = true
        this.#wake()
        resolve()
      })
    })
  }

  /** Asks the shim of `runDir` for a job; `what` is said of it in errors, as in "could not <what>". */
  static async start(file: string, words: readonly string[], what: string, step: Step): Promise<ShimJob> {
    const job = new ShimJob(await connectTo(file, step), what, step.signal)
    if (words.length > 0) job.ask(words)
    return job
  }

  ask(words: readonly string[]): void {
    const request = words.join(' ')
    if (request.includes('\n')) {
      this.#socket.destroy()
      throw new AppError('invalid_path', `A path with a line break in it cannot be handed on: ${request}`)
    }
    this.#socket.write(`${request}\n`)
  }

  /** The next line, which must look like `expected`. Anything else is an error, after which the job is over and has left nothing. */
  async answer(expected: RegExp): Promise<RegExpExecArray> {
    const onAbort = (): void => this.#wake()
    this.#signal.addEventListener('abort', onAbort, { once: true })
    try {
      while (this.#lines.length === 0 && !this.#isClosed && !this.#signal.aborted)
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
    } finally {
      this.#signal.removeEventListener('abort', onAbort)
    }
    const line = this.#lines.shift()
    const match = line === undefined ? null : expected.exec(line)
    if (match !== null) return match
    await this.#hangUp()
    if (line === undefined && this.#signal.aborted)
      throw new AppError('timed_out', `Gave up before the VM's shim could ${this.#what}`, { cause: this.#signal.reason })
    throw workerError(`The VM's shim could not ${this.#what}`, line)
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }

  /** The worker sees the end of what we send, cleans up and closes its side. */
  async #hangUp(): Promise<void> {
    this.#socket.end()
    const { promise: late, resolve } = Promise.withResolvers<void>()
    const timer = setTimeout(resolve, HANG_UP_LIMIT_MS)
    await Promise.race([this.#closed, late])
    clearTimeout(timer)
    this.#socket.destroy()
  }

  #read(chunk: string): void {
    this.#text += chunk
    const lines = this.#text.split('\n')
    this.#text = lines.pop() ?? ''
    this.#lines.push(...lines)
    if (this.#text.length > MAX_LINE) this.#socket.destroy()
    if (lines.length > 0) this.#wake()
  }
}
