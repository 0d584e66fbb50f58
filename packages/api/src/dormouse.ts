/**
 * The SDK: what a program in a browser or in Node uses the daemon by. `call` and its kin know every operation of the route table;
 * the rest is what takes more than one request: commands, files, streams that outlive their connection, waits.
 */
import { type Answer, Client, type Fetch, type Input } from './client.ts'
import { type CopiedEntry, type CopyFromOptions, type CopyToOptions, type FileContent, receiveFiles, sendFile } from './copy.ts'
import { endpoint } from './endpoints.ts'
import { AppError } from './errors.ts'
import type { Event } from './events.ts'
import { Command, type ExecExit, type ExecOptions, startOf } from './exec.ts'
import { followStream } from './follow.ts'
import { FrameSocket } from './frame-socket.ts'
import type { Image, ImageProgress } from './images.ts'
import type { InstanceState } from './instance-states.ts'
import type { Instance, LogSource } from './instances.ts'
import { takesHeaders, type WebSocketFactory, type WebSocketLike, webFetch, webWebSocket } from './web-transport.ts'

export type { RouteId } from './endpoints.ts'
export { AppError, ERROR_CODES, type ErrorCode, errorCodeOf } from './errors.ts'
export type {
  Answer,
  Command,
  CopiedEntry,
  CopyFromOptions,
  CopyToOptions,
  Event,
  ExecExit,
  ExecOptions,
  Fetch,
  FileContent,
  Image,
  ImageProgress,
  Input,
  Instance,
  InstanceState,
  WebSocketFactory,
}

export interface DormouseOptions {
  /** `http://127.0.0.1:4973` unless given. A path in it is kept. */
  readonly baseUrl?: string | undefined
  /** From `dormouse token create`. Not needed where whoever gets through may do everything, as over the unix socket. */
  readonly token?: string | undefined
  /** How often a request is sent again that may do better next time: 2 unless given. */
  readonly retries?: number | undefined
  /** Another way to the daemon than this runtime's `fetch` and `WebSocket`: over its unix socket, say (docs/sdk.md). */
  readonly fetch?: Fetch | undefined
  readonly webSocket?: WebSocketFactory | undefined
}

export interface FollowOptions {
  readonly signal?: AbortSignal | undefined
}

export interface LogOptions extends FollowOptions {
  /** So many of the last lines first: 100 unless given. */
  readonly tail?: number | undefined
  readonly source?: LogSource | undefined
  /** Ends once the instance has come to rest and everything is read. */
  readonly untilStopped?: boolean | undefined
}

export interface EventOptions extends FollowOptions {
  /** Everything after this event; only what is yet to come unless given. */
  readonly after?: number | undefined
  /** The id of one instance, the name of one image. */
  readonly subject?: string | undefined
}

export interface WaitOptions {
  /** In all; five minutes unless given. */
  readonly timeoutMs?: number | undefined
  readonly signal?: AbortSignal | undefined
}

/** What a command wrote, as text. */
export interface Ran extends ExecExit {
  readonly stdout: string
  readonly stderr: string
}

const BASE_URL = 'http://127.0.0.1:4973'
const RETRIES = 2
const WAIT_MS = 5 * 60_000
/** A single request for it is over before a proxy loses its patience. */
const WAIT_TURN_MS = 30_000
const RAN_BYTES_MAX = 64 * 1024 * 1024

export class Dormouse extends Client {
  readonly #webSocket: WebSocketFactory
  /** A browser's WebSocket sends no token: a ticket goes into its address. */
  readonly #needsTickets: boolean

  constructor({ baseUrl = BASE_URL, token, retries = RETRIES, fetch = webFetch, webSocket }: DormouseOptions = {}) {
    super({ baseUrl, retries, fetch, ...(token !== undefined && { token }) })
    this.#webSocket = webSocket ?? webWebSocket
    this.#needsTickets = webSocket === undefined && token !== undefined && !takesHeaders()
  }

