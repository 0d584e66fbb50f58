/**
 * Tickets: a browser can send no header with a WebSocket or an EventSource, and a token in a URL would lie about in histories and
 * logs. A ticket in the URL is worth nothing there: it opens one stream, once, within seconds. Only its hash is kept, in memory.
 */
import { createHash, randomBytes } from 'node:crypto'
import { AppError } from '@dormouse/api/errors.ts'
import type { Ticket } from '@dormouse/api/tokens.ts'
import { type Caller, unauthorized } from './auth.ts'

const HOLDS_MS = 30_000
const TICKETS_MAX = 10_000
// One caller must not take all of them.
const TICKETS_PER_CALLER = 1_000
const ANOTHER = 'Ask for another one: POST /tickets, with the path that it is for'
const TICKET = /^[A-Za-z0-9_-]{43}$/

interface Held {
  readonly caller: Caller
  readonly path: string
  readonly expiresAtMs: number
}

export class Tickets {
  /** By the hash of the ticket: who compares cannot be timed. Oldest first. */
  readonly #held = new Map<string, Held>()
  /** How many are out of each caller. */
  readonly #counts = new Map<string, number>()
  readonly #now: () => number

  constructor(now: () => number = Date.now) {
    this.#now = now
  }

  /** For one request of `path`, as `caller`, who may do it. Throws `rate_limited` when too many are out, of the caller or of all. */
  make(caller: Caller, path: string): Ticket {
    const now = this.#now()
    for (const [key, { expiresAtMs }] of this.#held) {
      if (expiresAtMs > now) break
      this.#take(key)
    }
    const count = this.#counts.get(countedAs(caller)) ?? 0
    if (count >= TICKETS_PER_CALLER) throw tooMany(`${TICKETS_PER_CALLER} tickets of this caller are out already`)
    if (this.#held.size >= TICKETS_MAX) throw tooMany(`${TICKETS_MAX} tickets are out already`)
    const ticket = randomBytes(32).toString('base64url')
    const expiresAtMs = now + HOLDS_MS
    this.#held.set(hashOf(ticket), { caller, path, expiresAtMs })
    this.#counts.set(countedAs(caller), count + 1)
    return { ticket, expires_at: new Date(expiresAtMs).toISOString() }
  }

  /** Who asks with it. It is used up by the first try, at whatever path. Throws `unauthorized`. */
  redeem(ticket: unknown, path: string): Caller {
    const key = typeof ticket === 'string' && TICKET.test(ticket) ? hashOf(ticket) : ''
    const held = this.#take(key)
    if (held === undefined || held.expiresAtMs <= this.#now())
      throw unauthorized('The ticket is not one that holds: it is used once, soon', ANOTHER)
    if (held.path !== path) throw unauthorized('The ticket is for another path', ANOTHER)
    return held.caller
  }

  #take(key: string): Held | undefined {
    const held = this.#held.get(key)
    if (held === undefined) return undefined
    this.#held.delete(key)
    const caller = countedAs(held.caller)
    const left = (this.#counts.get(caller) ?? 1) - 1
    if (left === 0) this.#counts.delete(caller)
    else this.#counts.set(caller, left)
    return held
  }
}

const countedAs = ({ token, subject }: Caller): string => token?.id ?? subject

const tooMany = (message: string): AppError =>
  new AppError('rate_limited', message, { hint: 'Each is over once it is used, or after 30 seconds', retryAfterSeconds: HOLDS_MS / 1000 })

const hashOf = (ticket: string): string => createHash('sha256').update(ticket).digest('base64')
