import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import type { InstanceState } from '@dormouse/api/instance-states.ts'
import { FakeOwnDoings } from '../audit/fake-own-doings.ts'
import { Events } from '../events/events.ts'
import { FakeClock } from '../host/fake-clock.ts'
import type { IgnoredConnections, Inbound } from '../hypervisors/hypervisor.ts'
import type { AutoStandbyPolicy, Instance, InstanceId } from '../instances/instance.ts'
import { keptAwakeError, type StayAwake } from '../instances/operations/standby.ts'
import { createId } from '../lib/create-id.ts'
import { silentLogger } from '../log.ts'
import { Database } from '../store/database.ts'
import { InstanceRows } from '../store/instances.ts'
import { AutoStandby, type AutoStandbyStatus, type SleepersDoor } from './auto-standby.ts'

const S = 1000
const M = 60 * S
const POLICY: AutoStandbyPolicy = { enabled: true, idleTimeoutMs: 10 * M, ignoreSources: ['10.0.0.0/8'], ignorePorts: [22] }
const START = '2026-03-01T00:00:00.000Z'

/** Instances without workers: naps go through the same three looks. */
class Sleepers implements SleepersDoor {
  readonly db = Database.open(':memory:')
  readonly events = new Events({ db: this.db })
  readonly rows = new InstanceRows(this.db)
  readonly clock = new FakeClock(START)
  readonly inbounds = new Map<string, Inbound | Error>()
  /** What was asked, of whom. */
  readonly looks: [id: string, ignored: IgnoredConnections][] = []
  readonly napped: string[] = []
  readonly falling = new Set<string>()
  readonly unable = new Set<string>()
  underWay = 0
  mostUnderWay = 0
  /** Called before each look of a nap: 0 before it begins, 1 while it is paused, 2 before the record. */
  during: (id: InstanceId, look: number) => Promise<void> | void = () => undefined
  /** How naps go wrong; a test sets it. */
  trouble: (() => Error | undefined) | undefined

  add(name: string, change: Partial<Instance> = {}): Instance {
    const id = createId() as InstanceId
    const state = change.state ?? 'Running'
    const instance: Instance = {
      ...{ id, name, image: 'test', imageDigest: 'sha256:0', platform: 'linux/amd64', hypervisor: 'fake', vcpus: 1, memoryBytes: 2 ** 27 },
      ...{
        hotplugBytes: 0,
        overlayBytes: 2 ** 27,
        env: {},
        tags: {},
        skipGuestAgent: false,
        skipKernelHeaders: false,
        disk: [],
        volumes: [],
      },
      createdAtMs: this.clock.wall(),
      network: { enabled: true, ip: '10.0.2.15', mac: '02:00:00:00:00:01', ports: [] },
      autoStandby: POLICY,
      phases: { current: state, sinceMs: this.clock.wall(), durations: {} },
      ...change,
      state,
    }
    this.db.transaction(() => {
      this.rows.insert(instance)
      this.events.record({ kind: 'instance.created', subject: id, data: {} })
    })
    return instance
  }

  change(id: InstanceId, change: Partial<Instance>): void {
    const before = this.get(id)
    const state = change.state ?? before.state
    const phases = state === before.state ? before.phases : { current: state, sinceMs: this.clock.wall(), durations: {} }
    this.db.transaction(() => {
      this.rows.update({ ...before, ...change, phases })
      this.events.record({ kind: 'instance.changed', subject: id, data: {} })
    })
  }

  list(): readonly Instance[] {
    return this.rows.list()
  }
  find(id: InstanceId): Instance | undefined {
    return this.rows.find(id)
  }
  get(id: InstanceId): Instance {
    return this.find(id) ?? assert.fail()
  }
  canSleep(id: InstanceId): boolean {
    return !this.unable.has(id)
  }
  isFallingAsleep(id: InstanceId): boolean {
    return this.falling.has(id)
  }

  async inbound(id: InstanceId, ignored: IgnoredConnections): Promise<Inbound> {
    this.looks.push([id, ignored])
    const inbound = this.inbounds.get(id) ?? { active: 0 }
    if (inbound instanceof Error) throw inbound
    return inbound
  }

