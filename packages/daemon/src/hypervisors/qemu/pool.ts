/**
 * How many VMs wait for whom. As many of a kind wait as there were among the last starts, so that a host on which little happens keeps
 * little, and who starts ten of a kind in a row finds the next ones waiting. Starts come first: nothing is made while one is under way,
 * and what waits gives way to what runs.
 */
import type { Logger } from 'pino'
import { isTight, type MemoryPressure, readMemoryPressure } from '../../host/host-facts.ts'
import type { Step } from '../../lib/step.ts'

/** VMs of one kind are alike: any start that asks for the kind can have any of them. */
export interface Kind<M> {
  readonly key: string
  /** What they stand on. */
  readonly base: string
  /** The instance that alone can have it, and once; absent: any start may. */
  readonly owner?: string
  /** What one counts as, as an instance would. */
  readonly memoryBytes: number
  make(step: Step): Promise<M>
}

export interface Waiting {
  /** It ended by itself. Never rejects. */
  readonly ended: Promise<unknown>
  /** Ends it and removes what it has. Repeat is harmless. */
  end(): Promise<void>
}

export interface PoolUses {
  /** Of all kinds together. */
  readonly size: number
  /** Memory that admission has given to no instance. */
  readonly roomBytes: () => number
  readonly log: Logger
  /** For tests. */
  readonly quietMs?: number
  readonly pressure?: () => MemoryPressure
}

interface Start<M> {
  readonly kind: Kind<M>
  readonly atMs: number
}

/** Starts that are longer ago say nothing of the next one. */
const RECENT_MS = 3_600_000
/** A guest that has just been started wants the host's processors for itself. */
const QUIET_MS = 1000
const LOOK_EVERY_MS = 10_000
const MAKE_LIMIT_MS = 60_000
/** What could not be made, or did not stay, is not tried again for so long. */
const FAILURE_KEPT_MS = 60_000

export class Pool<M extends Waiting> implements AsyncDisposable {
  readonly #uses: Required<PoolUses>
  readonly #closing = new AbortController()
  readonly #failures = new Map<string, number>()
  #recent: Start<M>[] = []
  #waiting: { readonly kind: Kind<M>; readonly machine: M }[] = []
  #making: { readonly kind: Kind<M>; readonly done: Promise<void> } | undefined
  #ending = new Set<Promise<void>>()
  #starts = 0
  /** Until then the host has other uses for its memory. */
  #tightUntilMs = 0
  /** Until then it was asked for by someone. */
  #heldUntilMs = 0
  #timer: NodeJS.Timeout | undefined

  constructor(uses: PoolUses) {
    this.#uses = { quietMs: QUIET_MS, pressure: readMemoryPressure, ...uses }
  }

  /** How many wait, of those that `isMeant` says. */
  count(isMeant: (machine: M) => boolean = () => true): number {
    return this.#waiting.filter(({ machine }) => isMeant(machine)).length
  }

  map<T>(of: (machine: M) => T): T[] {
    return this.#waiting.map(({ machine }) => of(machine))
  }

