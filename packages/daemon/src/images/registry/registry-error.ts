/** How a registry says no: the codes of the OCI distribution specification, section "Error Codes". Clients match on them. */
export const REGISTRY_CODES = [
  'BLOB_UNKNOWN',
  'BLOB_UPLOAD_INVALID',
  'BLOB_UPLOAD_UNKNOWN',
  'DIGEST_INVALID',
  'MANIFEST_BLOB_UNKNOWN',
  'MANIFEST_INVALID',
  'MANIFEST_UNKNOWN',
  'NAME_INVALID',
  'NAME_UNKNOWN',
  'SIZE_INVALID',
  'RANGE_INVALID',
  'PAGINATION_NUMBER_INVALID',
  'UNAUTHORIZED',
  'DENIED',
  'UNSUPPORTED',
  'TOOMANYREQUESTS',
  'UNAVAILABLE',
  'UNKNOWN',
] as const
export type RegistryCode = (typeof REGISTRY_CODES)[number]

export class RegistryError extends Error {
  override readonly name = 'RegistryError'
  readonly code: RegistryCode
  /** For the client, as JSON. */
  readonly detail: unknown

  constructor(code: RegistryCode, message: string, options: { detail?: unknown; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.detail = options.detail
  }
}
