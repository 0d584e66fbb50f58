import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import type { InstanceState } from '@dormouse/api/instance-states.ts'
import { isName, Tags } from '@dormouse/api/names.ts'
import fc from 'fast-check'
import { Check } from 'typebox/value'
import { Events } from '../events/events.ts'
import { FakeClock } from '../host/fake-clock.ts'
import type { Instance, InstanceId } from '../instances/instance.ts'
import { silentLogger } from '../log.ts'
import { Database } from '../store/database.ts'
import { FakeScheduledSnapshots } from './fake-scheduled-snapshots.ts'
import { Schedules, type SetSchedule } from './schedules.ts'

const SECOND = 1000
const MINUTE = 60 * SECOND
const HOUR = 60 * MINUTE
const START = '2026-01-31T02:00:00.000Z'

const hourly: SetSchedule = { intervalMs: HOUR, retention: { maxCount: 3 }, metadata: {} }

/** Instances and snapshots that outlive the daemon, and one daemon's schedules after the other on one file of rows. */
class ScheduleHouse {
  readonly clock = new FakeClock(START)
  readonly snapshots = new FakeScheduledSnapshots(() => this.clock.wall())
  readonly instances = new Map<InstanceId, Pick<Instance, 'id' | 'name' | 'state'>>()
  readonly dir = mkdtempSync(join(tmpdir(), 'dm-'))
  #life: { db: Database; schedules: Schedules } | undefined

  constructor() {
    this.begin()
  }

  begin(): void {
    const db = Database.open(join(this.dir, 'db'))
    // No power is cut here, and thousands of flushes would be most of the time.
    db.prepare('PRAGMA synchronous = OFF').run()
    const schedules = new Schedules({
      db,
      events: new Events({ db }),
      instances: { find: (id) => this.instances.get(id) as Instance | undefined },
      snapshots: this.snapshots,
      log: silentLogger,
      clock: this.clock,
    })
    this.#life = { db, schedules }
    schedules.recover()
  }

  /** The daemon dies: what it had begun goes no further. */
  async crash(): Promise<void> {
    this.#alive.db.close()
    await this.#alive.schedules.close()
    this.#life = undefined
  }

  async end(): Promise<void> {
    await this.#alive.schedules.close()
    this.#alive.db.close()
    this.#life = undefined
  }

