/**
 * The room's head: puts instances to sleep that no one uses. Who is connected is asked of whoever counts it, and seldom: an instance can
 * sleep no sooner than its idle time after the last one left, so it is looked at then, and not before.
 *
 *     Running, policy on ─► look ─► someone there: look again after an idle time
 *                            ▲  ╰─► no one: look again when the idle time is over ─► still no one ─► a place ─► nap
 *                            ╰───────────────────────────── someone came, before the record ◄───────────────────╯
 *
 * A nap is a standby by the instance's own worker, which looks again before it begins, while the VM stands still, and before the sleeping
 * state counts: whoever has come by then keeps it awake, and has noticed nothing but a pause. Waiting is done by a clock that no one sets;
 * what must outlive the daemon is in rows.
 */
import { isDeepStrictEqual } from 'node:util'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { EventKind } from '@dormouse/api/events.ts'
import type { OwnDoings } from '../audit/audit.ts'
import type { Events } from '../events/events.ts'
import { type Clock, hostClock } from '../host/clock.ts'
import type { IgnoredConnections, Inbound } from '../hypervisors/hypervisor.ts'
import type { AutoStandbyPolicy, Instance, InstanceId } from '../instances/instance.ts'
import { isKeptAwake, type StayAwake } from '../instances/operations/standby.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import { AutoStandbyRows } from '../store/auto-standby.ts'
import type { Database } from '../store/database.ts'
import { type Idleness, isEnabled, napAtOf, type Outlook, obstacleOf, outlookOf } from './idleness.ts'

/** What is asked of the instances. */
export interface SleepersDoor {
  list(): readonly Instance[]
  find(id: InstanceId): Instance | undefined
  get(id: InstanceId): Instance
  /** Can its driver put it to sleep at all? */
  canSleep(id: InstanceId): boolean
  /** Is a standby of it under way, or waiting? */
  isFallingAsleep(id: InstanceId): boolean
  inbound(id: InstanceId, ignored: IgnoredConnections, step: Step): Promise<Inbound>
  /** Puts it to sleep, unless `stayAwake` says no. */
  nap(id: InstanceId, stayAwake: StayAwake): Promise<Instance>
}

export interface AutoStandbyUses {
  readonly db: Database
  readonly events: Pick<Events, 'record' | 'listen'>
  readonly instances: SleepersDoor
  readonly audit: Pick<OwnDoings, 'perform'>
  readonly log: Logger
  /** How connections are counted, and whether whoever does it knows what was before it was first asked. */
  readonly tracking: { readonly mode: string; readonly isRemembered: boolean }
  /** So many naps at the same time. */
  readonly maxConcurrent: number
  readonly clock?: Clock
}

/** As it is told. Times are the wall's. */
export interface AutoStandbyStatus extends Pick<Outlook, 'status' | 'reason'> {
  readonly isSupported: boolean
  readonly policy: AutoStandbyPolicy | undefined
  readonly isEligible: boolean
  readonly active: number
  readonly trackingMode: string
  readonly idleSinceMs?: number
  readonly lastActivityMs?: number
  readonly napAtMs?: number
  readonly remainingMs?: number
  readonly holdUntilMs?: number
  readonly lastError?: string
}

/** An instance that is eligible. Times are the clock's. */
interface Watched {
  readonly id: InstanceId
  policy: AutoStandbyPolicy & { readonly idleTimeoutMs: number }
  idleSince: number
  /** Since when it is idle is on record. */
  isStored: boolean
  lastActivity: number | undefined
  active: number
  observerError: string | undefined
  failure: { readonly message: string; readonly retryAt: number; readonly count: number } | undefined
  lookAt: number
  looking: Promise<void> | undefined
  nap: Nap | undefined
}

interface Nap {
  /** Someone or something wants it awake: it goes no further. */
  withdrawn: string | undefined
  /** It has been looked at for the last time. */
  isCommitted: boolean
}

