/** The transport that browsers and Node have built in: `fetch` and `WebSocket`, as the client takes them. */
import type { Fetch, FetchAnswer, FetchInit } from './client.ts'

/** The part of a standard WebSocket that is used. That of the package `ws` has it too. */
export interface WebSocketLike {
  binaryType: string
  readonly readyState: number
  readonly bufferedAmount: number
  send(data: string | Uint8Array<ArrayBuffer>): void
  close(code?: number): void
  onopen: ((event: never) => void) | null
  onmessage: ((event: never) => void) | null
  onerror: ((event: never) => void) | null
  onclose: ((event: never) => void) | null
}

export type WebSocketFactory = (url: string, headers: Readonly<Record<string, string>>) => WebSocketLike | Promise<WebSocketLike>

/** `fetch` as this runtime has it. A body that streams needs HTTP/2 in browsers; a `Blob` does not. */
export const webFetch: Fetch = async (url, init) => {
  const answer = await fetch(url, {
    method: init.method,
    headers: init.headers,
    ...(init.body !== undefined && { body: bodyOf(init.body) }),
    ...(init.duplex !== undefined && { duplex: init.duplex }),
    ...(init.signal && { signal: init.signal }),
  } as RequestInit)
  return answerOf(answer)
}

function answerOf({ status, headers, body }: Response): FetchAnswer {
  return { status, headers, body: body && chunksOf(body as ReadableStream<Uint8Array>) }
}

function bodyOf(body: NonNullable<FetchInit['body']>): string | Blob | ReadableStream<Uint8Array> {
  if (typeof body === 'string' || body instanceof Blob) return body
  const chunks = body[Symbol.asyncIterator]()
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { done, value } = await chunks.next()
      if (done) controller.close()
      else controller.enqueue(value)
    },
    async cancel() {
      await chunks.return?.()
    },
  })
}

/** Not every browser can iterate a stream. Whoever stops early lets go of the connection. */
async function* chunksOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  const reader = stream.getReader()
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      yield value
    }
  } finally {
    await reader.cancel().catch(() => undefined)
  }
}

/** A WebSocket of this runtime. Those of servers (Node, Bun, Deno) can say who asks by a header, those of browsers cannot. */
export const webWebSocket: WebSocketFactory = (url, headers) => {
  if (Object.keys(headers).length === 0) return new WebSocket(url) as WebSocketLike
  return new (WebSocket as unknown as new (url: string, options: object) => WebSocketLike)(url, { headers })
}

export const takesHeaders = (): boolean => ['process', 'Deno', 'Bun'].some((name) => name in globalThis)
