/** The only place with status numbers: what each error code is in HTTP, and whether sending the same again can help. */
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import type { Problem } from '@dormouse/api/problem.ts'

/** `retry`: may the same request do better later? Published clients repeat 408, 409, 429 and 5xx unless told not to. */
interface Meaning {
  readonly status: number
  readonly retry: 'never' | 'later' | 'asIs'
}

const never = (status: number): Meaning => ({ status, retry: 'never' })
const later = (status: number): Meaning => ({ status, retry: 'later' })

const MEANING: Readonly<Record<ErrorCode, Meaning>> = {
  invalid_request: never(400),
  invalid_name: never(400),
  invalid_size: never(400),
  invalid_hotplug_size: never(400),
  invalid_overlay_size: never(400),
  invalid_disk_io_bps: never(400),
  invalid_bandwidth_download: never(400),
  invalid_bandwidth_upload: never(400),
  invalid_ttl: never(400),
  invalid_expires_at: never(400),
  invalid_auto_standby: never(400),
  invalid_health_check: never(400),
  invalid_restart_policy: never(400),
  invalid_snapshot_policy: never(400),
  invalid_snapshot_compression: never(400),
  invalid_compression_delay: never(400),
  invalid_platform: never(400),
  invalid_timeout: never(400),
  invalid_image: never(400),
  invalid_path: never(400),
  invalid_archive: never(400),
  unauthorized: never(401),
  forbidden: never(403),
  not_found: never(404),
  ambiguous: never(409),
  name_conflict: never(409),
  invalid_state: never(409),
  conflict: never(409),
  in_use: never(409),
  port_in_use: never(409),
  instance_expired: never(409),
  snapshot_unusable: never(409),
  log_not_found: never(404),
  path_not_found: never(404),
  method_not_allowed: never(405),
  // The contract says 400; a client that waits a moment gets its instance all the same.
  image_not_ready: later(400),
  image_too_large: never(400),
  archive_too_large: never(400),
  platform_not_available: never(404),
  // 401 would say that our own token is bad.
  registry_unauthorized: never(403),
  registry_refused: never(403),
  registry_unavailable: later(502),
  rate_limited: later(429),
  credential_conflict: never(409),
  insufficient_resources: never(409),
  not_supported: never(501),
  dependency_missing: never(500),
  guest_unavailable: later(503),
  timed_out: { status: 504, retry: 'asIs' },
  shutting_down: later(503),
  internal_error: { status: 500, retry: 'asIs' },
}

/** What to do about an error that brings no hint of its own. That a request is malformed says by itself what to do. */
const HINT: Readonly<Record<Exclude<ErrorCode, `invalid_${string}`> | 'invalid_state', string>> = {
  unauthorized: 'Send a bearer token: `dormouse token` on the host makes one',
  forbidden: 'Take a token whose scopes allow this: `dormouse token --scope SCOPE`',
  not_found: 'Look at what there is: `dormouse ps -a`, `dormouse image ls`',
  ambiguous: 'Give more of the id, or the name',
  name_conflict: 'Take another name, or remove the one that has it',
  invalid_state: 'Look at its state with `dormouse inspect`, and wait for the one you need with `dormouse wait`',
  conflict: 'Look at what is there now, then ask again',
  in_use: 'Remove what uses it first: `dormouse ps -a` lists instances with their images',
  port_in_use: 'Take another host port; 0 picks a free one',
  instance_expired: 'Make a new instance; give it a longer `ttl`, or none',
  snapshot_unusable: 'Its disk is whole: stop the instance to discard its memory, then start it',
  log_not_found: 'Ask for another log (`app`, `vmm` or `daemon`), or follow this one: a follower waits for it',
  path_not_found: 'Look at what is in the directory above: `dormouse exec NAME ls`',
  method_not_allowed: 'GET /openapi.json lists what there is, with its methods',
  image_not_ready: 'Follow the pull with `dormouse image inspect`, then ask again',
  image_too_large: 'Take a smaller image, or raise DORMOUSE_MAX_IMAGE_SIZE or DORMOUSE_MAX_IMAGE_ENTRIES',
  archive_too_large: 'Ask for a larger volume, or leave files out of the archive',
  platform_not_available: 'Leave out `platform`, or take an image that is built for it',
  registry_unauthorized:
    'Give `credentials`, or a login in the docker config.json of the daemon’s user, or in the one that DORMOUSE_REGISTRY_CREDENTIALS_FILE names',
  registry_unavailable: 'Check the name of the registry and that the host reaches it, then ask again',
  registry_refused: 'Check the name of the image and what your login may read',
  rate_limited: 'Ask again after the time that Retry-After gives',
  credential_conflict: 'Wait for what is under way with other credentials, then ask again',
  insufficient_resources: 'Stop or remove instances, or ask for less: `dormouse df` shows what is given away',
  not_supported: 'The README lists what this version does not do yet',
  dependency_missing: 'Run `dormouse doctor` on the host: it says what is missing and how to mend it',
  guest_unavailable: 'Look at its logs with `dormouse logs --source vmm`; if it stays away, restart the instance',
  timed_out: 'Ask again with a longer timeout; the logs of the instance and of the daemon say what took so long',
  shutting_down: 'Ask again once the daemon is back',
  internal_error: 'The log of the daemon has the reason: `journalctl -u dormouse`',
}

const hintOf = ({ code, hint }: AppError): string | undefined => hint ?? (HINT as Partial<Record<ErrorCode, string>>)[code]

export const statusOf = (code: ErrorCode): number => MEANING[code].status

export interface Refusal {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: Problem
  /** It is our fault: the log should have it, with its stack. */
  readonly isFault: boolean
}

/** Fastify's and Node's own refusals, by their code. All are a caller's mistakes. */
const FOREIGN: Readonly<Record<string, { status: number; message: string }>> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: { status: 415, message: 'The content type of the body is not one that this route takes' },
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
  const { status, retry } = MEANING[error.code]
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
