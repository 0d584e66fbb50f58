/** From what was thrown to what is answered, by the table of errors. */
import { ERRORS } from '@dormouse/api/error-table.ts'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import type { Problem } from '@dormouse/api/problem.ts'

const hintOf = ({ code, hint }: AppError): string | undefined => hint ?? ERRORS[code].hint

export interface Refusal {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: Problem
  /** It is our fault: the log should have it, with its stack. */
  readonly isFault: boolean
}

/** Fastify's and Node's own refusals, and those of a body before it is read, by their code. All are a caller's mistakes. */
const FOREIGN: Readonly<Record<string, { status: number; message: string }>> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: { status: 415, message: 'The content type of the body is not one that this route takes' },
  BODY_ENCODED: { status: 415, message: 'The body has a content-encoding: JSON is taken as it is, not compressed' },
  BODY_CHARSET: { status: 415, message: 'The body has another charset than UTF-8, which JSON is taken in' },
  FST_ERR_CTP_BODY_TOO_LARGE: { status: 413, message: 'The body is too large' },
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: { status: 400, message: 'The body is not as long as its content-length says' },
  FST_ERR_CTP_INVALID_JSON_BODY: { status: 400, message: 'The body is not valid JSON' },
  FST_ERR_BAD_URL: { status: 400, message: 'The path is not validly percent-encoded' },
  FST_ERR_MAX_PARAM_LENGTH: { status: 400, message: 'A part of the path is too long' },
  FST_ERR_ASYNC_CONSTRAINT: { status: 400, message: 'The request cannot be routed' },
  HPE_HEADER_OVERFLOW: { status: 431, message: 'The headers are too large' },
  ERR_HTTP_REQUEST_TIMEOUT: { status: 408, message: 'The request took too long to arrive' },
}

/** What to answer for anything that was thrown. An unknown error tells the caller nothing of its inside. */
export function refusalOf(error: unknown): Refusal {
  if (error instanceof AppError) return refuse(error)
  const foreign = FOREIGN[String((error as { code?: unknown } | undefined)?.code)]
  if (foreign) {
    const refusal = refuse(new AppError('invalid_request', foreign.message))
    return { ...refusal, status: foreign.status }
  }
  return {
    ...refuse(new AppError('internal_error', 'Something went wrong inside the daemon')),
    isFault: true,
  }
}

function refuse(error: AppError): Refusal {
  const { status, retry } = ERRORS[error.code]
  const hint = hintOf(error)
  const seconds = error.retryAfterSeconds ?? (retry === 'later' ? 2 : undefined)
  return {
    status,
    headers: {
      ...(retry === 'never' && { 'x-should-retry': 'false' }),
      // Clients leave a 400 alone unless told otherwise.
      ...(retry === 'later' && status < 429 && { 'x-should-retry': 'true' }),
      ...(seconds !== undefined && retry !== 'never' && { 'retry-after': String(Math.ceil(seconds)) }),
      ...(error.code === 'unauthorized' && { 'www-authenticate': 'Bearer' }),
    },
    body: {
      code: error.code,
      message: error.message,
      ...(hint !== undefined && { hint }),
      ...detailsOf(error),
      ...innerOf(error),
    },
    isFault: status >= 500 && error.code !== 'not_supported' && error.code !== 'shutting_down',
  }
}

const MAX_DETAILS = 20

/** `detail.problems` are the single faults of a request; other facts are `name: value` lines. */
function detailsOf(error: AppError): Pick<Problem, 'details'> {
  const { problems, ...facts } = error.detail ?? {}
  const lines = Array.isArray(problems) ? problems.map((message) => ({ code: error.code, message: String(message) })) : []
  for (const [key, value] of Object.entries(facts)) {
    if (value !== undefined) lines.push({ code: key as ErrorCode, message: typeof value === 'string' ? value : JSON.stringify(value) })
  }
  return lines.length === 0 ? {} : { details: lines.slice(0, MAX_DETAILS) }
}

/** The reason below, when it is one that we worded: foreign errors may hold paths and addresses of the host. */
function innerOf(error: AppError): Pick<Problem, 'inner_error'> {
  return error.cause instanceof AppError ? { inner_error: { code: error.cause.code, message: error.cause.message } } : {}
}
