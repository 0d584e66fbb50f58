/**
 * The client of the API, typed by the route table. The transport is handed in as a `fetch`, so that it runs in a browser, in
 * Node, over TCP and over a unix socket alike. Imports no schema at run time.
 */
import type { Static, TSchema } from 'typebox'
import { endpoint, type RouteId } from './endpoints.ts'
import { AppError, ERROR_CODES, type ErrorCode } from './errors.ts'
import { pause } from './pause.ts'
import type { Problem } from './problem.ts'
import { encodeQuery } from './query.ts'
import { delayBefore, isWorthARepeat } from './retry.ts'
import type { routes } from './routes.ts'
import { decodePlaces, type SseMessage } from './streams.ts'

export interface FetchInit {
  readonly method: string
  readonly headers: Record<string, string>
  readonly body?: string | Blob | AsyncIterable<Uint8Array> | undefined
  readonly duplex?: 'half' | undefined
  readonly signal?: AbortSignal | undefined
}

export interface FetchAnswer {
  readonly status: number
  readonly headers: { get(name: string): string | null }
  readonly body: AsyncIterable<Uint8Array> | null
}

export type Fetch = (url: string, init: FetchInit) => Promise<FetchAnswer>

export interface ClientOptions {
  readonly baseUrl: string
  readonly token?: string | undefined
  readonly fetch: Fetch
  /** How often a request is sent again that may do better next time; 0 unless given. Waits in between as the server asks. */
  readonly retries?: number | undefined
}

/** A raw body. One that streams is sent once, whatever becomes of it. */
export interface Upload {
  readonly type: string
  readonly bytes: Blob | AsyncIterable<Uint8Array>
}

type Of<R, Part extends string> = R extends { readonly [K in Part]: infer S extends TSchema } ? Static<S> : undefined
type Given<Name extends string, Value> = [Value] extends [undefined]
  ? unknown
  : Record<string, never> extends Value
    ? { readonly [K in Name]?: Value }
    : { readonly [K in Name]: Value }

/** What a call of `Id` takes. `upload` is the raw body of the routes that have one. */
export type Input<Id extends RouteId> = Given<'params', Of<(typeof routes)[Id], 'params'>> &
  Given<'query', Of<(typeof routes)[Id], 'query'>> &
  Given<'body', Of<(typeof routes)[Id], 'body'>> & {
    readonly upload?: Upload
    readonly headers?: Readonly<Record<string, string>>
    readonly signal?: AbortSignal | undefined
  }

/** What a call of `Id` gives. */
export type Answer<Id extends RouteId> = Of<(typeof routes)[Id], 'answer'>

export type Arguments<Id extends RouteId> = Record<string, never> extends Input<Id> ? [input?: Input<Id>] : [input: Input<Id>]

type Item<List> = List extends readonly (infer One)[] ? One : never

const PAGE = 500

interface AnyInput {
  readonly params?: Readonly<Record<string, string>>
  readonly query?: Readonly<Record<string, unknown>>
  readonly body?: unknown
  readonly upload?: Upload
  readonly headers?: Readonly<Record<string, string>>
  readonly signal?: AbortSignal | undefined
}

export class Client {
  readonly #options: ClientOptions

  constructor(options: ClientOptions) {
    this.#options = options
  }

  /** One request, one answer. Throws AppError as the daemon said it; when the daemon cannot be reached, what the transport threw. */
  async call<Id extends RouteId>(id: Id, ...[input]: Arguments<Id>): Promise<Answer<Id>> {
    const answer = await this.#send(id, input as AnyInput | undefined)
    const text = await textOf(answer)
    return (text === '' ? undefined : JSON.parse(text)) as Answer<Id>
  }

  /** A page of a list, and the cursor of the next one if there is one. */
  async page<Id extends RouteId>(id: Id, ...[input]: Arguments<Id>): Promise<{ items: Answer<Id>; nextCursor: string | undefined }> {
    const answer = await this.#send(id, input as AnyInput | undefined)
    return { items: JSON.parse(await textOf(answer)) as Answer<Id>, nextCursor: answer.headers.get('x-next-cursor') ?? undefined }
  }

  /** Everything in a list, a page at a time (`limit` of the query says how large). What is made meanwhile may be missing. */
  async *items<Id extends RouteId>(id: Id, ...[input]: Arguments<Id>): AsyncGenerator<Item<Answer<Id>>> {
    let cursor: string | undefined
    do {
      const { query, ...rest } = (input ?? {}) as AnyInput
      const next = { ...rest, query: { limit: PAGE, ...query, ...(cursor !== undefined && { cursor }) } }
      const page = await this.page(id, ...([next] as unknown as Arguments<Id>))
      yield* page.items as Iterable<Item<Answer<Id>>>
      cursor = page.nextCursor
    } while (cursor !== undefined)
  }