  async nap(id: InstanceId, stayAwake: StayAwake): Promise<Instance> {
    this.falling.add(id)
    this.mostUnderWay = Math.max(this.mostUnderWay, ++this.underWay)
    try {
      for (const look of [0, 1, 2]) {
        await this.during(id, look)
        const step = { signal: new AbortController().signal, log: silentLogger }
        const why = await stayAwake({ step, isLast: look === 2 })
        if (why !== undefined) throw keptAwakeError(this.get(id).name, why)
        const trouble = look === 1 ? this.trouble?.() : undefined
        if (trouble !== undefined) throw trouble
      }
      this.napped.push(this.get(id).name)
      this.change(id, { state: 'Standby' })
      return this.get(id)
    } finally {
      this.underWay--
      this.falling.delete(id)
    }
  }

  kinds(): string[] {
    return this.db
      .prepare("SELECT kind FROM events WHERE kind LIKE 'auto_standby.%' ORDER BY id")
      .all()
      .map(({ kind }) => String(kind))
  }
}

function house(t: TestContext, options: { maxConcurrent?: number; isRemembered?: boolean } = {}) {
  const sleepers = new Sleepers()
  const { clock, db, events } = sleepers
  const { maxConcurrent = 16, isRemembered = false } = options
  const begin = (): AutoStandby => {
    const auto = new AutoStandby({
      ...{ db, events, instances: sleepers, audit: new FakeOwnDoings(), log: silentLogger, clock, maxConcurrent },
      tracking: { mode: 'made up', isRemembered },
    })
    t.after(() => auto.close())
    auto.recover()
    return auto
  }
  return { sleepers, clock, begin }
}

/** As it is shown, without what a test does not ask for. */
async function shown(auto: AutoStandby, { id }: Instance): Promise<[AutoStandbyStatus['status'], AutoStandbyStatus['reason']]> {
  const { status, reason } = await auto.status(id)
  return [status, reason]
}

test('an instance that no one uses sleeps after its idle time, and is looked at seldom until then', async (t) => {
  const { sleepers, clock, begin } = house(t, { isRemembered: true })
  begin()
  const web = sleepers.add('web')
  await clock.pass(10 * M - 1)
  assert.deepEqual(sleepers.napped, [])
  assert.equal(sleepers.looks.length, 1)
  assert.deepEqual(sleepers.looks[0], [web.id, { sources: ['10.0.0.0/8'], ports: [22] }])
  await clock.pass(1)
  assert.deepEqual(sleepers.napped, ['web'])
  assert.deepEqual(sleepers.kinds(), ['auto_standby.slept'])
})

test('who is connected keeps it awake, and it sleeps an idle time after the last one left', async (t) => {
  const { sleepers, clock, begin } = house(t)
  const auto = begin()
  const web = sleepers.add('web')
  await clock.pass(4 * M)
  sleepers.inbounds.set(web.id, { active: 2, quietMs: 0 })
  assert.deepEqual(await shown(auto, web), ['active', 'active_inbound_connections'])
  await clock.pass(60 * M)
  assert.deepEqual(sleepers.napped, [])
  const status = await auto.status(web.id)
  assert.equal(status.active, 2)
  assert.equal(status.lastActivityMs, clock.wall())
  assert.deepEqual([status.idleSinceMs, status.napAtMs, status.remainingMs], [undefined, undefined, undefined])
  // They left, and it is told for how long no one has been there.
  const leftMs = clock.wall()
  await clock.pass(30 * S)
  sleepers.inbounds.set(web.id, { active: 0, quietMs: 30 * S })
  const idle = await auto.status(web.id)
  assert.deepEqual([idle.status, idle.reason], ['idle_countdown', 'idle_timeout_not_elapsed'])
  assert.deepEqual([idle.idleSinceMs, idle.lastActivityMs, idle.napAtMs], [leftMs, leftMs, leftMs + 10 * M])
  assert.equal(idle.remainingMs, 9.5 * M)
  sleepers.inbounds.set(web.id, { active: 0, quietMs: 10 * M })
  await clock.pass(9.5 * M - 1)
  assert.deepEqual(sleepers.napped, [])
  await clock.pass(1)
  assert.deepEqual(sleepers.napped, ['web'])
})