  /**
   * Resolves with the instance once it is in `state`. Throws `invalid_state` when it can no longer come to it by itself, saying why,
   * and `timed_out`. Repeats are harmless.
   */
  async waitFor(instance: string, state: InstanceState, { timeoutMs = WAIT_MS, signal }: WaitOptions = {}): Promise<Instance> {
    const end = Date.now() + timeoutMs
    const params = { id: instance }
    for (;;) {
      const leftMs = Math.max(1, Math.min(WAIT_TURN_MS, end - Date.now()))
      const query = { state, timeout: `${Math.ceil(leftMs)}ms` }
      const answer = await this.call('waitForInstance', { params, query, signal })
      if (answer.state === state) return this.call('getInstance', { params, signal })
      const why = answer.reason ?? answer.state_error ?? undefined
      const words = `The instance ${instance} is ${answer.state}, not ${state}${why === undefined ? '' : `: ${why}`}`
      if (!answer.timed_out) throw new AppError('invalid_state', words)
      if (Date.now() >= end) throw new AppError('timed_out', words)
    }
  }

  /** Resolves once the image can be run. Throws `image_not_ready` with the reason when its pull fails. */
  async waitForImage(name: string, { timeoutMs = WAIT_MS, signal }: WaitOptions = {}): Promise<Image> {
    const limit = AbortSignal.timeout(timeoutMs)
    const either = signal ? AbortSignal.any([signal, limit]) : limit
    const params = { name }
    try {
      for (;;) {
        // It is told how it stands; a connection that breaks on the way is no news of the image.
        const image = await this.call('getImage', { params, signal: either })
        if (image.status === 'ready') return image
        if (image.status === 'failed') throw new AppError('image_not_ready', `The image ${name} could not be pulled: ${image.error ?? ''}`)
        for await (const { status } of this.#follow('getImageProgress', { params, signal: either }, either)) {
          if (status === 'ready' || status === 'failed') break
        }
      }
    } catch (error) {
      if (!limit.aborted || signal?.aborted) throw error
      throw new AppError('timed_out', `The image ${name} was not ready within ${timeoutMs / 1000} s`)
    }
  }

  /**
   * The lines of an instance's log, and those that are yet to come. A connection that breaks is made anew, and no line is lost or given
   * twice unless the log has been rotated away meanwhile. Ends when the instance is deleted, or as `untilStopped` says. To look at
   * the past alone: `stream('getInstanceLogs', …)`.
   */
  logs(instance: string, { tail, source, untilStopped = false, signal }: LogOptions = {}): AsyncGenerator<string, void, undefined> {
    const query = {
      follow: true,
      ...(tail !== undefined && { tail }),
      ...(source !== undefined && { source }),
      ...(untilStopped && { until: 'stopped' as const }),
    }
    return this.#follow('getInstanceLogs', { params: { id: instance }, query }, signal)
  }

  /**
   * What happens, as it happens. A connection that breaks is made anew, and no event is given twice. Of those that are there no more, since
   * many others came meanwhile, it is told by one of the kind `events.lost`: whoever keeps a picture reads it anew then. Ends by the signal
   * alone.
   */
  events({ after, subject, signal }: EventOptions = {}): AsyncGenerator<Event, void, undefined> {
    const query = { ...(after !== undefined && { after }), ...(subject !== undefined && { subject }) }
    return this.#follow('followEvents', { query }, signal)
  }

  #follow<Id extends 'getInstanceLogs' | 'followEvents' | 'getImageProgress'>(
    id: Id,
    input: Input<Id>,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<Answer<Id>, void, undefined> {
    const open = (lastEventId: string | undefined) =>
      this.openStream(id, {
        ...input,
        ...(lastEventId !== undefined && { headers: { 'last-event-id': lastEventId } }),
        ...(signal !== undefined && { signal }),
      })
    return followStream<Answer<Id>>(open, signal)
  }

  /**
   * Runs a command in an instance that is Running: `/bin/sh` when it is empty. Throws `not_found`, `invalid_state` and the like when it
   * could not be begun; one that is not there has exit code 127.
   */
  async exec(instance: string, command: readonly string[], options: ExecOptions = {}): Promise<Command> {
    const socket = await this.#dial('execInstance', instance, options.signal)
    socket.sendJson(startOf(command, options))
    return new Command(socket)
  }

