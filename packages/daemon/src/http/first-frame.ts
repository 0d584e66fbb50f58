/** The first frame of exec and cp: what the caller wants, as JSON. */
import { AppError } from '@dormouse/api/errors.ts'
import type { TSchema } from 'typebox'
import { checkInput } from './check-input.ts'
import type { Frame } from './web-socket-peer.ts'

export const FIRST_FRAME_MS = 10_000

/**
 * What it says, once it fits `schema`; throws `invalid_request` in words. A field that is null was not given: the published command line
 * says so of a command that its user left out.
 */
export function readFirstFrame(schema: TSchema, frame: Frame | undefined, what: string): unknown {
  if (frame === undefined) throw new AppError('invalid_request', `No first frame came within ${FIRST_FRAME_MS / 1000} s`)
  if (!frame.isText) throw new AppError('invalid_request', `The first frame must be text: ${what} as JSON`)
  let value: unknown
  try {
    value = JSON.parse(frame.data.toString())
  } catch {
    throw new AppError('invalid_request', 'The first frame is not valid JSON')
  }
  const given = isFields(value) ? Object.fromEntries(Object.entries(value).filter(([, field]) => field !== null)) : value
  checkInput(schema, given, 'The first frame')
  return given
}

const isFields = (value: unknown): value is object => typeof value === 'object' && value !== null && !Array.isArray(value)