test('what came and went between two looks counts from its end', async (t) => {
  const { sleepers, clock, begin } = house(t, { isRemembered: true })
  begin()
  const web = sleepers.add('web')
  await clock.pass(9 * M)
  // Someone was there until a minute ago, and no one has looked.
  sleepers.inbounds.set(web.id, { active: 0, quietMs: 2 * M })
  await clock.pass(1 * M)
  assert.deepEqual(sleepers.napped, [])
  sleepers.inbounds.set(web.id, { active: 0, quietMs: 10 * M })
  await clock.pass(8 * M)
  assert.deepEqual(sleepers.napped, ['web'])
})

test('every reason why it does not sleep by itself is told', async (t) => {
  const { sleepers, begin, clock } = house(t)
  const auto = begin()
  const network = { enabled: true, ports: [] }
  const cases: readonly (readonly [Partial<Instance>, string, string])[] = [
    [{ autoStandby: undefined as never }, 'disabled', 'policy_missing'],
    [{ autoStandby: { ...POLICY, enabled: false } }, 'disabled', 'policy_disabled'],
    ...(['Created', 'Initializing', 'Paused', 'Shutdown', 'Stopped', 'Standby', 'Unknown'] as InstanceState[]).map(
      (state) => [{ state }, 'ineligible', 'instance_not_running'] as const,
    ),
    [{ network: { ...network, enabled: false } }, 'ineligible', 'network_disabled'],
    [{ network }, 'ineligible', 'missing_ip'],
    [{ devices: [{ id: 'd1', name: 'card', address: '0000:65:00.0' }] }, 'ineligible', 'has_vgpu'],
    [{ gpu: { profile: 'L40S-1Q' } }, 'ineligible', 'has_vgpu'],
  ]
  for (const [at, [change, status, reason]] of cases.entries()) {
    const one = sleepers.add(`case-${at}`, change)
    const told = await auto.status(one.id)
    assert.deepEqual([told.status, told.reason, told.isEligible, told.isSupported], [status, reason, false, true])
  }
  const unable = sleepers.add('unable')
  sleepers.unable.add(unable.id)
  sleepers.change(unable.id, {})
  const told = await auto.status(unable.id)
  assert.deepEqual([told.status, told.reason, told.isSupported], ['unsupported', 'unsupported_platform', false])
  await clock.pass(60 * M)
  assert.deepEqual(sleepers.napped, [])
})

test('a hold keeps it awake for an idle time from then, and a later one takes its place', async (t) => {
  const { sleepers, clock, begin } = house(t)
  const auto = begin()
  const web = sleepers.add('web')
  await clock.pass(8 * M)
  const held = await auto.hold(web.id)
  assert.equal(held.holdUntilMs, clock.wall() + 10 * M)
  assert.equal(held.napAtMs, held.holdUntilMs)
  assert.equal(held.status, 'idle_countdown')
  await clock.pass(9 * M)
  // With another policy a hold may end sooner than the one before.
  sleepers.change(web.id, { autoStandby: { ...POLICY, idleTimeoutMs: 30 * S } })
  assert.equal((await auto.hold(web.id)).holdUntilMs, clock.wall() + 30 * S)
  await clock.pass(30 * S - 1)
  assert.deepEqual(sleepers.napped, [])
  await clock.pass(1)
  assert.deepEqual(sleepers.napped, ['web'])
  assert.deepEqual(sleepers.kinds(), ['auto_standby.held', 'auto_standby.held', 'auto_standby.slept'])
  await assert.rejects(auto.hold(web.id), { code: 'instance_in_standby' })
})

test('a hold where nothing sleeps by itself changes nothing; where someone puts it to sleep it is refused', async (t) => {
  const { sleepers, begin } = house(t)
  const auto = begin()
  const off = sleepers.add('off', { autoStandby: { ...POLICY, enabled: false } })
  const unfit: readonly Partial<Instance>[] = [{ gpu: { profile: 'L40S-1Q' } }, { network: { enabled: false, ports: [] } }]
  for (const { id } of [off, ...unfit.map((change, at) => sleepers.add(`unfit-${at}`, change))]) {
    assert.deepEqual((await auto.hold(id)).holdUntilMs, undefined)
  }
  sleepers.falling.add(off.id)
  await assert.rejects(auto.hold(off.id), { code: 'instance_in_standby' })
  assert.deepEqual(sleepers.kinds(), [])
})