  async tearDown(): Promise<void> {
    if (this.#life) await this.end()
    rmSync(this.dir, { recursive: true, force: true })
  }

  get schedules(): Schedules {
    return this.#alive.schedules
  }
  get db(): Database {
    return this.#alive.db
  }

  instance(name: string, state: InstanceState = 'Running') {
    const instance = { id: name.padEnd(24, 'x') as InstanceId, name, state }
    this.instances.set(instance.id, instance)
    return instance
  }

  names(): string[] {
    return this.snapshots.made.map(({ name }) => name)
  }

  /** To the next run of the instance, and through it. */
  async run(instance: { id: InstanceId; name: string }): Promise<void> {
    await this.clock.pass(this.schedules.get(instance).nextRunAtMs - this.clock.wall())
  }

  rowCount(): number {
    return Number(this.db.prepare('SELECT count(*) AS n FROM snapshot_schedules').get()?.n)
  }

  get #alive() {
    if (!this.#life) throw new Error('No daemon lives in this house')
    return this.#life
  }
}

function house(t: TestContext): ScheduleHouse {
  const made = new ScheduleHouse()
  t.after(() => made.tearDown())
  return made
}

test('a snapshot is taken an interval after the schedule was set, and then every interval', async (t) => {
  const { schedules, clock, snapshots, instance, run } = bound(house(t))
  const web = instance('web')
  const { nextRunAtMs } = schedules.put(web, { ...hourly, namePrefix: 'nightly', metadata: { team: 'a b' } })
  await clock.pass(nextRunAtMs - clock.wall() - 1)
  assert.equal(snapshots.made.length, 0)
  await clock.pass(1)
  const [first] = snapshots.made
  assert.match(first?.name ?? '', /^nightly-20260131-030\d{3}$/)
  assert.deepEqual([first?.kind, first?.tags.team], ['Standby', 'a b'])
  const told = schedules.get(web)
  assert.deepEqual([told.lastRunAtMs, told.lastSnapshotId, told.lastError], [nextRunAtMs, first?.id, undefined])
  assert.equal(told.nextRunAtMs, nextRunAtMs + HOUR)
  await run(web)
  await run(web)
  assert.deepEqual(
    snapshots.made.map(({ createdAtMs }) => createdAtMs - nextRunAtMs),
    [0, HOUR, 2 * HOUR],
  )
})

test('the kind follows the state; in any other state there is no snapshot, the reason is told and the time moves on', async (t) => {
  const { schedules, clock, snapshots, instance } = bound(house(t))
  const states = { Running: 'Standby', Standby: 'Standby', Stopped: 'Stopped' } as const
  const others = ['Created', 'Initializing', 'Paused', 'Shutdown', 'Unknown'] as const
  for (const state of [...Object.keys(states), ...others] as InstanceState[]) schedules.put(instance(state.toLowerCase(), state), hourly)
  await clock.pass(HOUR + 5 * MINUTE)
  assert.deepEqual(
    Object.fromEntries(snapshots.made.map(({ source, kind }) => [source.replace(/x+$/, ''), kind])),
    Object.fromEntries(Object.entries(states).map(([state, kind]) => [state.toLowerCase(), kind])),
  )
  for (const state of others) {
    const told = schedules.get(instance(state.toLowerCase(), state))
    assert.match(told.lastError ?? '', new RegExp(`was ${state}, and a schedule takes snapshots of what is Running, Standby or Stopped`))
    assert.equal(told.lastSnapshotId, undefined)
    assert.ok(told.nextRunAtMs > clock.wall() && told.lastRunAtMs !== undefined)
  }
})

test('names and tags are ones that the API takes, with the longest prefix and the fullest metadata', async (t) => {
  const { schedules, snapshots, instance, run } = bound(house(t))
  const web = instance('web')
  schedules.put(web, { ...hourly, namePrefix: 'p'.repeat(47), metadata: { 'dormouse.scheduled': 'no' } })
  await run(web)
  const { name, tags } = snapshots.made[0] ?? assert.fail()
  assert.ok(isName(name), name)
  assert.equal(name.length, 63)
  assert.ok(Check(Tags, tags))
  assert.deepEqual(tags, { 'dormouse.scheduled': 'true', 'dormouse.source-instance': web.id })
})

test('a run that fails says why, and the next one comes at its time', async (t) => {
  const { schedules, snapshots, instance, run } = bound(house(t))
  const web = instance('web')
  const { nextRunAtMs } = schedules.put(web, hourly)
  const cause = new AppError('insufficient_resources', 'There is no room for its memory')
  const errors = [new AppError('conflict', 'A snapshot of web cannot be taken now', { cause }), new Error('ENOENT: /secret/path')]
  snapshots.beforeCreate = async () => {
    const error = errors.shift()
    if (error) throw error
  }
  await run(web)
  assert.equal(schedules.get(web).lastError, 'A snapshot of web cannot be taken now: There is no room for its memory')
  assert.equal(schedules.get(web).nextRunAtMs, nextRunAtMs + HOUR)
  await run(web)
  assert.equal(schedules.get(web).lastError, 'something went wrong inside the daemon, whose log has the reason')
  await run(web)
  assert.equal(schedules.get(web).lastError, undefined)
  assert.equal(snapshots.made.length, 1)
})

test('another interval begins anew; all else leaves the next run and what is known of the last one', async (t) => {
  const { schedules, clock, instance, run } = bound(house(t))
  const web = instance('web')
  const first = schedules.put(web, hourly)
  await run(web)
  await clock.pass(MINUTE)
  const before = schedules.get(web)
  const changed = schedules.put(web, { ...hourly, retention: { maxCount: 1, maxAgeMs: HOUR }, namePrefix: 'x', metadata: { a: 'b' } })
  assert.deepEqual(changed, {
    ...before,
    retention: { maxCount: 1, maxAgeMs: HOUR },
    namePrefix: 'x',
    metadata: { a: 'b' },
    updatedAtMs: clock.wall(),
  })
  const anew = schedules.put(web, { ...hourly, intervalMs: 10 * MINUTE })
  assert.ok(anew.nextRunAtMs - clock.wall() >= 10 * MINUTE && anew.nextRunAtMs - clock.wall() < 11 * MINUTE)
  assert.deepEqual([anew.createdAtMs, anew.lastRunAtMs, anew.namePrefix], [first.createdAtMs, before.lastRunAtMs, undefined])
})

test('a removed schedule runs no more, and leaves its snapshots', async (t) => {
  const { schedules, clock, snapshots, instance, run } = bound(house(t))
  const web = instance('web')
  assert.throws(() => schedules.get(web), { code: 'not_found', hint: /dormouse schedule set web/ })
  schedules.put(web, hourly)
  await run(web)
  schedules.delete(web)
  assert.throws(() => schedules.delete(web), { code: 'not_found' })
  await clock.pass(24 * HOUR)
  assert.equal(snapshots.made.length, 1)
})

test('a restart keeps every time; what came due meanwhile is run once', async (t) => {
  const home = house(t)
  const web = home.instance('web')
  home.schedules.put(web, { ...hourly, retention: { maxCount: 0, maxAgeMs: 999 * HOUR } })
  await home.run(web)
  const before = home.schedules.get(web)
  await home.end()
  await home.clock.pass(10 * MINUTE)
  home.begin()
  assert.deepEqual(home.schedules.get(web), before)
  await home.end()
  await home.clock.pass(10 * HOUR)
  home.begin()
  await home.clock.pass(0)
  assert.equal(home.snapshots.made.length, 2)
  const after = home.schedules.get(web)
  assert.equal((after.nextRunAtMs - before.nextRunAtMs) % HOUR, 0)
  assert.ok(after.nextRunAtMs > home.clock.wall() && after.nextRunAtMs <= home.clock.wall() + HOUR)
})

test('a run that the daemon’s death cut short is told as one, or found to have been whole', async (t) => {
  const home = house(t)
  const web = home.instance('web')
  home.schedules.put(web, hourly)
  home.snapshots.beforeCreate = () => home.crash()
  await assert.rejects(home.run(web).then(() => home.schedules.get(web)))
  home.snapshots.beforeCreate = async () => undefined
  // The fake has made it all the same, as a daemon may that dies right behind the commit point.
  home.begin()
  assert.deepEqual([home.schedules.get(web).lastSnapshotId, home.schedules.get(web).lastError], ['s1', undefined])

  home.snapshots.beforeCreate = async () => {
    await home.crash()
    throw new Error('dead')
  }
  await assert.rejects(home.run(web).then(() => home.schedules.get(web)))
  home.begin()
  assert.match(home.schedules.get(web).lastError ?? '', /daemon ended before the snapshot was whole/)
  assert.equal(home.snapshots.made.length, 1)
  assert.ok(home.schedules.get(web).nextRunAtMs > home.clock.wall())
})

test('a clock that jumps ahead by a week makes one run, within a minute', async (t) => {
  const { schedules, clock, snapshots, instance } = bound(house(t))
  const web = instance('web')
  const { nextRunAtMs } = schedules.put(web, hourly)
  clock.jump(7 * 24 * HOUR)
  await clock.pass(MINUTE)
  assert.equal(snapshots.made.length, 1)
  const next = schedules.get(web).nextRunAtMs
  assert.equal((next - nextRunAtMs) % HOUR, 0)
  assert.ok(next > clock.wall() && next <= clock.wall() + HOUR)
})

test('a clock that is set back by a year makes no one wait for a year', async (t) => {
  const { schedules, clock, snapshots, instance, run } = bound(house(t))
  const web = instance('web')
  schedules.put(web, hourly)
  await run(web)
  clock.jump(-365 * 24 * HOUR)
  await clock.pass(MINUTE)
  const wait = schedules.get(web).nextRunAtMs - clock.wall()
  assert.ok(wait <= HOUR + 5 * MINUTE && wait > HOUR - MINUTE)
  await run(web)
  await run(web)
  await run(web)
  // The newest is the one that was made last, whatever its time says.
  assert.deepEqual(
    snapshots.made.map(({ name }) => name.slice(0, 14)),
    ['scheduled-2025', 'scheduled-2025', 'scheduled-2025'],
  )
})

test('a second that a snapshot has its name from already is left to it', async (t) => {
  const home = house(t)
  const web = home.instance('web')
  home.schedules.put(web, hourly)
  await home.run(web)
  /** The clock is looked at every minute; it is set back by as much. */
  const runInTheSameSecond = async (): Promise<void> => {
    home.db.prepare('UPDATE snapshot_schedules SET next_run_at_ms = ?').run(home.clock.wall())
    home.clock.jump(-MINUTE)
    await home.clock.pass(MINUTE)
  }
  await runInTheSameSecond()
  assert.equal(home.schedules.get(web).lastError, undefined)
  assert.equal(new Set(home.names()).size, 2)
  // Nor is one that is cut short taken for the one that is whole.
  home.snapshots.beforeCreate = async () => {
    await home.crash()
    throw new Error('dead')
  }
  await assert.rejects(runInTheSameSecond().then(() => home.schedules.get(web)))
  home.begin()
  assert.match(home.schedules.get(web).lastError ?? '', /daemon ended before the snapshot was whole/)
})

test('a run that takes longer than its interval is not followed at once by another', async (t) => {
  const { schedules, clock, snapshots, instance, run } = bound(house(t))
  const web = instance('web')
  schedules.put(web, { ...hourly, intervalMs: MINUTE })
  const { promise, resolve } = Promise.withResolvers<void>()
  snapshots.beforeCreate = () => promise
  await run(web)
  await clock.pass(10 * MINUTE)
  assert.equal(snapshots.made.length, 0)
  resolve()
  await clock.pass(0)
  assert.equal(snapshots.made.length, 1)
  const wait = schedules.get(web).nextRunAtMs - clock.wall()
  assert.ok(wait > 0 && wait <= MINUTE)
})

test('some that are slow do not keep others waiting, and not all are begun at once', async (t) => {
  const { schedules, clock, snapshots, instance } = bound(house(t))
  const { promise, resolve } = Promise.withResolvers<void>()
  let begun = 0
  snapshots.beforeCreate = async ({ tags }) => {
    if (!tags.slow) return
    begun++
    await promise
  }
  for (const name of ['a', 'b', 'c']) schedules.put(instance(name), { ...hourly, metadata: { slow: 'yes' } })
  await clock.pass(2 * HOUR)
  for (let n = 0; n < 20; n++) schedules.put(instance(`quick-${n}`), hourly)
  await clock.pass(70 * MINUTE)
  assert.deepEqual([snapshots.made.length, begun], [20, 3])
  for (let n = 0; n < 20; n++) schedules.put(instance(`slow-${n}`), { ...hourly, metadata: { slow: 'yes' } })
  await clock.pass(2 * HOUR)
  assert.equal(begun, 4)
  resolve()
  await clock.pass(2 * HOUR)
  assert.ok(snapshots.made.filter(({ tags }) => tags.slow).length >= 23)
})

test('what has expired is deleted behind a proof, oldest first; where nothing has expired nothing is read', async (t) => {
  const { schedules, snapshots, instance, names, run } = bound(house(t))
  const web = instance('web')
  schedules.put(web, { ...hourly, retention: { maxCount: 2 } })
  await run(web)
  await run(web)
  assert.deepEqual(snapshots.verified, [])
  const [, second] = names()
  await run(web)
  assert.deepEqual(snapshots.verified, ['s3'])
  assert.deepEqual(names()[0], second)
  assert.equal(schedules.get(web).lastError, undefined)
})

test('while the newer ones are damaged, the last one that is whole stays beyond its count and age', async (t) => {
  const { schedules, snapshots, instance, run } = bound(house(t))
  const web = instance('web')
  schedules.put(web, { ...hourly, retention: { maxCount: 2, maxAgeMs: 90 * MINUTE } })
  await run(web)
  snapshots.nextVerdict = 'damaged'
  for (let n = 0; n < 6; n++) await run(web)
  const left = snapshots.made.map(({ id }) => id)
  assert.deepEqual(left, ['s1', 's6', 's7'])
  assert.match(schedules.get(web).lastError ?? '', /^The snapshot scheduled-\S+ is damaged; /)
  assert.equal(schedules.get(web).lastSnapshotId, 's7')
  snapshots.nextVerdict = 'whole'
  await run(web)
  assert.deepEqual(
    snapshots.made.map(({ id }) => id),
    ['s7', 's8'],
  )
  assert.equal(schedules.get(web).lastError, undefined)
})

test('one that cannot be read or deleted is told, keeps no other from going, and is tried again', async (t) => {
  const { schedules, snapshots, instance, run } = bound(house(t))
  const web = instance('web')
  schedules.put(web, { ...hourly, retention: { maxCount: 1 } })
  await run(web)
  snapshots.nextVerdict = new AppError('internal_error', 'The disk does not answer')
  await run(web)
  assert.match(schedules.get(web).lastError ?? '', /could not be verified: The disk does not answer$/)
  snapshots.nextVerdict = 'whole'
  const [first] = snapshots.made
  if (first) first.isInUse = true
  await run(web)
  assert.match(schedules.get(web).lastError ?? '', /has expired and could not be deleted: A fork stands on the snapshot s1$/)
  assert.deepEqual(
    snapshots.made.map(({ id }) => id),
    ['s1', 's3'],
  )
  if (first) first.isInUse = false
  await run(web)
  assert.deepEqual(
    snapshots.made.map(({ id }) => id),
    ['s4'],
  )
})

test('when its instance is gone a schedule goes on until its snapshots are too old', async (t) => {
  const { schedules, clock, snapshots, instances, instance, run, rowCount } = bound(house(t))
  const web = instance('web')
  schedules.put(web, { ...hourly, retention: { maxCount: 0, maxAgeMs: 150 * MINUTE } })
  for (let n = 0; n < 3; n++) await run(web)
  instances.delete(web.id)
  await clock.pass(HOUR)
  assert.deepEqual([snapshots.made.length, rowCount()], [2, 1])
  await clock.pass(2 * HOUR)
  assert.deepEqual([snapshots.made.length, rowCount()], [0, 0])
})

test('when its instance is gone and a count is all that was asked for, the newest stay and the schedule goes', async (t) => {
  const { schedules, clock, snapshots, instances, instance, run, rowCount } = bound(house(t))
  const web = instance('web')
  schedules.put(web, { ...hourly, retention: { maxCount: 9 } })
  for (let n = 0; n < 4; n++) await run(web)
  schedules.put(web, { ...hourly, retention: { maxCount: 2 } })
  const unmade = instance('unmade')
  schedules.put(unmade, hourly)
  instances.clear()
  const [newer, newest] = snapshots.made.slice(-2)
  if (newer) newer.verdict = 'damaged'
  if (newest) newest.verdict = new Error('not now')
  await clock.pass(2 * HOUR)
  assert.deepEqual([snapshots.made.map(({ id }) => id), rowCount()], [['s2', 's3', 's4'], 1])
  if (newest) newest.verdict = 'whole'
  await clock.pass(HOUR)
  assert.deepEqual([snapshots.made.map(({ id }) => id), rowCount()], [['s3', 's4'], 0])
})

test('a schedule that is removed or made anew during a run is not touched by it', async (t) => {
  const { schedules, clock, snapshots, instance, run } = bound(house(t))
  const web = instance('web')
  schedules.put(web, { ...hourly, retention: { maxCount: 1 } })
  await run(web)
  const { promise, resolve } = Promise.withResolvers<void>()
  snapshots.beforeCreate = () => promise
  await run(web)
  schedules.delete(web)
  const anew = schedules.put(web, { ...hourly, retention: { maxCount: 1 } })
  resolve()
  await clock.pass(0)
  assert.equal(snapshots.made.length, 2)
  assert.deepEqual(schedules.get(web), anew)
})

test('an end of the daemon ends the reading of a snapshot, and tells the run as the success that it was', async (t) => {
  const home = house(t)
  const web = home.instance('web')
  home.schedules.put(web, { ...hourly, retention: { maxCount: 1 } })
  await home.run(web)
  home.snapshots.beforeVerify = (signal) =>
    new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason), { once: true }))
  await home.run(web)
  await home.end()
  home.begin()
  const told = home.schedules.get(web)
  assert.deepEqual([told.lastSnapshotId, told.lastError, home.snapshots.made.length], ['s2', undefined, 2])
})