  /** The messages of an event stream. Ends when the server ends it; to leave early, break out of the loop or abort the signal. */
  async *stream<Id extends RouteId>(id: Id, ...[input]: Arguments<Id>): AsyncGenerator<Answer<Id>> {
    for await (const { data } of await this.openStream(id, input as Input<Id> | undefined)) {
      if (data !== undefined) yield JSON.parse(data) as Answer<Id>
    }
  }

  /** One connection of an event stream, message by message; those without data only tell the id to go on from. */
  protected async openStream<Id extends RouteId>(id: Id, input: Input<Id> | undefined): Promise<AsyncIterable<SseMessage>> {
    const answer = await this.#send(id, input as AnyInput | undefined, 'text/event-stream')
    return answer.body ? decodePlaces(answer.body) : (async function* () {})()
  }

  /** Address and headers for those who dial themselves: the WebSocket routes. `http` becomes `ws`. */
  dial<Id extends RouteId>(id: Id, ...[input]: Arguments<Id>): { url: string; headers: Record<string, string> } {
    const url = this.#url(id, input as AnyInput | undefined)
    return { url: url.replace(/^http/, 'ws'), headers: this.#headers() }
  }

  async #send(id: RouteId, input: AnyInput | undefined, accept = 'application/json'): Promise<FetchAnswer> {
    const headers: Record<string, string> = { accept, ...this.#headers(), ...input?.headers }
    const init: { -readonly [K in keyof FetchInit]: FetchInit[K] } = { method: endpoint(id).method, headers, signal: input?.signal }
    if (input?.upload) {
      headers['content-type'] = input.upload.type
      init.body = input.upload.bytes
      if (!(input.upload.bytes instanceof Blob)) init.duplex = 'half'
    } else if (input?.body !== undefined) {
      headers['content-type'] = 'application/json'
      init.body = JSON.stringify(input.body)
    }
    return this.#sendRepeatedly(this.#url(id, input), init)
  }

  async #sendRepeatedly(url: string, init: FetchInit): Promise<FetchAnswer> {
    const isSentOnce = init.duplex !== undefined
    const retries = isSentOnce ? 0 : (this.#options.retries ?? 0)
    for (let repeats = 0; ; repeats++) {
      let answer: FetchAnswer | undefined
      try {
        answer = await this.#options.fetch(url, init)
      } catch (error) {
        // What became of a request without an answer is not known: only those are sent again that may be done twice.
        const isHarmless = init.method === 'GET' || init.method === 'PUT'
        if (!isHarmless || repeats >= retries || init.signal?.aborted) throw error
      }
      if (answer && answer.status < 400) return answer
      if (answer) {
        const refusal = await refusalOf(answer)
        if (repeats >= retries || !isWorthARepeat(answer)) throw refusal
      }
      await pause(delayBefore(repeats, answer), init.signal)
    }
  }

  #url(id: RouteId, input: AnyInput | undefined): string {
    const path = endpoint(id).path.replace(/\{(\w+)\}/g, (_, name: string) => encodeSegment(input?.params?.[name] ?? ''))
    return this.#options.baseUrl.replace(/\/+$/, '') + path + encodeQuery(input?.query)
  }

  #headers(): Record<string, string> {
    return this.#options.token === undefined ? {} : { authorization: `Bearer ${this.#options.token}` }
  }
}

/** A path segment. `.` and `..` would be taken as steps in the path by every URL parser, encoded or not: they are no one's name. */
function encodeSegment(value: string): string {
  if (value === '' || value === '.' || value === '..') throw new AppError('invalid_name', `"${value}" is no name`)
  return encodeURIComponent(value)
}

async function textOf(answer: FetchAnswer): Promise<string> {
  const decoder = new TextDecoder()
  let text = ''
  for await (const chunk of answer.body ?? []) text += decoder.decode(chunk, { stream: true })
  return text + decoder.decode()
}

/** The daemon's refusal as the error that it was there. Anything that is no `Problem` (a proxy's page) is told by its status. Also for a refused WebSocket upgrade. */
export async function refusalOf(answer: FetchAnswer): Promise<AppError> {
  const { status, headers } = answer
  const text = await textOf(answer)
  const problem = parseProblem(text)
  const code: ErrorCode = ERROR_CODES.find((known) => known === problem?.code) ?? 'internal_error'
  const seconds = Number(headers.get('retry-after') ?? Number.NaN)
  return new AppError(code, problem?.message ?? `The server answered ${status}: ${text.slice(0, 200).trim() || 'nothing'}`, {
    ...(problem?.hint !== undefined && { hint: problem.hint }),
    ...(Number.isFinite(seconds) && { retryAfterSeconds: seconds }),
    detail: {
      status,
      ...(problem?.details && { details: problem.details }),
      requestId: headers.get('x-request-id') ?? undefined,
      isWorthARepeat: isWorthARepeat(answer),
    },
  })
}

function parseProblem(text: string): Problem | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null && 'message' in value && typeof value.message === 'string'
      ? (value as Problem)
      : undefined
  } catch {
    return undefined
  }
}
