/** When the same request is sent again, and after how long (docs/decisions/0053). Pure. */

/** What an answer says about a repeat. */
export interface Refused {
  readonly status: number
  readonly headers: { get(name: string): string | null }
}

const FIRST_MS = 500
const LONGEST_MS = 8000
/** A server that asks for more patience than this is told of, not waited for. */
const ASKED_MS_MAX = 60_000

/** The server's own word first (`x-should-retry`), else whether such a status can change by itself. */
export function isWorthARepeat({ status, headers }: Refused): boolean {
  const said = headers.get('x-should-retry')
  if (said === 'true') return true
  if (said === 'false') return false
  return status === 408 || status === 409 || status === 429 || status >= 500
}

/** Milliseconds until the repeat that follows `repeats` earlier ones: what the server asks for, else longer each time, up to 8 s. */
export function delayBefore(repeats: number, refused: Refused | undefined, chance: number = Math.random()): number {
  const asked = askedMs(refused)
  if (asked !== undefined && asked <= ASKED_MS_MAX) return asked
  // Up to a quarter less, so that those who were refused together do not come back together.
  return Math.min(FIRST_MS * 2 ** repeats, LONGEST_MS) * (1 - chance / 4)
}

function askedMs(refused: Refused | undefined): number | undefined {
  const ms = Number.parseFloat(refused?.headers.get('retry-after-ms') ?? '')
  if (ms >= 0) return ms
  const seconds = Number.parseFloat(refused?.headers.get('retry-after') ?? '')
  return seconds >= 0 ? seconds * 1000 : undefined
}
