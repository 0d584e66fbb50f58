/**
 * The room's head: one schedule for an instance at most, and the loop that runs them. What a schedule has to do next is in its row,
 * so a restart keeps all times. A run is on record before it begins and is never begun twice:
 *
 *     due ─► last_run_at, next_run_at moved on ─► snapshot ─► last_snapshot_id ─► clean-up ─► last_error, if any
 *
 * The wall clock decides what is due. It may jump; so it is looked at once a minute, whatever the next run.
 */
import { AppError } from '@dormouse/api/errors.ts'
import type { Events } from '../events/events.ts'
import { type Clock, hostClock } from '../host/clock.ts'
import type { Instance, InstanceId } from '../instances/instance.ts'
import type { Logger } from '../log.ts'
import type { Database } from '../store/database.ts'
import { type SnapshotSchedule, SnapshotScheduleRows } from '../store/snapshot-schedules.ts'
import { anchoredRun, firstRunAt, runAfter } from './next-run.ts'
import { type RunResult, run, stampOf } from './run.ts'
import type { FindInstance, NamedSnapshot, ScheduledSnapshots } from './scheduled-snapshots.ts'

export type { SnapshotSchedule } from '../store/snapshot-schedules.ts'
export { scheduledSnapshots } from './scheduled-snapshots.ts'

export interface SchedulesUses {
  readonly db: Database
  readonly events: Pick<Events, 'record'>
  readonly instances: FindInstance
  readonly snapshots: ScheduledSnapshots
  readonly log: Logger
  readonly clock?: Clock
}

/** What a caller sets; the rest is the schedule's own. */
export type SetSchedule = Pick<SnapshotSchedule, 'intervalMs' | 'retention' | 'namePrefix' | 'metadata'>

const LOOK_EVERY_MS = 60_000
// They share one disk; and one whose files take long to read must not keep all others waiting.
const RUNS_MAX = 4

export class Schedules {
  readonly #uses: SchedulesUses
  readonly #rows: SnapshotScheduleRows
  readonly #clock: Clock
  readonly #runs = new Map<InstanceId, Promise<void>>()
  readonly #end = new AbortController()
  #timer: Disposable | undefined

  constructor(uses: SchedulesUses) {
    this.#uses = uses
    this.#rows = new SnapshotScheduleRows(uses.db)
    this.#clock = uses.clock ?? hostClock
  }