/** Of the wall clock. What is told is as exact as this. */
const JUMP_MS = 100
const LOOK_LIMIT_MS = 5000
/** Its workload stands still meanwhile. */
const PAUSED_LOOK_LIMIT_MS = 1000
/** What is not remembered elsewhere is on record within this time. */
const LOOK_EVERY_MS = 60_000
/** No timer of Node takes more than 24 days; an hour is seldom enough. */
const LOOK_AT_LEAST_EVERY_MS = 3_600_000
const OBSERVER_RETRY_MS = 10_000
const AGAIN_MS = 1000
const FIRST_RETRY_MS = 30_000
const LAST_RETRY_MS = 600_000

export class AutoStandby {
  readonly #uses: AutoStandbyUses
  readonly #clock: Clock
  readonly #rows: AutoStandbyRows
  readonly #watched = new Map<InstanceId, Watched>()
  readonly #holds = new Map<InstanceId, number>()
  /** Commands and copies by way of the API. */
  readonly #sessions = new Map<InstanceId, number>()
  /** Those that may sleep and wait for a place, longest first. */
  readonly #queue = new Set<Watched>()
  readonly #naps = new Set<Promise<void>>()
  readonly #end = new AbortController()
  #listening: Disposable | undefined
  #timer: Disposable | undefined
  #timerAt = Number.POSITIVE_INFINITY
  #ahead = Number.NEGATIVE_INFINITY

  constructor(uses: AutoStandbyUses) {
    this.#uses = uses
    this.#clock = uses.clock ?? hostClock
    this.#rows = new AutoStandbyRows(uses.db)
  }