for (const [look, when] of ['before it begins', 'while its VM stands still', 'before the record'].entries()) {
  test(`whoever connects to one that is falling asleep keeps it awake: ${when}`, async (t) => {
    const { sleepers, clock, begin } = house(t)
    const auto = begin()
    const web = sleepers.add('web')
    sleepers.during = (_id, at) => {
      if (at === look) sleepers.inbounds.set(web.id, { active: 1, quietMs: 0 })
    }
    await clock.pass(10 * M)
    assert.deepEqual(sleepers.napped, [])
    assert.deepEqual(await shown(auto, web), ['active', 'active_inbound_connections'])
    sleepers.during = () => undefined
    sleepers.inbounds.set(web.id, { active: 0, quietMs: 0 })
    assert.deepEqual(await shown(auto, web), ['idle_countdown', 'idle_timeout_not_elapsed'])
    assert.deepEqual(sleepers.kinds(), [])
  })

  test(`a hold breaks off a nap until it is irrevocable: ${when}`, async (t) => {
    const { sleepers, clock, begin } = house(t)
    const auto = begin()
    const web = sleepers.add('web')
    let held: AutoStandbyStatus | undefined
    sleepers.during = async (_id, at) => {
      if (at !== look) return
      assert.deepEqual(await shown(auto, web), ['standby_requested', 'ready_for_standby'])
      held = await auto.hold(web.id)
    }
    await clock.pass(10 * M)
    assert.deepEqual(sleepers.napped, [])
    assert.equal(held?.holdUntilMs, Date.parse(START) + 20 * M)
    sleepers.during = () => undefined
    await clock.pass(10 * M)
    assert.deepEqual(sleepers.napped, ['web'])
  })
}

test('a hold that comes after the last look is refused', async (t) => {
  const { sleepers, clock, begin } = house(t)
  const auto = begin()
  const web = sleepers.add('web')
  const { nap } = sleepers
  let refused: unknown
  sleepers.nap = async (id, stayAwake) =>
    nap.call(sleepers, id, async (look) => {
      const why = await stayAwake(look)
      if (look.isLast) refused = await auto.hold(web.id).catch((error: unknown) => error)
      return why
    })
  await clock.pass(10 * M)
  assert.deepEqual(sleepers.napped, ['web'])
  assert.equal((refused as AppError).code, 'instance_in_standby')
})

test('a command by way of the API keeps it awake as long as it runs, and counts as a connection', async (t) => {
  const { sleepers, clock, begin } = house(t)
  const auto = begin()
  const web = sleepers.add('web')
  const [one, other] = [auto.beginSession(web.id), auto.beginSession(web.id)]
  await clock.pass(25 * M)
  const status = await auto.status(web.id)
  assert.deepEqual([status.status, status.active], ['active', 2])
  one[Symbol.dispose]()
  one[Symbol.dispose]()
  await clock.pass(25 * M)
  other[Symbol.dispose]()
  await clock.pass(10 * M - 1)
  assert.deepEqual(sleepers.napped, [])
  await clock.pass(1)
  assert.deepEqual(sleepers.napped, ['web'])
})

test('a command that is asked for while it falls asleep breaks that off, also when it is refused', async (t) => {
  const { sleepers, clock, begin } = house(t)
  const auto = begin()
  const web = sleepers.add('web')
  sleepers.during = (_id, look) => {
    if (look === 2) auto.beginSession(web.id)[Symbol.dispose]()
    return undefined
  }
  await clock.pass(10 * M)
  assert.deepEqual(sleepers.napped, [])
  sleepers.during = () => undefined
  await clock.pass(10 * M)
  assert.deepEqual(sleepers.napped, ['web'])
})

