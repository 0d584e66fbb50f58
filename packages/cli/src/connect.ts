/**
 * The way to the daemon: a unix socket, or TCP with a token. Everything is `node:http`: measured at the start of `dormouse ps`,
 * undici costs 80 ms more.
 */
import type { ClientRequest, IncomingMessage, RequestOptions } from 'node:http'
import type { Fetch, FetchAnswer } from '@dormouse/api/client.ts'
import { AppError } from '@dormouse/api/errors.ts'
import { environment } from './environment.ts'
import { EXIT, Failure, usageFailure } from './failure.ts'

// An `import` of node:http asks for each of its exports, and one of them (WebSocket) loads Node's own undici: 50 ms.
const http = process.getBuiltinModule('node:http')

export type Address =
  | { readonly kind: 'unix'; readonly path: string }
  | {
      readonly kind: 'tcp'
      readonly protocol: 'http:' | 'https:'
      readonly hostname: string
      readonly port: number
      readonly basePath: string
    }

/** `--host`, else DORMOUSE_HOST, else the socket where the daemon puts it. */
export const daemonAddress = (host: string | undefined): Address =>
  parseAddress(host ?? environment.host() ?? `unix://${environment.socket()}`)

export function parseAddress(text: string): Address {
  const unix = /^unix:(?:\/\/)?(.+)$/.exec(text)?.[1] ?? (text.startsWith('/') ? text : undefined)
  if (unix !== undefined) return { kind: 'unix', path: unix }
  const bare = /^[\w.-]+:\d+$/.test(text) || /^\[[0-9a-fA-F:]+\]:\d+$/.test(text)
  const url = URL.parse(bare ? `http://${text}` : text.replace(/^tcp:/, 'http:'))
  if (url === null || (url.protocol !== 'http:' && url.protocol !== 'https:') || url.hostname === '') {
    throw usageFailure(
      `${JSON.stringify(text)} is not an address of a daemon`,
      'Write it as unix:///run/dormouse/dormouse.sock or http://127.0.0.1:4973',
    )
  }
  const port = url.port === '' ? (url.protocol === 'https:' ? 443 : 80) : Number(url.port)
  return {
    kind: 'tcp',
    protocol: url.protocol,
    hostname: url.hostname.replace(/^\[|\]$/g, ''),
    port,
    basePath: url.pathname.replace(/\/$/, ''),
  }
}

export const addressText = (address: Address): string =>
  address.kind === 'unix'
    ? `unix://${address.path}`
    : `${address.protocol}//${address.hostname.includes(':') ? `[${address.hostname}]` : address.hostname}:${address.port}${address.basePath}`

/** A transport for the API's client: one request, its body streamed both ways. */
export const fetchOver =
  (address: Address): Fetch =>
  async (path, init) => {
    const options: RequestOptions = {
      method: init.method,
      headers: init.headers,
      // One request a connection: nothing is kept open that would hold the process back at its end.
      agent: false,
      ...(init.signal === undefined ? {} : { signal: init.signal }),
      ...(address.kind === 'unix'
        ? { socketPath: address.path, path }
        : { hostname: address.hostname, port: address.port, path: `${address.basePath}${path}` }),
    }
    const outgoing =
      address.kind === 'tcp' && address.protocol === 'https:' ? (await import('node:https')).request(options) : http.request(options)
    const answered = answerOf(outgoing)
    if (typeof init.body === 'string') outgoing.end(init.body)
    else if (init.body === undefined) outgoing.end()
    else void upload(init.body instanceof Blob ? init.body.stream() : init.body, outgoing)
    return answerWith(
      await answered.catch((error: unknown) => {
        throw connectionFailure(address, error)
      }),
    )
  }

/** Node's answer as the API's client takes it. */
export const answerWith = (response: IncomingMessage): FetchAnswer => ({
  status: response.statusCode ?? 0,
  headers: { get: (name) => headerText(response.headers[name.toLowerCase()]) },
  body: response,
})

const headerText = (value: string | string[] | undefined): string | null => (Array.isArray(value) ? value.join(', ') : (value ?? null))

const answerOf = (outgoing: ClientRequest): Promise<IncomingMessage> =>
  new Promise((resolve, reject) => {
    outgoing.on('response', resolve)
    outgoing.on('error', reject)
  })

/** Sends the body piece by piece. A daemon that answers early (401, 413) closes its side: then the answer is what counts, not the broken pipe. */
async function upload(body: AsyncIterable<Uint8Array>, outgoing: ClientRequest): Promise<void> {
  try {
    for await (const piece of body) {
      if (outgoing.destroyed || outgoing.errored) return
      if (!outgoing.write(piece)) await drained(outgoing)
    }
    outgoing.end()
  } catch (error) {
    outgoing.destroy(error instanceof Error ? error : new Error(String(error)))
  }
}

const drained = (outgoing: ClientRequest): Promise<void> =>
  new Promise((resolve) => {
    const done = (): void => {
      outgoing.off('drain', done).off('close', done)
      resolve()
    }
    outgoing.on('drain', done).on('close', done)
  })

/** Why the daemon was not reached, as one sentence with what to do. */
export function connectionFailure(address: Address, error: unknown): unknown {
  if (!(error instanceof Error) || error.name === 'AbortError' || error instanceof Failure || error instanceof AppError) return error
  const code = 'code' in error && typeof error.code === 'string' ? error.code : ''
  const where = addressText(address)
  const unreachable = (message: string, hint: string) =>
    new Failure(message, { exitCode: EXIT.unreachable, code: 'daemon_unreachable', hint, cause: error })
  switch (code) {
    case 'ENOENT':
    case 'ECONNREFUSED':
    case 'ENOTSOCK':
      return unreachable(
        `No daemon answers at ${where}`,
        'Start one with: dormouse serve (or: systemctl start dormouse). Elsewhere? Set DORMOUSE_HOST',
      )
    case 'EACCES':
    case 'EPERM':
      return unreachable(`You may not use the daemon's socket ${where}`, "Run this as root, or as a member of the socket's group")
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
    case 'EHOSTUNREACH':
    case 'ENETUNREACH':
    case 'ETIMEDOUT':
      return unreachable(`The daemon's host cannot be reached: ${where} (${code})`, 'Check DORMOUSE_HOST and the network')
    case 'ECONNRESET':
    case 'EPIPE':
      return unreachable(`The daemon at ${where} ended the connection`, 'See its log: journalctl -u dormouse')
    default:
      return code === '' ? error : unreachable(`The daemon at ${where} could not be asked: ${error.message}`, 'Run: dormouse doctor')
  }
}