  /** Takes up what the last daemon counted, and begins. Once, after the instances are recovered. */
  recover(): void {
    const { instances, events } = this.#uses
    this.#listening = events.listen(({ kind, subject }) => {
      if (kind.startsWith('instance.')) this.#refresh(subject as InstanceId)
    })
    for (const { id } of instances.list()) this.#refresh(id, { isRecovered: true })
  }

  /** How it stands now: connections are counted anew. */
  async status(id: InstanceId): Promise<AutoStandbyStatus> {
    const { instances } = this.#uses
    const watched = this.#watched.get(id)
    if (watched !== undefined && watched.nap === undefined) await this.#look(watched)
    return this.#statusOf(instances.get(id))
  }

  /**
   * Not before another idle time from now; a later call takes the place of an earlier one. What waits to sleep waits no more, and a nap
   * that is under way is broken off. Throws `instance_in_standby` when it sleeps, or it is too late. Where it never sleeps by itself this
   * changes nothing.
   */
  async hold(id: InstanceId): Promise<AutoStandbyStatus> {
    const { instances, db, events } = this.#uses
    const instance = instances.get(id)
    const nap = this.#watched.get(id)?.nap
    const isTooLate = nap === undefined ? instances.isFallingAsleep(id) : nap.isCommitted
    if (instance.state === 'Standby' || isTooLate) {
      throw new AppError('instance_in_standby', `The instance ${instance.name} is in standby, or about to be`, {
        hint: `Restore it first: dormouse restore ${instance.name}`,
      })
    }
    const policy = instance.autoStandby
    // One that is stopped may be started before the time is over.
    const isUnfit = obstacleOf({ ...instance, state: 'Running' }, instances.canSleep(id)) !== undefined
    if (!isEnabled(policy) || isUnfit) return this.status(id)
    const holdUntil = this.#clock.passed() + policy.idleTimeoutMs
    const before = this.#holds.get(id)
    this.#holds.set(id, holdUntil)
    try {
      db.transaction(() => {
        this.#write(id)
        events.record({ kind: 'auto_standby.held', subject: id, data: { hold_until: new Date(this.#wallOf(holdUntil)).toISOString() } })
      })
    } catch (error) {
      if (before === undefined) this.#holds.delete(id)
      else this.#holds.set(id, before)
      throw error
    }
    if (nap !== undefined) nap.withdrawn ??= 'it is to be held awake'
    return this.status(id)
  }

  /** Someone runs a command in it, or copies: it stays awake until this is disposed of. */
  beginSession(id: InstanceId): Disposable {
    this.#sessions.set(id, (this.#sessions.get(id) ?? 0) + 1)
    let isOver = false
    return {
      [Symbol.dispose]: () => {
        if (isOver) return
        isOver = true
        const left = (this.#sessions.get(id) ?? 1) - 1
        if (left > 0) this.#sessions.set(id, left)
        else this.#sessions.delete(id)
        const watched = this.#watched.get(id)
        if (watched === undefined) return
        const now = this.#clock.passed()
        this.#sawActivity(watched, { from: now, to: now })
        // Written down with the next look: one for many, where they are quick.
        watched.isStored = false
        watched.lookAt = Math.min(watched.lookAt, now + AGAIN_MS)
        this.#arm()
      },
    }
  }

  /** Begins no more naps; resolves when nothing is looked at any more. Those that are under way go no further, and are ended by the instances' own end. */
  async close(): Promise<void> {
    this.#end.abort(new AppError('shutting_down', 'The daemon is shutting down'))
    this.#listening?.[Symbol.dispose]()
    this.#timer?.[Symbol.dispose]()
    await Promise.all([...this.#watched.values()].map(({ looking }) => looking))
  }

  // Who is watched

  #refresh(id: InstanceId, { isRecovered = false } = {}): void {
    if (this.#end.signal.aborted) return
    const instance = this.#uses.instances.find(id)
    if (instance === undefined) this.#holds.delete(id)
    const { autoStandby: policy } = instance ?? {}
    const known = this.#watched.get(id)
    if (instance === undefined || !isEnabled(policy) || obstacleOf(instance, this.#uses.instances.canSleep(id)) !== undefined) {
      if (known !== undefined) this.#forget(known)
      if (isRecovered && isEnabled(policy)) this.#recall(id)
      return
    }
    if (known === undefined) this.#watch(instance, policy, isRecovered)
    else if (!isDeepStrictEqual(known.policy, policy)) this.#follow(known, policy)
  }

  #watch({ id, phases }: Instance, policy: Watched['policy'], isRecovered: boolean): void {
    const now = this.#clock.passed()
    const record = this.#recall(id)
    const past = (ms: number): number => Math.min(now, this.#passedOf(ms))
    let idleSince = now
    // What has left since the last daemon looked is known only where someone else has counted on.
    const isKnown = isRecovered && record?.idleSinceMs !== undefined && (!record.isActive || this.#uses.tracking.isRemembered)
    if (isKnown) idleSince = Math.max(past(record.idleSinceMs), past(phases.sinceMs))
    const watched: Watched = {
      id,
      policy,
      idleSince,
      isStored: isKnown,
      lastActivity: record?.lastActivityMs === undefined ? undefined : past(record.lastActivityMs),
      active: 0,
      observerError: undefined,
      failure: undefined,
      lookAt: now,
      looking: undefined,
      nap: undefined,
    }
    this.#watched.set(id, watched)
    this.#arm()
  }

  /** What is on record of it; a hold that is not over holds on. */
  #recall(id: InstanceId): ReturnType<AutoStandbyRows['find']> {
    const record = this.#rows.find(id)
    const { holdUntilMs } = record ?? {}
    if (holdUntilMs !== undefined && !this.#holds.has(id) && holdUntilMs > this.#clock.wall()) {
      this.#holds.set(id, this.#passedOf(holdUntilMs))
    }
    return record
  }

  /** Its policy is another: what was counted down to is counted anew. */
  #follow(watched: Watched, policy: Watched['policy']): void {
    watched.policy = policy
    watched.failure = undefined
    watched.idleSince = this.#clock.passed()
    watched.isStored = false
    watched.lookAt = watched.idleSince
    this.#queue.delete(watched)
    if (watched.nap !== undefined) watched.nap.withdrawn ??= 'its policy was changed'
    this.#arm()
  }

  #forget(watched: Watched): void {
    this.#watched.delete(watched.id)
    this.#queue.delete(watched)
    // A nap that has come this far ends by itself; one that waits for its turn is not to begin.
    if (watched.nap !== undefined) watched.nap.withdrawn ??= 'it is not to sleep by itself any more'
  }

  // Looking

  /** Rejects never. One look at a time: who comes meanwhile has what that one sees. */
  #look(watched: Watched): Promise<void> {
    watched.looking ??= this.#count(watched)
      .then(() => this.#judge(watched))
      .finally(() => {
        watched.looking = undefined
        this.#arm()
      })
    return watched.looking
  }

  /** Asks who is connected. */
  async #count(watched: Watched, limitMs = LOOK_LIMIT_MS): Promise<void> {
    const { id, policy } = watched
    const { instances, log } = this.#uses
    const ignored = { sources: policy.ignoreSources, ports: policy.ignorePorts }
    try {
      const signal = AbortSignal.any([this.#end.signal, AbortSignal.timeout(limitMs)])
      const asked = this.#clock.passed()
      const { active, quietMs } = await instances.inbound(id, ignored, { signal, log })
      const now = this.#clock.passed()
      if (watched.observerError !== undefined) log.info({ instance: id }, 'its connections are counted again')
      watched.observerError = undefined
      const [was, since] = [watched.active, watched.idleSince]
      watched.active = active + (this.#sessions.get(id) ?? 0)
      if (watched.active > 0) this.#sawActivity(watched, { from: now, to: now })
      else if (quietMs !== undefined) this.#sawActivity(watched, { from: asked - quietMs, to: now - quietMs })
      const isTurn = was > 0 !== watched.active > 0
      if (isTurn || !watched.isStored || (watched.active === 0 && watched.idleSince > since)) this.#store(watched)
    } catch (error) {
      if (this.#end.signal.aborted || this.#watched.get(id) !== watched) return
      const message = error instanceof Error ? error.message : String(error)
      if (watched.observerError === undefined) log.warn({ instance: id, err: error }, 'its connections cannot be counted: it stays awake')
      watched.observerError = message
    }
  }

  /**
   * The last activity was some time within these. It is told again and again, each time between other bounds: news is only what began behind
   * all that is known.
   */
  #sawActivity(watched: Watched, { from, to }: { readonly from: number; readonly to: number }): void {
    if (from <= (watched.lastActivity ?? Number.NEGATIVE_INFINITY)) return
    watched.lastActivity = to
    watched.idleSince = Math.max(watched.idleSince, to)
    watched.failure = undefined
  }

  /** When it is looked at again; whether it is to sleep now. */
  #judge(watched: Watched): void {
    if (this.#end.signal.aborted || this.#watched.get(watched.id) !== watched) return
    const now = this.#clock.passed()
    const idleness = this.#idlenessOf(watched)
    const napAt = napAtOf(idleness)
    const isUsed = watched.active > 0 || watched.observerError !== undefined
    if (watched.observerError !== undefined) watched.lookAt = now + OBSERVER_RETRY_MS
    // Whoever leaves right now: it sleeps an idle time later, and no sooner.
    else if (watched.active > 0) watched.lookAt = Math.max(now + watched.policy.idleTimeoutMs, napAt)
    else watched.lookAt = napAt
    const limit = this.#uses.tracking.isRemembered ? LOOK_AT_LEAST_EVERY_MS : LOOK_EVERY_MS
    watched.lookAt = Math.min(watched.lookAt, now + limit)
    if (isUsed || now < napAt || watched.nap !== undefined) {
      this.#queue.delete(watched)
      return
    }
    watched.lookAt = now + limit
    this.#queue.add(watched)
    this.#beginNaps()
  }

  #arm(): void {
    if (this.#end.signal.aborted) return
    let at = Number.POSITIVE_INFINITY
    for (const { lookAt, looking, nap } of this.#watched.values()) if (looking === undefined && nap === undefined) at = Math.min(at, lookAt)
    if (at === this.#timerAt) return
    this.#timer?.[Symbol.dispose]()
    this.#timerAt = at
    if (at === Number.POSITIVE_INFINITY) return
    this.#timer = this.#clock.after(Math.max(0, Math.ceil(at - this.#clock.passed())), () => {
      this.#timerAt = Number.POSITIVE_INFINITY
      const now = this.#clock.passed()
      for (const watched of this.#watched.values()) if (watched.lookAt <= now && watched.nap === undefined) void this.#look(watched)
      this.#arm()
    })
  }

  // Naps

  #beginNaps(): void {
    for (const watched of this.#queue) {
      if (this.#naps.size >= this.#uses.maxConcurrent) return
      this.#queue.delete(watched)
      const nap: Promise<void> = this.#nap(watched).finally(() => {
        this.#naps.delete(nap)
        if (!this.#end.signal.aborted) this.#beginNaps()
        this.#arm()
      })
      this.#naps.add(nap)
    }
  }

  /** Rejects never. */
  async #nap(watched: Watched): Promise<void> {
    const { instances, audit, log } = this.#uses
    const { id } = watched
    const nap: Nap = { withdrawn: undefined, isCommitted: false }
    watched.nap = nap
    const idleMs = Math.round(this.#clock.passed() - watched.idleSince)
    const stayAwake: StayAwake = async ({ isLast }) => {
      const why = await this.#reasonToStay(watched, nap)
      if (why === undefined && isLast) nap.isCommitted = true
      return why
    }
    try {
      const target = { id, name: instances.find(id)?.name ?? '' }
      await audit.perform({ operation: 'standbyInstance', target, subjectId: id }, () => instances.nap(id, stayAwake))
      log.info({ instance: id, idleMs }, 'an idle instance was put into standby')
      this.#tell('auto_standby.slept', id, { idle_ms: idleMs })
    } catch (error) {
      this.#failed(watched, nap, error)
    } finally {
      watched.nap = undefined
    }
  }

  /** Looks again, and says why it is not to sleep after all. */
  async #reasonToStay(watched: Watched, nap: Nap): Promise<string | undefined> {
    const reason = (): string | undefined => {
      const { id } = watched
      if (nap.withdrawn !== undefined) return nap.withdrawn
      if (this.#end.signal.aborted) return 'the daemon is shutting down'
      if (this.#watched.get(id) !== watched) return 'it is not to sleep by itself any more'
      if (watched.observerError !== undefined) return 'its connections cannot be counted'
      if (watched.active > 0 || this.#sessions.has(id)) return 'someone is connected to it'
      if (napAtOf(this.#idlenessOf(watched)) > this.#clock.passed()) return 'someone was connected to it, or holds it awake'
      return undefined
    }
    const before = reason()
    if (before !== undefined) return before
    await this.#count(watched, PAUSED_LOOK_LIMIT_MS)
    return reason()
  }

  #failed(watched: Watched, nap: Nap, error: unknown): void {
    const { log } = this.#uses
    const { id } = watched
    const now = this.#clock.passed()
    const code = errorCodeOf(error)
    watched.lookAt = now + AGAIN_MS
    if (this.#end.signal.aborted || this.#watched.get(id) !== watched) return
    if (isKeptAwake(error)) {
      log.info(
        { instance: id, why: nap.withdrawn ?? 'someone is connected to it' },
        'an instance that was to sleep is in use, and stays awake',
      )
      return
    }
    // It is another than it was when it was found idle; its next event tells how.
    if (code === 'invalid_state' || code === 'not_found') return
    const count = (watched.failure?.count ?? 0) + 1
    const retryAt = now + Math.min(FIRST_RETRY_MS * 2 ** Math.min(count - 1, 20), LAST_RETRY_MS)
    const message = error instanceof Error ? error.message : String(error)
    watched.failure = { message, retryAt, count }
    watched.lookAt = retryAt
    log.warn({ instance: id, err: error, retryInMs: Math.round(retryAt - now) }, 'an idle instance could not be put into standby')
    this.#tell('auto_standby.failed', id, { error: message })
  }

  // What is told and written

  #idlenessOf(watched: Watched): Idleness {
    const { id, policy, idleSince, active, observerError, failure, nap } = watched
    return {
      ...{ idleSince, active, observerError, failure },
      idleTimeoutMs: policy.idleTimeoutMs,
      holdUntil: this.#holds.get(id),
      isNapping: nap !== undefined,
    }
  }

  #statusOf(instance: Instance): AutoStandbyStatus {
    const { id, autoStandby: policy } = instance
    const isSupported = this.#uses.instances.canSleep(id)
    const now = this.#clock.passed()
    const watched = this.#watched.get(id)
    const holdUntil = this.#holds.get(id)
    const common = {
      isSupported,
      policy,
      active: watched?.active ?? 0,
      trackingMode: this.#uses.tracking.mode,
      ...(holdUntil !== undefined && holdUntil > now ? { holdUntilMs: this.#wallOf(holdUntil) } : {}),
    }
    const obstacle = obstacleOf(instance, isSupported)
    if (obstacle !== undefined) return { ...common, ...obstacle, isEligible: false }
    // Its event is about to come.
    if (watched === undefined) return { ...common, status: 'ineligible', reason: 'instance_not_running', isEligible: false }
    const { napAt, ...outlook } = outlookOf(this.#idlenessOf(watched), now)
    const { lastActivity, active, idleSince, observerError, failure } = watched
    const lastError = observerError ?? failure?.message
    return {
      ...common,
      ...outlook,
      isEligible: true,
      ...(active > 0 || observerError !== undefined ? {} : { idleSinceMs: this.#wallOf(idleSince) }),
      ...(lastActivity === undefined ? {} : { lastActivityMs: this.#wallOf(lastActivity) }),
      ...(napAt === undefined ? {} : { napAtMs: this.#wallOf(napAt), remainingMs: Math.max(0, Math.round(napAt - now)) }),
      ...(lastError === undefined ? {} : { lastError }),
    }
  }

  /** What cannot be written now is known all the same, and is written with the next turn. */
  #store(watched: Watched): void {
    try {
      this.#uses.db.transaction(() => this.#write(watched.id))
      watched.isStored = true
    } catch (err) {
      this.#uses.log.debug({ err, instance: watched.id }, 'since when it is idle could not be written down')
    }
  }

  #write(instanceId: InstanceId): void {
    const watched = this.#watched.get(instanceId)
    const holdUntil = this.#holds.get(instanceId)
    this.#rows.put({
      instanceId,
      isActive: (watched?.active ?? 0) > 0,
      ...(watched === undefined ? {} : { idleSinceMs: this.#wallOf(watched.idleSince) }),
      ...(watched?.lastActivity === undefined ? {} : { lastActivityMs: this.#wallOf(watched.lastActivity) }),
      ...(holdUntil === undefined ? {} : { holdUntilMs: this.#wallOf(holdUntil) }),
    })
  }

  #tell(kind: EventKind, subject: InstanceId, data: Readonly<Record<string, unknown>>): void {
    try {
      this.#uses.db.transaction(() => this.#uses.events.record({ kind, subject, data }))
    } catch (err) {
      this.#uses.log.debug({ err, instance: subject, kind }, 'an event could not be written down')
    }
  }

  #wallOf(passed: number): number {
    return Math.round(passed + this.#wallAhead())
  }
  #passedOf(wallMs: number): number {
    return wallMs - this.#wallAhead()
  }

  /** How far the wall clock is ahead of the other. Both are read one after the other, and differ by a little each time: that is no jump. */
  #wallAhead(): number {
    const ahead = this.#clock.wall() - this.#clock.passed()
    if (Math.abs(ahead - this.#ahead) > JUMP_MS) this.#ahead = ahead
    return this.#ahead
  }
}