  /** Says what became of runs that the last daemon's end cut short, and begins to look at the clock. Once, after the instances are recovered. */
  recover(): void {
    for (const schedule of this.#rows.listUnderWay()) {
      if (this.#uses.instances.find(schedule.instanceId) === undefined) continue
      const made = this.#named(schedule.instanceId, schedule.lastRunAtMs ?? 0)
      if (made === undefined) this.#settle(schedule, { error: 'The daemon ended before the snapshot was whole' })
      else this.#made(schedule, made.id)
    }
    this.#look()
  }

  /** The instance's schedule. Throws `not_found` when it has none. */
  get({ id, name }: Pick<Instance, 'id' | 'name'>): SnapshotSchedule {
    const schedule = this.#rows.find(id)
    if (schedule === undefined) {
      throw new AppError('not_found', `The instance ${name} has no snapshot schedule`, {
        hint: `Set one with: dormouse schedule set ${name} --every 1h --keep 24`,
      })
    }
    return schedule
  }

  /** Sets it, or changes it. Another interval begins anew from now; all else leaves the next run where it is. */
  put(instance: Pick<Instance, 'id' | 'name'>, wanted: SetSchedule): SnapshotSchedule {
    const nowMs = this.#clock.wall()
    const { id } = instance
    const { intervalMs } = wanted
    this.#uses.db.transaction(() => {
      const before = this.#rows.find(id)
      this.#rows.put({
        lastRunAtMs: before?.lastRunAtMs,
        lastSnapshotId: before?.lastSnapshotId,
        lastError: before?.lastError,
        ...wanted,
        instanceId: id,
        nextRunAtMs: before?.intervalMs === intervalMs ? before.nextRunAtMs : firstRunAt(id, intervalMs, nowMs),
        createdAtMs: before?.createdAtMs ?? nowMs,
        updatedAtMs: nowMs,
      })
    })
    this.#arm()
    return this.get(instance)
  }

  /** Its snapshots stay. Throws `not_found`. A run that is under way makes its snapshot still. */
  delete(instance: Pick<Instance, 'id' | 'name'>): void {
    this.get(instance)
    this.#uses.db.transaction(() => this.#rows.delete(instance.id), { evenWhenFull: true })
  }

  /** Begins no more runs; resolves when those under way have ended. What they wait for is ended by its own room. Repeat is harmless. */
  async close(): Promise<void> {
    this.#end.abort(new AppError('shutting_down', 'The daemon is shutting down'))
    this.#timer?.[Symbol.dispose]()
    await Promise.all(this.#runs.values())
  }

  #look(): void {
    if (this.#end.signal.aborted) return
    const nowMs = this.#clock.wall()
    try {
      for (const schedule of this.#rows.listFarAhead(nowMs)) this.#anchor(schedule, nowMs)
      for (const schedule of this.#rows.listDue(nowMs)) {
        if (this.#runs.size >= RUNS_MAX) break
        if (!this.#runs.has(schedule.instanceId)) this.#begin(schedule, nowMs)
      }
    } catch (error) {
      this.#uses.log.error({ error }, 'snapshot schedules could not be looked at; they are again within a minute')
    }
    this.#arm()
  }

  #arm(): void {
    this.#timer?.[Symbol.dispose]()
    if (this.#end.signal.aborted || this.#rows.isEmpty()) return
    const nowMs = this.#clock.wall()
    // What is due and not begun waits for a run to end, which looks again.
    const next = this.#rows.nextRunAfter(nowMs) ?? Number.POSITIVE_INFINITY
    this.#timer = this.#clock.after(Math.min(next - nowMs, LOOK_EVERY_MS), () => this.#look())
  }

  #anchor(schedule: SnapshotSchedule, nowMs: number): void {
    const { instanceId, intervalMs, nextRunAtMs } = schedule
    const anchored = anchoredRun(instanceId, intervalMs, nextRunAtMs, nowMs)
    if (anchored === nextRunAtMs) return
    this.#uses.db.transaction(() => this.#rows.put({ ...schedule, nextRunAtMs: anchored }))
    this.#uses.log.warn(
      { instance: instanceId, from: nextRunAtMs, to: anchored },
      'the clock was set back: a snapshot schedule begins anew',
    )
  }

  #begin(schedule: SnapshotSchedule, nowMs: number): void {
    const { instanceId, intervalMs, nextRunAtMs } = schedule
    const begun: SnapshotSchedule = {
      ...schedule,
      nextRunAtMs: runAfter(nextRunAtMs, intervalMs, nowMs),
      lastRunAtMs: this.#nameableAt(instanceId, nowMs),
      lastSnapshotId: undefined,
      lastError: undefined,
    }
    this.#uses.db.transaction(() => this.#rows.put(begun))
    this.#runs.set(instanceId, this.#run(begun))
  }

  /** A snapshot has its name from the second of its run; after a quick restart, or a clock that was set back, that one is another's. */
  #nameableAt(instanceId: InstanceId, nowMs: number): number {
    let atMs = nowMs
    while (this.#named(instanceId, atMs) !== undefined) atMs += 1000
    return atMs
  }

  #named(instanceId: InstanceId, atMs: number): NamedSnapshot | undefined {
    const stamp = `-${stampOf(atMs)}`
    return this.#uses.snapshots.listScheduled(instanceId).find(({ name }) => name?.endsWith(stamp))
  }

  async #run(begun: SnapshotSchedule): Promise<void> {
    const { instances, snapshots, log } = this.#uses
    const { instanceId } = begun
    const { signal } = this.#end
    try {
      const made = (snapshotId: string) => this.#made(begun, snapshotId)
      this.#settle(begun, await run(begun, { instances, snapshots, clock: this.#clock, step: { signal, log }, made }))
    } catch (error) {
      // Told to end: what is on record is true, and the next run cleans up.
      if (!signal.aborted) log.error({ error, instance: instanceId }, 'the end of a scheduled run could not be written down')
    } finally {
      this.#runs.delete(instanceId)
      this.#look()
    }
  }

  #made(begun: SnapshotSchedule, snapshotId: string): SnapshotSchedule | undefined {
    return this.#record(begun, (current) => ({ ...current, lastSnapshotId: snapshotId }))
  }

  #settle(begun: SnapshotSchedule, { error, isOver }: RunResult): void {
    const { db, events, log } = this.#uses
    const subject = begun.instanceId
    db.transaction(
      () => {
        if (isOver) return this.#rows.delete(subject)
        const nowMs = this.#clock.wall()
        const settled = this.#record(begun, ({ intervalMs, nextRunAtMs, ...rest }) => ({
          ...rest,
          intervalMs,
          lastError: error,
          // A run that took longer than its interval is not followed at once by the one that it was late for.
          nextRunAtMs: nextRunAtMs > nowMs ? nextRunAtMs : runAfter(nextRunAtMs, intervalMs, nowMs),
        }))
        if (settled) events.record({ kind: 'schedule.ran', subject, data: { snapshot: settled.lastSnapshotId, error } })
      },
      { evenWhenFull: true },
    )
    if (error !== undefined) log.warn({ instance: subject, error }, 'a scheduled snapshot did not go as it should')
  }

  /** Changes the schedule as it is now, if it is still the one that was begun. */
  #record(begun: SnapshotSchedule, change: (current: SnapshotSchedule) => SnapshotSchedule): SnapshotSchedule | undefined {
    return this.#uses.db.transaction(
      () => {
        const current = this.#rows.find(begun.instanceId)
        if (current === undefined || current.lastRunAtMs !== begun.lastRunAtMs) return undefined
        const changed = change(current)
        this.#rows.put(changed)
        return changed
      },
      { evenWhenFull: true },
    )
  }
}
