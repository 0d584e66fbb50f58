/** Numbers and times as people read them. What programs read is printed by `--json` as the API gave it. */

const UNITS = ['B', 'KB', 'MB', 'GB', 'TB', 'PB'] as const

/** At most three digits that matter: 999B, 1.2KB, 34.5MB, 512MB. Units are powers of 1024, as everywhere in the API. */
export function humanBytes(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024
    unit++
  }
  // 1023.97 would print as 1024.
  if (value >= 1023.5 && unit > 0 && unit < UNITS.length - 1) {
    value /= 1024
    unit++
  }
  const digits = unit === 0 || value >= 100 || Number.isInteger(value) ? 0 : 1
  return `${value.toFixed(digits)}${UNITS[unit]}`
}

const STEPS: readonly (readonly [limitSeconds: number, seconds: number, unit: string])[] = [
  [60, 1, 's'],
  [3600, 60, 'm'],
  [86_400, 3600, 'h'],
  [86_400 * 14, 86_400, 'd'],
  [86_400 * 60, 86_400 * 7, 'w'],
  [86_400 * 730, 86_400 * 30, 'mo'],
]

/** One rounded-down step: 12s, 5m, 3h, 6d, 2w, 5mo, 2y. A clock that runs behind gives 0s. */
export function humanDuration(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000))
  for (const [limit, unitSeconds, unit] of STEPS) if (seconds < limit) return `${Math.floor(seconds / unitSeconds)}${unit}`
  return `${Math.floor(seconds / (86_400 * 365))}y`
}

/** `5m ago`; a dash for what has not happened. */
export function ago(time: string | null | undefined, nowMs: number): string {
  if (time === null || time === undefined) return '-'
  const at = Date.parse(time)
  return Number.isNaN(at) ? '-' : `${humanDuration(nowMs - at)} ago`
}

export const percent = (ratio: number): string => `${(ratio * 100).toFixed(ratio < 0.0995 ? 1 : 0)}%`

/** A permission line as `ls -l` writes it. */
export function modeText(mode: number, kind: 'directory' | 'link' | 'file' | 'other'): string {
  const letters = (bits: number, special: boolean, specialLetter: string): string => {
    const execute = (bits & 1) !== 0
    const last = special ? (execute ? specialLetter : specialLetter.toUpperCase()) : execute ? 'x' : '-'
    return `${bits & 4 ? 'r' : '-'}${bits & 2 ? 'w' : '-'}${last}`
  }
  const type = { directory: 'd', link: 'l', file: '-', other: '?' }[kind]
  return (
    type +
    letters((mode >> 6) & 7, (mode & 0o4000) !== 0, 's') +
    letters((mode >> 3) & 7, (mode & 0o2000) !== 0, 's') +
    letters(mode & 7, (mode & 0o1000) !== 0, 't')
  )
}

/** The short form of a digest or an id, long enough to type back. */
export const shortDigest = (digest: string): string => digest.replace(/^sha256:/, '').slice(0, 12)
export const shortId = (id: string): string => id.slice(0, 12)

// Names and messages may come from a guest or a registry: they must not steer the terminal.
// biome-ignore lint/suspicious/noControlCharactersInRegex: finding them is the point
const CONTROL = /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g

/** Text from elsewhere, safe to show: control characters are written as escapes. */
export const safeText = (text: string): string =>
  text.replace(CONTROL, (character) => `\\x${(character.codePointAt(0) ?? 0).toString(16).padStart(2, '0')}`)
