/** How a full disk is told: by the system's own codes, and in the words of programs that ran into it. */
import { AppError } from '@dormouse/api/errors.ts'
import { CommandError } from './run-command.ts'

const HINT = 'Make room: dormouse rm, dormouse snapshot rm, dormouse prune --all'

/** Of strerror(3) for ENOSPC and EDQUOT. */
const saysDiskFull = (words: string): boolean => /No space left on device|Disk quota exceeded/.test(words)

/** Did it fail, or what made it fail, for want of room on a disk? */
export function isNoSpace(error: unknown): boolean {
  if (!(error instanceof Error)) return false
  const { code } = error as NodeJS.ErrnoException
  if (code === 'ENOSPC' || code === 'EDQUOT') return true
  return (error instanceof CommandError && saysDiskFull(error.stderr)) || isNoSpace(error.cause)
}

/** `what` is a sentence without its end: what could not be done. */
export const diskFullError = (what: string, cause: unknown): AppError =>
  new AppError('insufficient_resources', `${what}: the disk of the data directory is full`, { hint: HINT, cause })

/** For a process of ours that says why it could not do it: `said`, after the word `error`. */
export function workerError(what: string, said: string | undefined): AppError {
  const why = said?.trim().replace(/^error /m, '') || 'it ended without a word'
  if (saysDiskFull(why)) return diskFullError(what, new Error(why))
  return new AppError('internal_error', `${what}: ${why}`)
}
