import type { Socket } from 'node:net'
import { AppError } from '@dormouse/api/errors.ts'
import { connectTo } from '../../host/unix-socket.ts'
import type { Step } from '../../lib/step.ts'

/** What QEMU answers no to. */
export class QmpError extends Error {
  override readonly name = 'QmpError'
  readonly command: string
  constructor(command: string, description: string) {
    super(`QEMU refused ${command}: ${description}`)
    this.command = command
  }
}

type EventData = Readonly<Record<string, unknown>>

interface Pending {
  readonly command: string
  resolve(value: unknown): void
  reject(error: unknown): void
}

/** A line longer than this is no answer of ours; the VMM may have been taken over by its guest. */
const MAX_LINE = 4 << 20
const MAX_EVENTS = 200

/**
 * QEMU's machine protocol: one JSON document a line, answers in the order of the commands, events in between. Only one client is
 * served at a time; QEMU takes the next one when this one closes.
 */
export class Qmp implements Disposable {
  /** Settles when the connection has ended, for any reason. */
  readonly closed: Promise<void>
  readonly #socket: Socket
  readonly #pending: Pending[] = []
  readonly #waiting = new Map<string, Set<(data: EventData) => void>>()
  readonly #seen: { readonly event: string; readonly data: EventData; readonly atMs: number | undefined }[] = []
  #text = ''

  private constructor(socket: Socket) {
    this.#socket = socket
    socket.setEncoding('utf8')
    socket.on('data', (chunk: string) => this.#read(chunk))
    socket.on('error', () => undefined)
    this.closed = new Promise((resolve) => {
      socket.once('close', () => {
        const error = new AppError('guest_unavailable', 'QEMU closed its control connection')
        for (const pending of this.#pending.splice(0)) pending.reject(error)
        resolve()
      })
    })
    this.#holdProcess()
  }

  /** The socket's backlog takes us before QEMU is up, so this may be called as soon as the shim has answered. */
  static async connect(file: string, step: Step): Promise<Qmp> {
    const qmp = new Qmp(await connectTo(file, step))
    try {
      await qmp.execute('qmp_capabilities', undefined, step)
      return qmp
    } catch (error) {
      qmp[Symbol.dispose]()
      throw error
    }
  }

  get isClosed(): boolean {
    return this.#socket.destroyed
  }

  /** Sends at once, in order; several may be under way. */
  execute(command: string, args: Readonly<Record<string, unknown>> | undefined, step: Pick<Step, 'signal'>): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const onAbort = (): void =>
        settle(() => reject(new AppError('timed_out', `QEMU did not answer ${command} in time`, { cause: step.signal.reason })))
      const settle = (how: () => void): void => {
        step.signal.removeEventListener('abort', onAbort)
        this.#holdProcess()
        how()
      }
      if (step.signal.aborted) return onAbort()
      if (this.#socket.destroyed) return reject(new AppError('guest_unavailable', 'QEMU closed its control connection'))
      step.signal.addEventListener('abort', onAbort, { once: true })
      // An answer that comes after its caller has gone is still owed: the entry stays in the queue.
      this.#pending.push({
        command,
        resolve: (value) => settle(() => resolve(value)),
        reject: (error) => settle(() => reject(error)),
      })
      this.#holdProcess()
      this.#socket.write(`${JSON.stringify(args === undefined ? { execute: command } : { execute: command, arguments: args })}\n`)
    })
  }

  /** Resolves with the data of the first `event`, of those that `matches` takes, since the connection was made. */
  async event(event: string, step: Pick<Step, 'signal'>, matches: (data: EventData) => boolean = () => true): Promise<EventData> {
    const seen = this.#seen.find((one) => one.event === event && matches(one.data))
    if (seen !== undefined) return seen.data
    return await new Promise<EventData>((resolve, reject) => {
      const onAbort = (): void =>
        finish(() => reject(new AppError('timed_out', `QEMU did not report ${event} in time`, { cause: step.signal.reason })))
      const onEvent = (data: EventData): void => {
        if (matches(data)) finish(() => resolve(data))
      }
      const finish = (how: () => void): void => {
        step.signal.removeEventListener('abort', onAbort)
        this.#waiting.get(event)?.delete(onEvent)
        this.#holdProcess()
        how()
      }
      if (step.signal.aborted) return onAbort()
      step.signal.addEventListener('abort', onAbort, { once: true })
      const waiting = this.#waiting.get(event) ?? new Set()
      this.#waiting.set(event, waiting.add(onEvent))
      this.#holdProcess()
      void this.closed.then(() => finish(() => reject(new AppError('guest_unavailable', 'QEMU closed its control connection'))))
    })
  }

  /** When the last `event` happened, by QEMU's own clock; undefined when none has since the connection was made. */
  lastAtMs(event: string): number | undefined {
    return this.#seen.findLast((one) => one.event === event)?.atMs
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }

  /** A VM must not keep a daemon from ending; a question that is under way does. */
  #holdProcess(): void {
    if (this.#pending.length > 0 || [...this.#waiting.values()].some((waiting) => waiting.size > 0)) this.#socket.ref()
    else this.#socket.unref()
  }

  #read(chunk: string): void {
    this.#text += chunk
    for (let end = this.#text.indexOf('\n'); end >= 0; end = this.#text.indexOf('\n')) {
      const line = this.#text.slice(0, end)
      this.#text = this.#text.slice(end + 1)
      this.#take(line)
    }
    if (this.#text.length > MAX_LINE) this.#socket.destroy()
  }

  #take(line: string): void {
    let message: unknown
    try {
      message = JSON.parse(line)
    } catch {
      this.#socket.destroy()
      return
    }
    if (typeof message !== 'object' || message === null) return
    if ('event' in message && typeof message.event === 'string') {
      const data: EventData = 'data' in message && typeof message.data === 'object' ? { ...message.data } : {}
      if (this.#seen.length < MAX_EVENTS) this.#seen.push({ event: message.event, data, atMs: timeOf(message) })
      for (const onEvent of this.#waiting.get(message.event) ?? []) onEvent(data)
    } else if ('return' in message) {
      this.#pending.shift()?.resolve(message.return)
    } else if ('error' in message) {
      const pending = this.#pending.shift()
      pending?.reject(new QmpError(pending.command, describe(message.error)))
    }
  }
}

function timeOf(message: object): number | undefined {
  const { timestamp } = message as { timestamp?: { seconds?: unknown; microseconds?: unknown } | null }
  const atMs = Number(timestamp?.seconds) * 1e3 + Number(timestamp?.microseconds) / 1e3
  return Number.isFinite(atMs) ? atMs : undefined
}

const describe = (error: unknown): string =>
  typeof error === 'object' && error !== null && 'desc' in error && typeof error.desc === 'string'
    ? error.desc.slice(0, 500)
    : 'no reason given'