test('when a command ended is on record, also for a daemon that is killed', async (t) => {
  const { sleepers, clock, begin } = house(t)
  let auto = begin()
  const web = sleepers.add('web')
  await clock.pass(3 * M)
  auto.beginSession(web.id)[Symbol.dispose]()
  await clock.pass(1 * M)
  auto = begin()
  assert.equal((await auto.status(web.id)).idleSinceMs, Date.parse(START) + 3 * M)
})

test('at most so many fall asleep at a time; who waits is ready, and whoever connects meanwhile stays awake', async (t) => {
  const { sleepers, clock, begin } = house(t, { maxConcurrent: 2 })
  const auto = begin()
  const all = ['a', 'b', 'c', 'd', 'e'].map((name) => sleepers.add(name))
  const gate = Promise.withResolvers<void>()
  sleepers.during = (_id, look) => (look === 1 ? gate.promise : undefined)
  await clock.pass(10 * M)
  const [, , c, d] = all
  assert.ok(c && d)
  assert.deepEqual(await shown(auto, c), ['ready_for_standby', 'ready_for_standby'])
  // One is held, one is used: neither takes a place.
  await auto.hold(c.id)
  sleepers.inbounds.set(d.id, { active: 1, quietMs: 0 })
  assert.deepEqual(await shown(auto, d), ['active', 'active_inbound_connections'])
  gate.resolve()
  await clock.pass(1)
  assert.deepEqual(sleepers.napped.toSorted(), ['a', 'b', 'e'])
  assert.equal(sleepers.mostUnderWay, 2)
})

test('one that cannot be put to sleep is tried again, ever more seldom, and says so', async (t) => {
  const { sleepers, clock, begin } = house(t)
  const auto = begin()
  const web = sleepers.add('web')
  let tries = 0
  sleepers.trouble = () => {
    tries++
    return new AppError('insufficient_resources', 'The disk is full')
  }
  await clock.pass(10 * M)
  assert.equal(tries, 1)
  const status = await auto.status(web.id)
  assert.deepEqual([status.status, status.reason, status.lastError], ['error', 'ready_for_standby', 'The disk is full'])
  assert.equal(status.napAtMs, clock.wall() + 30 * S)
  await clock.pass(30 * S)
  assert.equal(tries, 2)
  await clock.pass(60 * S)
  assert.equal(tries, 3)
  await clock.pass(60 * M)
  assert.ok(tries < 12, `${tries} tries in an hour`)
  sleepers.trouble = undefined
  await clock.pass(10 * M)
  assert.deepEqual(sleepers.napped, ['web'])
  assert.ok(sleepers.kinds().includes('auto_standby.failed'))
})

test('one whose connections cannot be counted stays awake until they can', async (t) => {
  const { sleepers, clock, begin } = house(t)
  const auto = begin()
  const web = sleepers.add('web')
  sleepers.inbounds.set(web.id, new AppError('not_supported', 'No one counts'))
  await clock.pass(60 * M)
  const status = await auto.status(web.id)
  assert.deepEqual([status.status, status.reason, status.lastError], ['error', 'observer_error', 'No one counts'])
  sleepers.inbounds.delete(web.id)
  await clock.pass(10 * S)
  assert.deepEqual(sleepers.napped, ['web'])
})

test('another policy is counted down to anew; one that is turned off breaks off a nap', async (t) => {
  const { sleepers, clock, begin } = house(t)
  begin()
  const web = sleepers.add('web')
  await clock.pass(9 * M)
  sleepers.change(web.id, { autoStandby: { ...POLICY, idleTimeoutMs: 5 * M } })
  // What else changes does not matter.
  sleepers.change(web.id, { env: { A: '1' } })
  await clock.pass(5 * M - 1)
  assert.deepEqual(sleepers.napped, [])
  sleepers.during = (_id, look) => {
    if (look === 0) sleepers.change(web.id, { autoStandby: { ...POLICY, enabled: false } })
  }
  await clock.pass(20 * M)
  assert.deepEqual(sleepers.napped, [])
})