  /** Ends all that wait, and makes none until then; resolves when they are gone. Without a time, makes them again. */
  async release(untilMs: number | undefined): Promise<void> {
    this.#heldUntilMs = untilMs ?? 0
    if (untilMs !== undefined) this.#drop(this.#waiting)
    await Promise.all(this.#ending)
    this.#lookIn(this.#uses.quietMs)
  }

  some(isMeant: (machine: M) => boolean): boolean {
    return this.count(isMeant) > 0
  }

  /** Something is to run: until this is disposed of no VM is made to wait. */
  start(): Disposable {
    this.#starts++
    return {
      [Symbol.dispose]: () => {
        this.#starts--
        this.#lookIn(this.#uses.quietMs)
      },
    }
  }

  /**
   * One that waits for just this, which is then the caller's; another will wait for the next start of the kind. None for what has no
   * kind. Those that wait give way to what has been admitted.
   */
  take(kind: Kind<M> | undefined): M | undefined {
    const found = kind && this.#waiting.find((one) => one.kind.key === kind.key)
    this.#waiting = this.#waiting.filter((one) => one !== found)
    this.#uses.log.debug({ kind: kind?.key, isThere: found !== undefined }, 'a VM was asked for')
    if (kind?.owner !== undefined) this.#recent = this.#recent.filter((start) => start.kind.owner !== kind.owner)
    else if (kind !== undefined) this.#want(kind)
    const fitting = wantedOf(
      this.#waiting.map((one) => one.kind),
      this.#uses.roomBytes(),
    )
    this.#drop(compare(this.#waiting, fitting).surplus)
    return found?.machine
  }

  /** Its owner is the likeliest to start next; of one owner one is expected at a time. */
  expect(kind: Kind<M>): void {
    this.#recent = this.#recent.filter((start) => start.kind.owner !== kind.owner)
    this.#want(kind)
    this.#lookIn(this.#uses.quietMs)
  }

  /** Ends those of the kinds that are meant; none is made until a start asks for one again. Resolves when they are gone. */
  async forget(isMeant: (kind: Kind<M>) => boolean): Promise<void> {
    this.#recent = this.#recent.filter(({ kind }) => !isMeant(kind))
    this.#drop(this.#waiting.filter(({ kind }) => isMeant(kind)))
    await Promise.all(this.#ending)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort()
    clearTimeout(this.#timer)
    await this.#making?.done
    this.#drop(this.#waiting)
    await Promise.all(this.#ending)
  }

  #want(kind: Kind<M>): void {
    this.#recent = [{ kind, atMs: Date.now() }, ...this.#recent].slice(0, this.#uses.size)
  }

  #lookIn(ms: number): void {
    clearTimeout(this.#timer)
    if (this.#closing.signal.aborted) return
    this.#timer = setTimeout(() => this.#look(), ms)
    // Those that wait end with the daemon, not the other way round.
    this.#timer.unref()
  }

  #look(): void {
    const nowMs = Date.now()
    this.#recent = this.#recent.filter(({ atMs }) => nowMs - atMs < RECENT_MS)
    if (nowMs < this.#heldUntilMs) this.#drop(this.#waiting)
    else if (isTight(this.#uses.pressure())) {
      this.#tightUntilMs = nowMs + FAILURE_KEPT_MS
      this.#drop(this.#waiting)
    } else this.#follow(nowMs)
    if (this.#recent.length > 0 || this.#waiting.length > 0) this.#lookIn(LOOK_EVERY_MS)
  }

  #follow(nowMs: number): void {
    const wanted = wantedOf(
      this.#recent.map(({ kind }) => kind),
      this.#uses.roomBytes(),
    )
    const { surplus, missing } = compare(this.#waiting, this.#making === undefined ? wanted : without(wanted, this.#making.kind))
    this.#drop(surplus)
    const next = missing.find(({ key, memoryBytes }) => (this.#failures.get(key) ?? 0) <= nowMs && this.#isEasy(memoryBytes))
    if (next !== undefined && nowMs >= this.#tightUntilMs && this.#making === undefined && this.#starts === 0) this.#make(next)
  }

  /** It would not be in the way as soon as it is there. */
  #isEasy(bytes: number): boolean {
    const pressure = this.#uses.pressure()
    return !isTight({ ...pressure, availableBytes: pressure.availableBytes - bytes })
  }

  #make(kind: Kind<M>): void {
    const step = { signal: AbortSignal.any([this.#closing.signal, AbortSignal.timeout(MAKE_LIMIT_MS)]), log: this.#uses.log }
    const make = async (): Promise<void> => {
      try {
        const machine = await kind.make(step)
        const one = { kind, machine }
        this.#waiting.push(one)
        this.#uses.log.debug({ kind: kind.key, instance: kind.owner }, 'a VM waits')
        this.#failures.delete(kind.key)
        void machine.ended.then(() => {
          if (!this.#waiting.includes(one)) return
          this.#failures.set(kind.key, Date.now() + FAILURE_KEPT_MS)
          this.#drop([one])
        })
      } catch (error) {
        if (this.#closing.signal.aborted) return
        this.#failures.set(kind.key, Date.now() + FAILURE_KEPT_MS)
        this.#uses.log.warn({ err: error, kind: kind.key }, 'no VM could be made to wait for a start')
      } finally {
        this.#making = undefined
        this.#lookIn(this.#uses.quietMs)
      }
    }
    this.#making = { kind, done: make() }
  }

  #drop(gone: readonly { readonly kind: Kind<M>; readonly machine: M }[]): void {
    this.#waiting = this.#waiting.filter((one) => !gone.includes(one))
    for (const { kind, machine } of gone) {
      this.#uses.log.debug({ kind: kind.key }, 'a VM waits no longer')
      const ending = machine
        .end()
        .catch((error: unknown) => this.#uses.log.error({ err: error }, 'a VM that waited could not be ended'))
        .finally(() => this.#ending.delete(ending))
      this.#ending.add(ending)
    }
  }
}

/** Of those that are asked for, in their order, as many as there is room for. Pure. */
export function wantedOf<K extends { readonly memoryBytes: number }>(asked: readonly K[], roomBytes: number): K[] {
  let left = roomBytes
  return asked.filter(({ memoryBytes }) => {
    if (memoryBytes > left) return false
    left -= memoryBytes
    return true
  })
}

/** What waits and is not wanted, and what is wanted and does not wait. Pure. */
export function compare<K extends { readonly key: string }, W extends { readonly kind: K }>(
  waiting: readonly W[],
  wanted: readonly K[],
): { surplus: W[]; missing: K[] } {
  let missing = [...wanted]
  const surplus = waiting.filter(({ kind }) => {
    const before = missing.length
    missing = without(missing, kind)
    return missing.length === before
  })
  return { surplus, missing }
}

function without<K extends { readonly key: string }>(kinds: readonly K[], one: K): K[] {
  const at = kinds.findIndex(({ key }) => key === one.key)
  return kinds.filter((_, index) => index !== at)
}
