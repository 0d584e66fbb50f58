/**
 * Checks the instances that have a health check, each when its time comes, with one timer for all of them. What is found is in memory; a
 * change of mind is a row and an event. Only one that runs is checked, and only what was found while nothing was done to it counts: who was
 * asleep, or stood still for a copy, has not failed. Each time that it begins to run, and with another check, it begins anew.
 */
import type { Events } from '../events/events.ts'
import type { HealthCheck, Instance, InstanceId } from '../instances/instance.ts'
import type { Instances } from '../instances/instances.ts'
import { Agenda, type Passing } from '../lib/agenda.ts'
import type { Logger } from '../log.ts'
import type { Database } from '../store/database.ts'
import { type HealthVerdict, HealthVerdictRows } from '../store/health-verdicts.ts'
import { perform } from './check.ts'
import { type CheckResult, judge, UNTRIED } from './verdict.ts'

export interface HealthChecksUses {
  readonly db: Database
  readonly events: Pick<Events, 'record'>
  readonly instances: Pick<Instances, 'observe'>
  readonly log: Logger
  readonly passing: Passing
  /** It is well, or is not any more. */
  onChange(id: InstanceId): void
}

export interface HealthStatus extends Omit<HealthVerdict, 'status'> {
  readonly status: HealthVerdict['status'] | 'disabled' | 'unknown'
}

interface Watch {
  readonly name: string
  readonly check: HealthCheck
  readonly runningSinceMs: number
  /** By the time that passes. */
  readonly startPeriodEndsAt: number
  readonly end: AbortController
  verdict: HealthVerdict
  /** Checks in a row that found nothing good yet. */
  early: number
}

// However short its interval is said to be.
const INTERVAL_LEAST_MS = 100
// While it comes up it is looked at more often than its interval says, so that it counts as healthy soon after it is.
const EARLY_FIRST_MS = 250
// What is in the middle of something is looked at again so much later.
const DISTURBED_MS = 1000
// After a start of the daemon the first checks are spread over as long.
const SPREAD_MAX_MS = 10_000
// A guest whose line is being dialled anew is waited for that much longer than its check may take.
const GUEST_LIMIT_MS = 10_000

export class HealthChecks {
  readonly #uses: HealthChecksUses
  readonly #rows: HealthVerdictRows
  readonly #agenda: Agenda<InstanceId>
  readonly #watches = new Map<InstanceId, Watch>()
  readonly #underWay = new Set<Promise<void>>()
  #isClosed = false

  constructor(uses: HealthChecksUses) {
    this.#uses = uses
    this.#rows = new HealthVerdictRows(uses.db)
    this.#agenda = new Agenda(uses.passing)
  }