test('a run that cannot be written down is not begun, and is tried again within a minute', async (t) => {
  const { schedules, clock, snapshots, instance, db, run } = bound(house(t))
  const web = instance('web')
  schedules.put(web, hourly)
  const { transaction } = db
  db.transaction = () => {
    throw new AppError('insufficient_resources', 'The disk of the data directory is full')
  }
  await run(web)
  assert.equal(snapshots.made.length, 0)
  db.transaction = transaction
  await clock.pass(MINUTE)
  assert.equal(snapshots.made.length, 1)
})

test('each run is an event, so that one who follows learns of a failure', async (t) => {
  const { schedules, db, instance, run } = bound(house(t))
  const web = instance('web', 'Unknown')
  schedules.put(web, hourly)
  await run(web)
  const row = db.prepare("SELECT subject, data FROM events WHERE kind = 'schedule.ran'").get()
  assert.equal(row?.subject, web.id)
  assert.match(String(row?.data), /was Unknown/)
})

test('whatever becomes of clocks, files, callers and daemons, the last snapshot that is whole is not deleted', async () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant('pass' as const), ms: fc.integer({ min: MINUTE, max: 3 * HOUR }) }),
    fc.record({ kind: fc.constant('jump' as const), ms: fc.integer({ min: -30 * HOUR, max: 30 * HOUR }) }),
    fc.record({ kind: fc.constant('turn out' as const), verdict: fc.constantFrom('whole', 'damaged', 'unreadable') }),
    fc.record({ kind: fc.constant('state' as const), state: fc.constantFrom<InstanceState>('Running', 'Stopped', 'Initializing') }),
    fc.record({ kind: fc.constant('retain' as const), maxCount: fc.nat({ max: 3 }), maxAgeMs: fc.integer({ min: 1, max: 5 * HOUR }) }),
    fc.record({ kind: fc.constant('restart' as const) }),
  )
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40, size: 'max' }), async (steps) => {
      const home = new ScheduleHouse()
      try {
        const web = home.instance('web')
        home.schedules.put(web, hourly)
        const wholeOnes = () => home.snapshots.made.filter(({ verdict }) => verdict === 'whole').length
        let hadWhole = false
        for (const one of steps) {
          if (one.kind === 'pass') await home.clock.pass(one.ms)
          else if (one.kind === 'jump') home.clock.jump(one.ms)
          else if (one.kind === 'state') home.instance('web', one.state)
          else if (one.kind === 'retain') home.schedules.put(web, { ...hourly, retention: one })
          else if (one.kind === 'turn out')
            home.snapshots.nextVerdict = one.verdict === 'unreadable' ? new Error(one.verdict) : (one.verdict as 'whole' | 'damaged')
          else {
            await home.end()
            home.begin()
          }
          await home.clock.pass(0)
          assert.ok(wholeOnes() > 0 || !hadWhole)
          hadWhole ||= wholeOnes() > 0
          const { nextRunAtMs, lastRunAtMs, lastSnapshotId, lastError } = home.schedules.get(web)
          if (one.kind === 'pass') assert.ok(nextRunAtMs > home.clock.wall() && nextRunAtMs - home.clock.wall() <= HOUR + 6 * MINUTE)
          assert.ok(lastRunAtMs === undefined || lastSnapshotId !== undefined || lastError !== undefined)
          if (lastSnapshotId !== undefined) assert.ok(home.snapshots.made.some(({ id }) => id === lastSnapshotId))
        }
      } finally {
        await home.tearDown()
      }
    }),
    { numRuns: 60, endOnFailure: true },
  )
})

/** Methods of the house that can be taken out of it. */
function bound(home: ScheduleHouse) {
  const { schedules, db, clock, snapshots, instances } = home
  return {
    ...{ schedules, db, clock, snapshots, instances },
    instance: home.instance.bind(home),
    names: home.names.bind(home),
    run: home.run.bind(home),
    rowCount: home.rowCount.bind(home),
  }
}
