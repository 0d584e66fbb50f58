/**
 * How often callers are refused, by address: a bucket that each refusal takes from and time fills up. Beyond it bad tokens are
 * answered 429, and refusals are not written to the audit log one by one. Good tokens are never held up: whoever shares an address
 * with an attacker goes on.
 */
import { isIPv6 } from 'node:net'

const BURST = 20
const REFILL_MS = 3_000
/** Of all addresses together: what may be written down. */
const TOTAL_BURST = 200
const TOTAL_REFILL_MS = 1_000
/** The longest known is forgotten first: it has had the most time to fill up. */
const ADDRESSES_MAX = 10_000

class Bucket {
  readonly #size: number
  readonly #refillMs: number
  #left: number
  #atMs: number

  constructor(size: number, refillMs: number, nowMs: number) {
    this.#size = size
    this.#refillMs = refillMs
    this.#left = size
    this.#atMs = nowMs
  }

  take(nowMs: number): boolean {
    this.#left = Math.min(this.#size, this.#left + Math.max(0, nowMs - this.#atMs) / this.#refillMs)
    this.#atMs = nowMs
    if (this.#left < 1) return false
    this.#left -= 1
    return true
  }
}

export class RefusedCallers {
  readonly #now: () => number
  readonly #total: Bucket
  readonly #addresses = new Map<string, Bucket>()

  constructor(now: () => number = Date.now) {
    this.#now = now
    this.#total = new Bucket(TOTAL_BURST, TOTAL_REFILL_MS, now())
  }

  /** One more of this address. */
  note(address: string): { readonly retryAfterSeconds: number | undefined; readonly isToBeWrittenDown: boolean } {
    const now = this.#now()
    const key = subscriberOf(address)
    const known = this.#addresses.get(key)
    const bucket = known ?? new Bucket(BURST, REFILL_MS, now)
    this.#addresses.delete(key)
    this.#addresses.set(key, bucket)
    if (this.#addresses.size > ADDRESSES_MAX) this.#addresses.delete(this.#addresses.keys().next().value ?? '')
    if (!bucket.take(now)) return { retryAfterSeconds: REFILL_MS / 1000, isToBeWrittenDown: false }
    return { retryAfterSeconds: undefined, isToBeWrittenDown: this.#total.take(now) }
  }
}

/** One subscriber has a whole /64 of IPv6 to come from. */
function subscriberOf(address: string): string {
  const plain = address.replace(/^::ffff:(?=\d+\.)/, '')
  if (!isIPv6(plain)) return plain
  const [head = '', tail] = plain.split('::')
  const groups = head === '' ? [] : head.split(':')
  const after = tail === undefined || tail === '' ? [] : tail.split(':')
  const zeros = tail === undefined ? 0 : 8 - groups.length - after.length
  return [...groups, ...Array<string>(Math.max(0, zeros)).fill('0'), ...after].slice(0, 4).join(':')
}
