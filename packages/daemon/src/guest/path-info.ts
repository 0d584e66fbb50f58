import { AppError } from '@dormouse/api/errors.ts'
import { refusalOf, wordsOf } from './answers.ts'
import type { FieldReader } from './fields.ts'
import { KIND, STATUS, TAG } from './wire.ts'

/** What stands at a path in the guest, as the API tells it. */
export interface PathInfo {
  readonly exists: boolean
  readonly is_dir: boolean
  readonly is_file: boolean
  readonly is_symlink: boolean
  readonly link_target: string
  readonly mode: number
  readonly size: number
  /** Why nothing is known of it, other than that it is not there. */
  readonly error?: string
}

const NOTHING: PathInfo = { exists: false, is_dir: false, is_file: false, is_symlink: false, link_target: '', mode: 0, size: 0 }

/** Throws for what is no fact about the path: a guest that does not run, or is asked wrongly. */
export function pathInfoOf(answer: FieldReader): PathInfo {
  const refusal = refusalOf(answer, 'The path could not be looked at')
  if (refusal) {
    if (!isAboutThePath(answer.number(TAG.STATUS))) throw refusal
    return { ...NOTHING, error: wordsOf(answer, TAG.MESSAGE) || refusal.message }
  }
  if (!answer.flag(TAG.EXISTS)) return NOTHING
  const kind = answer.number(TAG.FILE_KIND, KIND.OTHER)
  if (kind === undefined) throw new AppError('guest_unavailable', 'The guest agent does not say what the path is')
  return {
    exists: true,
    is_dir: kind === KIND.DIRECTORY,
    is_file: kind === KIND.FILE,
    is_symlink: kind === KIND.SYMLINK,
    link_target: answer.text(TAG.LINK_TARGET) ?? '',
    mode: answer.number(TAG.MODE, 0o7777) ?? 0,
    size: answer.number(TAG.SIZE) ?? 0,
  }
}

const isAboutThePath = (status: number | undefined): boolean =>
  status === STATUS.DENIED || status === STATUS.FAILED || status === STATUS.NOT_FOUND || status === STATUS.NOT_DIRECTORY
