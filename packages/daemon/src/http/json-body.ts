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
  const chunks: Buffer[] = []
  let bytes = 0
  const timer = setTimeout(
    () => payload.destroy(new AppError('invalid_request', `The body took longer than ${limits.maxMs / 1000} s to arrive`)),
    limits.maxMs,
  )
  try {
    for await (const chunk of payload as AsyncIterable<Buffer>) {
      bytes += chunk.length
      if (bytes > limits.maxBytes) throw Object.assign(new Error('too large'), { code: 'FST_ERR_CTP_BODY_TOO_LARGE' })
      chunks.push(chunk)
    }
  } finally {
    clearTimeout(timer)
  }
  return parseJson(Buffer.concat(chunks))
}

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
