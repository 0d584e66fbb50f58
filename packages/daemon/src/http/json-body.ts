import type { IncomingHttpHeaders } from 'node:http'
import type { Readable } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'

export interface BodyLimits {
  readonly maxBytes: number
  readonly maxMs: number
}

export const BODY_LIMITS: BodyLimits = { maxBytes: 4 * 1024 * 1024, maxMs: 30_000 }

/**
 * The JSON of a request's body; undefined when it is empty, since clients send a content type with nothing after it. Bounded in
 * bytes and in time: a body that trickles in holds a connection, never more.
 */
export async function readJsonBody(payload: Readable, limits: BodyLimits): Promise<unknown> {
  return parseJson(await bytesOf(payload, limits))
}

/** Throws for a body that is compressed, or no UTF-8 by its own word: read as if it were not, it would be told to be no JSON at best. */
export function refuseEncoded(headers: IncomingHttpHeaders): void {
  const encoding = headers['content-encoding']
  if (encoding !== undefined && !/^ *(identity)? *$/i.test(encoding)) throw Object.assign(new Error('encoding'), { code: 'BODY_ENCODED' })
  const charset = /; *charset *= *"?([^"; ]*)/i.exec(headers['content-type'] ?? '')?.[1]
  // ASCII is UTF-8 as well.
  if (charset !== undefined && !/^(utf-?8|us-ascii)$/i.test(charset)) throw Object.assign(new Error('charset'), { code: 'BODY_CHARSET' })
}

/** Leaves the stream as it is when it gives up: destroying it would end the connection before the refusal is out. */
export function bytesOf(payload: Readable, { maxBytes, maxMs }: BodyLimits): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>()
  const chunks: Buffer[] = []
  let bytes = 0
  const take = (chunk: Buffer) => {
    bytes += chunk.length
    if (bytes > maxBytes) reject(Object.assign(new Error('The body is too large'), { code: 'FST_ERR_CTP_BODY_TOO_LARGE' }))
    else chunks.push(chunk)
  }
  const end = () => resolve(Buffer.concat(chunks))
  const timer = setTimeout(() => reject(new AppError('invalid_request', `The body took longer than ${maxMs / 1000} s to arrive`)), maxMs)
  const fail = (error: Error & { code?: string }) => reject(error.code === 'ECONNRESET' ? cutOff() : error)
  payload.on('data', take).on('end', end).on('error', fail)
  return promise.finally(() => {
    clearTimeout(timer)
    payload.off('data', take).off('end', end).off('error', fail).pause()
    // What may still go wrong with a connection that is given up is of no one's interest.
    payload.on('error', () => undefined)
  })
}

/** No one hears it: it is what the log says instead of a fault of ours. */
const cutOff = () => new AppError('invalid_request', 'The connection closed before the body was whole')

const utf8 = new TextDecoder('utf-8', { fatal: true })

function parseJson(bytes: Buffer): unknown {
  if (bytes.length === 0) return undefined
  let value: unknown
  try {
    value = JSON.parse(utf8.decode(bytes))
  } catch (cause) {
    const why = cause instanceof SyntaxError ? `: ${cause.message.slice(0, 120)}` : ': it is not UTF-8'
    throw new AppError('invalid_request', `The body is not valid JSON${why}`)
  }
  return value === null ? undefined : value
}
