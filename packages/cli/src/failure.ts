/**
 * How the CLI fails. Exit codes are a promise to scripts (docs/cli.md lists them); the sentence and the hint are for people and are
 * the daemon's own whenever the daemon said no.
 */
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'

export const EXIT = {
  ok: 0,
  /** It was tried and did not work. */
  failed: 1,
  /** The command line itself is wrong; nothing was tried. */
  usage: 2,
  notFound: 3,
  /** Not in this state, or someone else has the name, the port, the disk. */
  conflict: 4,
  unreachable: 5,
  forbidden: 6,
  timedOut: 7,
  /** Failures of `run` and `exec` themselves, so that they are never taken for the command's own code (as Docker). */
  ownFailure: 125,
  interrupted: 130,
  brokenPipe: 141,
} as const

/** An end that is said to the user in one sentence, without a stack. */
export class Failure extends Error {
  override readonly name = 'Failure'
  readonly exitCode: number
  readonly code: string
  readonly hint: string | undefined

  constructor(message: string, options: { exitCode?: number; code?: string; hint?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.exitCode = options.exitCode ?? EXIT.failed
    this.code = options.code ?? 'failed'
    this.hint = options.hint
  }
}

export const usageFailure = (message: string, hint?: string): Failure =>
  new Failure(message, { exitCode: EXIT.usage, code: 'invalid_usage', ...(hint === undefined ? {} : { hint }) })

const EXIT_OF_CODE: Partial<Record<ErrorCode, number>> = {
  not_found: EXIT.notFound,
  path_not_found: EXIT.notFound,
  log_not_found: EXIT.notFound,
  device_not_found: EXIT.notFound,
  name_conflict: EXIT.conflict,
  already_exists: EXIT.conflict,
  ambiguous: EXIT.conflict,
  invalid_state: EXIT.conflict,
  conflict: EXIT.conflict,
  in_use: EXIT.conflict,
  port_in_use: EXIT.conflict,
  credential_conflict: EXIT.conflict,
  instance_expired: EXIT.conflict,
  snapshot_unusable: EXIT.conflict,
  unauthorized: EXIT.forbidden,
  forbidden: EXIT.forbidden,
  timed_out: EXIT.timedOut,
}

export interface Told {
  readonly exitCode: number
  readonly code: string
  readonly message: string
  readonly hint?: string
  readonly details?: readonly string[]
}

/** What to say about anything that was thrown. An error that no one foresaw keeps its message, so that it can be reported. */
export function tell(error: unknown): Told {
  if (error instanceof Failure) {
    return { exitCode: error.exitCode, code: error.code, message: error.message, ...(error.hint === undefined ? {} : { hint: error.hint }) }
  }
  if (error instanceof AppError) {
    return {
      exitCode: EXIT_OF_CODE[error.code] ?? EXIT.failed,
      code: error.code,
      message: error.message,
      ...(error.hint === undefined ? {} : { hint: error.hint }),
      ...detailsOf(error),
    }
  }
  const message = error instanceof Error ? error.message : String(error)
  return { exitCode: EXIT.failed, code: 'failed', message }
}

/** The daemon's list of what else is wrong, such as each field that a request got wrong. */
function detailsOf(error: AppError): { details?: string[] } {
  const details = error.detail?.details
  if (!Array.isArray(details)) return {}
  return {
    details: details.flatMap(({ code, message }: { code?: unknown; message?: unknown }) => {
      if (typeof message !== 'string') return []
      return typeof code === 'string' ? `${code}: ${message}` : message
    }),
  }
}