  /** Runs a command to its end, `input` being all that it reads. Up to 64 MiB of output; beyond, it is ended and this throws. */
  async run(
    instance: string,
    command: readonly string[],
    options: ExecOptions & { readonly input?: string | Uint8Array } = {},
  ): Promise<Ran> {
    const running = await this.exec(instance, command, options)
    try {
      const fed = options.input === undefined ? undefined : running.write(options.input)
      const ended = Promise.resolve(fed).then(() => running.endInput())
      const [stdout, stderr, exit] = await Promise.all([textOf(running.stdout), textOf(running.stderr), running.exit, ended])
      return { ...exit, stdout, stderr }
    } finally {
      running.close()
    }
  }

  /**
   * Puts a file into an instance that is Running: whole, or not at all. Parents are made; what is there is replaced. Resolves with its
   * size. Throws `insufficient_resources` when the guest's disk is full, `invalid_path` and the like. A repeat is harmless.
   */
  async copyTo(instance: string, path: string, content: FileContent, options: CopyToOptions = {}): Promise<number> {
    const socket = await this.#dial('copyInstanceFiles', instance, options.signal)
    return sendFile(socket, path, content, options).finally(() => socket.close())
  }

  /** Makes a directory in an instance, with its parents; one that is there stays. */
  async makeDirectory(instance: string, path: string, options: Omit<CopyToOptions, 'name'> = {}): Promise<void> {
    const socket = await this.#dial('copyInstanceFiles', instance, options.signal)
    await sendFile(socket, path, undefined, options).finally(() => socket.close())
  }

  /** A file, or a directory and all below it, out of an instance that is Running; entry by entry, at your pace. Throws `path_not_found`. */
  async *copyFrom(instance: string, path: string, options: CopyFromOptions = {}): AsyncGenerator<CopiedEntry, void, undefined> {
    const socket = await this.#dial('copyInstanceFiles', instance, options.signal)
    try {
      yield* receiveFiles(socket, path, options)
    } finally {
      socket.close()
    }
  }

  /** The bytes of one file of an instance that is Running. Throws `path_not_found`, and `invalid_path` when it is no file. */
  async readFile(instance: string, path: string, options: CopyFromOptions = {}): Promise<Uint8Array> {
    for await (const entry of this.copyFrom(instance, path, { followLinks: true, ...options })) {
      if (entry.kind !== 'file') break
      const chunks: Uint8Array[] = []
      for await (const chunk of entry.bytes) chunks.push(chunk)
      return joined(chunks)
    }
    throw new AppError('invalid_path', `${path} is no file`)
  }

  async #dial(id: 'execInstance' | 'copyInstanceFiles', instance: string, signal: AbortSignal | undefined): Promise<FrameSocket> {
    const input = { params: { id: instance }, ...(signal !== undefined && { signal }) }
    for (let isFirst = true; ; isFirst = false) {
      const socket = await FrameSocket.open(await this.#begin(id, input), signal)
      if (socket) return socket
      // Asked without an upgrade, the same request is refused for the same reason, with words; or it would be let in by now.
      const refusal = await this.call(id, input).catch((error: unknown) => error)
      signal?.throwIfAborted()
      if (refusal instanceof AppError && refusal.code !== 'invalid_request') throw refusal
      if (isFirst && refusal instanceof AppError) continue
      throw new AppError('guest_unavailable', `The connection to ${instance} could not be opened`, { cause: refusal })
    }
  }

  async #begin(id: 'execInstance' | 'copyInstanceFiles', input: Input<typeof id>): Promise<WebSocketLike> {
    const { url, headers } = this.dial(id, input)
    if (!this.#needsTickets) return this.#webSocket(url, headers)
    const path = endpoint(id).path.replace('{id}', encodeURIComponent(input.params.id))
    // Good for one connection, and not for long.
    const { ticket } = await this.call('createTicket', { body: { path }, signal: input.signal })
    return this.#webSocket(`${url}?ticket=${encodeURIComponent(ticket)}`, {})
  }
}

async function textOf(output: AsyncIterable<Uint8Array>): Promise<string> {
  const decoder = new TextDecoder()
  let text = ''
  let bytes = 0
  for await (const chunk of output) {
    bytes += chunk.length
    if (bytes > RAN_BYTES_MAX)
      throw new AppError('insufficient_resources', 'The command wrote more than 64 MiB', { hint: 'Read it with exec' })
    text += decoder.decode(chunk, { stream: true })
  }
  return text + decoder.decode()
}

function joined(chunks: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(chunks.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const chunk of chunks) {
    whole.set(chunk, at)
    at += chunk.length
  }
  return whole
}