test('the wall clock may jump: nothing sleeps sooner or later for it, and what is told jumps along', async (t) => {
  const { sleepers, clock, begin } = house(t)
  const auto = begin()
  const web = sleepers.add('web')
  await clock.pass(4 * M)
  await auto.hold(web.id)
  clock.jump(3_600_000)
  await clock.pass(1 * M)
  const status = await auto.status(web.id)
  assert.equal(status.remainingMs, 9 * M)
  assert.equal(status.idleSinceMs, clock.wall() - 5 * M)
  clock.jump(-7_200_000)
  await clock.pass(9 * M - 1)
  assert.deepEqual(sleepers.napped, [])
  await clock.pass(1)
  assert.deepEqual(sleepers.napped, ['web'])
})

test('a daemon that begins goes on counting where the last one was', async (t) => {
  const { sleepers, clock, begin } = house(t)
  let auto = begin()
  const [idle, held, used] = ['idle', 'held', 'used'].map((name) => sleepers.add(name))
  assert.ok(idle && held && used)
  sleepers.inbounds.set(used.id, { active: 1, quietMs: 0 })
  await clock.pass(2 * M)
  sleepers.inbounds.set(idle.id, { active: 0, quietMs: 1 * M })
  await auto.status(idle.id)
  await auto.status(used.id)
  await auto.hold(held.id)
  await auto.close()
  // Whoever counts begins anew, and knows nothing of what was.
  for (const { id } of [idle, used]) sleepers.inbounds.delete(id)
  await clock.pass(3 * M)
  auto = begin()
  await clock.pass(0)
  const at = async ({ id }: Instance) => ((await auto.status(id)).napAtMs ?? 0) - Date.parse(START)
  assert.equal(await at(idle), 11 * M)
  assert.equal(await at(held), 12 * M)
  // When its clients left is not known: as if it had been now.
  assert.equal(await at(used), 15 * M)
  assert.equal((await auto.status(held.id)).holdUntilMs, Date.parse(START) + 12 * M)
})

test('where someone has counted on, a daemon that begins knows when the last one left', async (t) => {
  const { sleepers, clock, begin } = house(t, { isRemembered: true })
  let auto = begin()
  const web = sleepers.add('web')
  sleepers.inbounds.set(web.id, { active: 1, quietMs: 0 })
  await clock.pass(2 * M)
  await auto.status(web.id)
  await auto.close()
  await clock.pass(3 * M)
  sleepers.inbounds.set(web.id, { active: 0, quietMs: 2 * M })
  auto = begin()
  assert.equal((await auto.status(web.id)).idleSinceMs, Date.parse(START) + 3 * M)
})

test('a wake begins to count anew, whatever is on record', async (t) => {
  const { sleepers, clock, begin } = house(t)
  let auto = begin()
  const web = sleepers.add('web')
  await clock.pass(10 * M)
  assert.deepEqual(sleepers.napped, ['web'])
  await auto.close()
  sleepers.change(web.id, { state: 'Running' })
  await clock.pass(1 * M)
  auto = begin()
  assert.equal((await auto.status(web.id)).remainingMs, 9 * M)
})

test('one that is deleted in the middle of it all leaves nothing behind', async (t) => {
  const { sleepers, clock, begin } = house(t)
  const auto = begin()
  const web = sleepers.add('web')
  await auto.hold(web.id)
  sleepers.db.transaction(() => {
    sleepers.rows.delete(web.id)
    sleepers.events.record({ kind: 'instance.deleted', subject: web.id, data: {} })
  })
  await clock.pass(60 * M)
  assert.equal(sleepers.db.prepare('SELECT count(*) AS rows FROM auto_standby').get()?.rows, 0)
  assert.deepEqual(sleepers.napped, [])
})

test('a thousand that are idle at once are looked at once each, and all sleep', async (t) => {
  const { sleepers, clock, begin } = house(t, { isRemembered: true })
  begin()
  for (let at = 0; at < 1000; at++) sleepers.add(`i${at}`)
  await clock.pass(1)
  assert.equal(sleepers.looks.length, 1000)
  await clock.pass(10 * M)
  // Sixteen at a time: each place is free again within a turn or a few.
  await clock.pass(1)
  for (let turn = 0; turn < 1000 && sleepers.napped.length < 1000; turn++) await clock.pass(0)
  assert.equal(sleepers.napped.length, 1000)
  assert.equal(sleepers.mostUnderWay, 16)
})
