import { AppError } from '@dormouse/api/errors.ts'

const NAMES =
  'HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS'.split(
    ' ',
  )
// The images' C library keeps the first two real-time signals to itself.
const RTMIN = 34
const RTMAX = 64

/** The number of `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, as images name their StopSignal. Throws `invalid_request`. */
export function signalNumber(name: string): number {
  const bare = name.trim().toUpperCase().replace(/^SIG/, '')
  const number = /^\d{1,2}$/.test(bare) ? Number(bare) : NAMES.indexOf(bare) + 1 || realTime(bare)
  if (number >= 1 && number <= RTMAX) return number
  throw new AppError('invalid_request', `There is no signal ${JSON.stringify(name)}`, { hint: 'Name it like SIGTERM, SIGRTMIN+3 or 15' })
}

function realTime(bare: string): number {
  const match = /^RT(MIN|MAX)(?:([+-])(\d{1,2}))?$/.exec(bare)
  if (!match) return 0
  const number = (match[1] === 'MIN' ? RTMIN : RTMAX) + (match[2] === '-' ? -1 : 1) * Number(match[3] ?? 0)
  return number >= RTMIN ? number : 0
}