  /** Something may have changed for it. `isFound`: by a daemon that has just started. Quick, and never throws. */
  look(id: InstanceId, instance: Instance | undefined, { isFound = false } = {}): void {
    if (this.#isClosed) return
    const check = instance?.healthCheck
    const watch = this.#watches.get(id)
    const isWatched = instance?.state === 'Running' && check !== undefined && check.probe.kind !== 'none'
    if (isWatched && watch?.check === check && watch.runningSinceMs === instance.phases.sinceMs) return
    this.#drop(id)
    if (isWatched) this.#begin(instance, check, isFound)
  }

  /** Since when it is not well. */
  unhealthySinceMs(id: InstanceId): number | undefined {
    return this.#watches.get(id)?.verdict.unhealthySinceMs
  }

  statusOf({ id, state, healthCheck }: Instance): HealthStatus {
    if (healthCheck === undefined || healthCheck.probe.kind === 'none') return { ...UNTRIED, status: 'disabled' }
    if (state === 'Initializing' || state === 'Running') return this.#watches.get(id)?.verdict ?? UNTRIED
    return { ...UNTRIED, status: 'unknown' }
  }

  async close(): Promise<void> {
    this.#isClosed = true
    this.#agenda[Symbol.dispose]()
    for (const { end } of this.#watches.values()) end.abort()
    await Promise.all(this.#underWay)
  }

  #drop(id: InstanceId): void {
    this.#watches.get(id)?.end.abort()
    this.#watches.delete(id)
    this.#agenda.clear(id)
  }

  #begin({ id, name, phases }: Instance, check: HealthCheck, isFound: boolean): void {
    const runningSinceMs = phases.sinceMs
    const found = isFound ? this.#rows.find({ instanceId: id, runningSinceMs, check }) : undefined
    // It is looked at before anything is made of what the last daemon thought of it.
    const verdict = found && { ...found, ...(found.unhealthySinceMs !== undefined && { unhealthySinceMs: Date.now() }) }
    const leftMs = Math.min(Math.max(0, runningSinceMs + check.startPeriodMs - Date.now()), check.startPeriodMs)
    this.#watches.set(id, {
      ...{ name, check, runningSinceMs, verdict: verdict ?? UNTRIED, early: 0 },
      startPeriodEndsAt: this.#uses.passing.now() + leftMs,
      end: new AbortController(),
    })
    this.#plan(id, isFound ? Math.random() * Math.min(check.intervalMs, SPREAD_MAX_MS) : 0)
  }

  #plan(id: InstanceId, inMs: number): void {
    this.#agenda.set(id, inMs, () => {
      const watch = this.#watches.get(id)
      if (watch === undefined) return
      const checking = this.#check(id, watch).finally(() => this.#underWay.delete(checking))
      this.#underWay.add(checking)
    })
  }

  async #check(id: InstanceId, watch: Watch): Promise<void> {
    const result = await this.#ask(id, watch)
    if (this.#isClosed || this.#watches.get(id) !== watch) return
    if (result !== undefined) this.#take(id, watch, result)
    const isConclusive = result !== undefined && result.kind !== 'inconclusive'
    const intervalMs = Math.max(INTERVAL_LEAST_MS, watch.check.intervalMs)
    this.#plan(id, isConclusive ? this.#pauseOf(watch, intervalMs) : Math.min(DISTURBED_MS, intervalMs))
  }

  async #ask(id: InstanceId, { check, end }: Watch): Promise<CheckResult | undefined> {
    const { instances, log } = this.#uses
    const signal = AbortSignal.any([end.signal, AbortSignal.timeout(check.timeoutMs + GUEST_LIMIT_MS)])
    try {
      return await instances.observe(id, { signal, log }, (guest, address) => perform(check, { guest, address, step: { signal, log } }))
    } catch (error) {
      // A guest that does not even answer its daemon is not well.
      return { kind: 'failure', error: error instanceof Error ? error.message : 'the guest does not answer' }
    }
  }

  #take(id: InstanceId, watch: Watch, result: CheckResult): void {
    const before = watch.verdict
    const isStarting = this.#uses.passing.now() < watch.startPeriodEndsAt
    watch.verdict = judge(before, result, watch.check, { nowMs: Date.now(), isStarting })
    if (watch.verdict.status === before.status) return
    this.#tell(id, watch)
    this.#uses.onChange(id)
  }

  #tell(id: InstanceId, { name, check, runningSinceMs, verdict }: Watch): void {
    const { db, events, log } = this.#uses
    const { status, lastError } = verdict
    log[status === 'unhealthy' ? 'warn' : 'info']({ instance: id, name, status, error: lastError }, 'health changed')
    try {
      db.transaction(
        () => {
          this.#rows.put({ instanceId: id, runningSinceMs, check }, verdict)
          events.record({ kind: 'instance.health_changed', subject: id, data: { name, status, error: lastError } })
        },
        { evenWhenFull: true },
      )
    } catch (err) {
      log.error({ err, instance: id }, 'a change of health could not be written down')
    }
  }

  #pauseOf(watch: Watch, intervalMs: number): number {
    if (watch.verdict.status !== 'starting') return intervalMs
    return Math.min(intervalMs, EARLY_FIRST_MS * 2 ** Math.min(watch.early++, 20))
  }
}
