/**
 * Every way in which the daemon says no. A code is a fact in snake_case; callers match on it, never on the message.
 * What each means, its HTTP status and what to do stand in error-table.ts: a new code needs a row there.
 * Nothing is imported here, so that a client pays nothing for it; the schema of an answer's body is in problem.ts.
 */
export const ERROR_CODES = [
  // the request
  'invalid_request',
  'invalid_name',
  'invalid_size',
  'invalid_hotplug_size',
  'invalid_overlay_size',
  'invalid_disk_io_bps',
  'invalid_bandwidth_download',
  'invalid_bandwidth_upload',
  'invalid_ttl',
  'invalid_expires_at',
  'invalid_auto_standby',
  'invalid_health_check',
  'invalid_restart_policy',
  'invalid_snapshot_policy',
  'invalid_snapshot_compression',
  'invalid_compression_delay',
  'invalid_platform',
  'invalid_timeout',
  'invalid_image',
  'invalid_target',
  'invalid_path',
  'invalid_archive',
  'invalid_pci_address',
  // who asks
  'unauthorized',
  'forbidden',
  // what is asked for
  'not_found',
  'ambiguous',
  'name_conflict',
  'already_exists',
  'invalid_state',
  'conflict',
  'in_use',
  'port_in_use',
  'instance_expired',
  'instance_in_standby',
  'snapshot_unusable',
  'log_not_found',
  'device_not_found',
  'path_not_found',
  'method_not_allowed',
  // images and registries
  'image_not_ready',
  'image_too_large',
  'archive_too_large',
  'platform_not_available',
  'registry_unauthorized',
  'registry_unavailable',
  'registry_refused',
  'rate_limited',
  'credential_conflict',
  // the host and the guest
  'insufficient_resources',
  'not_supported',
  'dependency_missing',
  'guest_unavailable',
  'timed_out',
  'shutting_down',
  'internal_error',
] as const
export type ErrorCode = (typeof ERROR_CODES)[number]

export interface AppErrorOptions {
  /** What to do next: a command to run, a log to open. */
  readonly hint?: string
  /** Facts for the log and for `details`; never secrets. */
  readonly detail?: Readonly<Record<string, unknown>>
  /** Seconds after which the same request may do better; becomes Retry-After. */
  readonly retryAfterSeconds?: number
  readonly cause?: unknown
}

/** The one error class. The message is a sentence that names the thing; the cause chain says why. */
export class AppError extends Error {
  override readonly name = 'AppError'
  readonly code: ErrorCode
  readonly hint: string | undefined
  readonly detail: Readonly<Record<string, unknown>> | undefined
  readonly retryAfterSeconds: number | undefined

  constructor(code: ErrorCode, message: string, options: AppErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.hint = options.hint
    this.detail = options.detail
    this.retryAfterSeconds = options.retryAfterSeconds
  }
}

/** The code of an error that this house made; undefined for any other. */
export const errorCodeOf = (error: unknown): ErrorCode | undefined => (error instanceof AppError ? error.code : undefined)
