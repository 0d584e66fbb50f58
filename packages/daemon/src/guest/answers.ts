import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import type { FieldReader } from './fields.ts'
import { STATUS, TAG } from './wire.ts'

const CODES: Readonly<Record<number, ErrorCode>> = {
  [STATUS.BAD_REQUEST]: 'invalid_request',
  [STATUS.NOT_FOUND]: 'path_not_found',
  [STATUS.DENIED]: 'invalid_path',
  [STATUS.WRONG_PHASE]: 'invalid_state',
  [STATUS.BUSY]: 'conflict',
  [STATUS.UNSUPPORTED]: 'not_supported',
  [STATUS.TIMED_OUT]: 'timed_out',
  [STATUS.IS_DIRECTORY]: 'invalid_path',
  [STATUS.NOT_DIRECTORY]: 'invalid_path',
  [STATUS.NO_SPACE]: 'insufficient_resources',
  [STATUS.CANCELLED]: 'timed_out',
}

const EXIT_OF_THE_GUEST_ITSELF = 125

/** Undefined when the guest did what it was asked to; else the error that says why not. `what` begins the sentence. */
export function refusalOf(fields: FieldReader, what: string): AppError | undefined {
  const status = fields.number(TAG.STATUS) ?? STATUS.FAILED
  if (status === STATUS.OK) return undefined
  const why = wordsOf(fields, TAG.MESSAGE) || 'the guest does not say why'
  const path = wordsOf(fields, TAG.PATH)
  let code: ErrorCode = CODES[status] ?? 'internal_error'
  if (status === STATUS.NOT_STARTED)
    code = fields.number(TAG.EXIT_CODE, 255) === EXIT_OF_THE_GUEST_ITSELF ? 'internal_error' : 'invalid_request'
  return new AppError(code, `${what}${path ? ` (${path})` : ''}: ${why}`)
}

/** Words that a guest wrote, safe to print: one line, no control characters, not long. */
export function wordsOf(fields: FieldReader, tag: number): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
  return (fields.text(tag, 1024) ?? '').replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, ' ').slice(0, 500)
}

export interface Ending {
  readonly code: number
  readonly message: string
}

export const endingOf = (fields: FieldReader): Ending => ({
  code: fields.number(TAG.EXIT_CODE, 255) ?? 255,
  message: wordsOf(fields, TAG.MESSAGE),
})
