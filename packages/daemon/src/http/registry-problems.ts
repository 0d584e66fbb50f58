/** What a registry's refusals are in HTTP: the statuses that the distribution specification gives to its codes. */
import { AppError } from '@dormouse/api/errors.ts'
import { type RegistryCode, RegistryError } from '../images/registry/registry-error.ts'
import { refusalOf } from './problems.ts'

const STATUS: Readonly<Record<RegistryCode, number>> = {
  BLOB_UNKNOWN: 404,
  BLOB_UPLOAD_INVALID: 400,
  BLOB_UPLOAD_UNKNOWN: 404,
  DIGEST_INVALID: 400,
  MANIFEST_BLOB_UNKNOWN: 404,
  MANIFEST_INVALID: 400,
  MANIFEST_UNKNOWN: 404,
  NAME_INVALID: 400,
  NAME_UNKNOWN: 404,
  SIZE_INVALID: 413,
  RANGE_INVALID: 416,
  PAGINATION_NUMBER_INVALID: 400,
  UNAUTHORIZED: 401,
  DENIED: 403,
  UNSUPPORTED: 405,
  TOOMANYREQUESTS: 429,
  UNAVAILABLE: 503,
  UNKNOWN: 500,
}

export interface RegistryRefusal {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: { readonly errors: readonly { readonly code: RegistryCode; readonly message: string; readonly detail?: unknown }[] }
  /** For the audit log: our own code, which tells who may not from what cannot be, and where there is none that of the answer. */
  readonly auditCode: string
  /** It is our fault: the log should have it, with its stack. */
  readonly isFault: boolean
}

/** What to answer for anything that was thrown. */
export function registryRefusalOf(error: unknown): RegistryRefusal {
  if (error instanceof RegistryError) {
    const { code, message, detail } = error
    const headers: Record<string, string> = code === 'TOOMANYREQUESTS' ? { 'retry-after': '10' } : {}
    const body = { errors: [{ code, message, ...(detail === undefined ? {} : { detail }) }] }
    return { status: STATUS[code], headers, body, auditCode: code === 'DENIED' ? 'forbidden' : code, isFault: false }
  }
  const { status, headers, body, isFault } = refusalOf(error)
  const code = codeOf(error, status)
  const { 'www-authenticate': _, ...others } = headers
  return {
    status: code === 'UNAUTHORIZED' ? 401 : status,
    // What every client knows: a login for the host, sent with each request.
    headers: code === 'UNAUTHORIZED' ? { ...others, 'www-authenticate': 'Basic realm="dormouse", charset="UTF-8"' } : others,
    body: { errors: [{ code, message: body.hint === undefined ? body.message : `${body.message}. ${body.hint}` }] },
    auditCode: body.code,
    isFault,
  }
}

function codeOf(error: unknown, status: number): RegistryCode {
  switch (error instanceof AppError ? error.code : undefined) {
    case 'unauthorized':
      return 'UNAUTHORIZED'
    case 'forbidden':
    case 'in_use':
    case 'conflict':
    case 'insufficient_resources':
      return 'DENIED'
    case 'not_found':
      return 'MANIFEST_UNKNOWN'
    case 'invalid_image':
      return 'MANIFEST_INVALID'
    case 'rate_limited':
      return 'TOOMANYREQUESTS'
    case 'shutting_down':
      return 'UNAVAILABLE'
    default:
      return status === 413 ? 'SIZE_INVALID' : status < 500 ? 'UNSUPPORTED' : 'UNKNOWN'
  }
}
