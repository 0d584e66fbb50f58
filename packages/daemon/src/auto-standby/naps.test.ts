/** Naps of instances as they are, on the fake driver: what a nap that gives way leaves behind, and what becomes of policies. */
import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { FakeOwnDoings } from '../audit/fake-own-doings.ts'
import { FakeClock } from '../host/fake-clock.ts'
import { pollUntil } from '../host/poll-until.ts'
import type { FakeMachine } from '../hypervisors/fake/fake-host.ts'
import type { AutoStandbyPolicy, Instance, InstanceId } from '../instances/instance.ts'
import type { Instances } from '../instances/instances.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from '../instances/test-house.ts'
import { Supervision } from '../supervision/supervision.ts'
import { AutoStandby } from './auto-standby.ts'

const IDLE_MS = 600_000
const autoStandby: AutoStandbyPolicy = { enabled: true, idleTimeoutMs: IDLE_MS, ignoreSources: [], ignorePorts: [] }

async function begin(t: TestContext, house: TestHouse) {
  const instances = await house.begin()
  const clock = new FakeClock(new Date().toISOString())
  const audit = new FakeOwnDoings()
  const auto = new AutoStandby({
    ...{ db: house.db, events: house.events, instances, audit, log: house.log, clock, maxConcurrent: 16 },
    tracking: { mode: 'made up', isRemembered: true },
  })
  t.after(() => auto.close())
  auto.recover()
  return { instances, clock, auto, audit }
}

async function running(instances: Instances, name = 'a'): Promise<Instance> {
  const { id } = await instances.create({ name, image: 'test', overlayBytes: TEST_OVERLAY, autoStandby })
  await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  return instances.get(id)
}

function machineOf(house: TestHouse, id: InstanceId): FakeMachine {
  return house.host.running().find(({ spec }) => spec.id === id) ?? assert.fail(`no VM runs for ${id}`)
}

/** Lets the idle time be over; resolves when the nap that follows has ended, whichever way. */
async function idle(clock: FakeClock, auto: AutoStandby, id: InstanceId): Promise<void> {
  await clock.pass(IDLE_MS)
  while ((await auto.status(id)).status === 'standby_requested') await new Promise((resolve) => setImmediate(resolve))
}

test('an idle instance sleeps, wakes with its memory, and sleeps again', async (t) => {
  await using house = new TestHouse()
  const { instances, clock, auto, audit } = await begin(t, house)
  const { id } = await running(instances)
  machineOf(house, id).guest.counter = 41
  for (const nap of [1, 2]) {
    await idle(clock, auto, id)
    assert.equal(instances.get(id).state, 'Standby', `nap ${nap}`)
    assert.equal((await auto.status(id)).reason, 'instance_not_running')
    await instances.restore(id)
    assert.equal(machineOf(house, id).guest.counter, 41)
    assert.equal((await auto.status(id)).remainingMs, IDLE_MS)
  }
  assert.deepEqual(audit.told, Array(2).fill(`standbyInstance ${id} done`))
  await assertInOrder(house)
})

test('checks of its health keep no one awake, and whoever sleeps is neither unhealthy nor restarted', async (t) => {
  await using house = new TestHouse()
  const { instances, clock, auto } = await begin(t, house)
  await using supervision = new Supervision({ db: house.db, instances, events: house.events, audit: new FakeOwnDoings(), log: house.log })
  supervision.recover()
  house.host.services.set(8080, () => undefined)
  const { id } = await instances.create({
    ...{ name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, autoStandby },
    healthCheck: {
      probe: { kind: 'tcp', port: 8080 },
      ...{ intervalMs: 1, timeoutMs: 10_000, startPeriodMs: 0, failureThreshold: 1, successThreshold: 1 },
    },
    restartPolicy: { policy: 'always', backoffMs: 1, maxAttempts: 0, stableAfterMs: 3_600_000 },
  })
  await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  const attention = () => supervision.of(instances.get(id), Date.now())
  const health = (wanted: string) =>
    pollUntil(`it to be ${wanted}`, () => attention().health?.status === wanted, { signal: AbortSignal.timeout(20_000) })
  for (const nap of [1, 2]) {
    await health('healthy')
    await idle(clock, auto, id)
    const { health: asleep, restart } = attention()
    assert.deepEqual([instances.get(id).state, asleep?.status, restart], ['Standby', 'unknown', { attempts: 0 }], `nap ${nap}`)
    // It is looked at anew.
    await instances.restore(id)
  }
  await health('healthy')
  const told = "SELECT json_extract(data, '$.status') AS status FROM events WHERE kind = 'instance.health_changed'"
  assert.deepEqual(
    house.db
      .prepare(told)
      .all()
      .map(({ status }) => status),
    ['healthy', 'healthy', 'healthy'],
  )
  await assertInOrder(house)
})

test('a client that comes while the VM stands still has it run on, and nothing is left of the nap', async (t) => {
  await using house = new TestHouse()
  const { instances, clock, auto } = await begin(t, house)
  const { id } = await running(instances)
  const machine = machineOf(house, id)
  const { pause } = machine
  machine.pause = () => {
    pause.call(machine)
    machine.inbound = { active: 1, quietMs: 0 }
  }
  await idle(clock, auto, id)
  assert.deepEqual([instances.get(id).state, machine.isPaused, machine.guest.isFrozen], ['Running', false, false])
  assert.equal((await auto.status(id)).status, 'active')
  assert.equal(machineOf(house, id), machine)
  machine.pause = pause
  machine.inbound = { active: 0, quietMs: 0 }
  await auto.status(id)
  machine.inbound = { active: 0, quietMs: IDLE_MS }
  await idle(clock, auto, id)
  assert.equal(instances.get(id).state, 'Standby')
  await assertInOrder(house)
})

test('a standby that someone asks for is done, although the nap that it joins gives way', async (t) => {
  await using house = new TestHouse()
  const { instances, clock } = await begin(t, house)
  const { id } = await running(instances)
  const machine = machineOf(house, id)
  const { pause } = machine
  let asked: Promise<Instance> | undefined
  machine.pause = () => {
    pause.call(machine)
    machine.inbound = { active: 1, quietMs: 0 }
    asked ??= instances.standby(id)
  }
  await clock.pass(IDLE_MS)
  await settled(instances)
  assert.equal((await asked)?.state, 'Standby')
  await assertInOrder(house)
})

test('a stop, a delete and a restore that come during a nap wait for it', async (t) => {
  await using house = new TestHouse()
  const { instances, clock } = await begin(t, house)
  const deeds: Readonly<Record<string, (id: InstanceId) => Promise<unknown>>> = {
    stop: (id) => instances.stop(id),
    restore: (id) => instances.restore(id),
    delete: (id) => instances.delete(id),
  }
  const asked: Promise<unknown>[] = []
  for (const [name, deed] of Object.entries(deeds)) {
    const { id } = await running(instances, name)
    const machine = machineOf(house, id)
    const { pause } = machine
    machine.pause = () => {
      pause.call(machine)
      asked.push(deed(id))
    }
  }
  await clock.pass(IDLE_MS)
  await settled(instances)
  await Promise.all(asked)
  assert.deepEqual(Object.fromEntries(instances.list().map(({ name, state }) => [name, state])), { stop: 'Stopped', restore: 'Running' })
  await assertInOrder(house)
})

test('a failed capture is told, and the instance runs on', async (t) => {
  await using house = new TestHouse()
  const { instances, clock, auto } = await begin(t, house)
  const { id } = await running(instances)
  house.host.injectFault('capture')
  await idle(clock, auto, id)
  const { status, lastError } = await auto.status(id)
  assert.equal(status, 'error')
  assert.match(lastError ?? '', /failed at the step "capture"/)
  await clock.pass(30_000)
  await settled(instances)
  assert.equal(instances.get(id).state, 'Standby')
  await assertInOrder(house)
})

test('a fork and a fork of a snapshot have the policy, and going back to a snapshot brings back what it was', async (t) => {
  await using house = new TestHouse()
  const { instances, clock, auto } = await begin(t, house)
  const { id } = await running(instances)
  await auto.hold(id)
  const kept = await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
  const forks = [await instances.fork(id, { name: 'b', fromRunning: true }), await instances.forkSnapshot(kept, { name: 'c' })]
  for (const fork of forks) {
    assert.deepEqual(fork.autoStandby, autoStandby)
    // A hold is its source's own.
    assert.equal((await auto.status(fork.id)).holdUntilMs, undefined)
  }
  await instances.update(id, { autoStandby: { ...autoStandby, enabled: false } })
  assert.equal((await auto.status(id)).reason, 'policy_disabled')
  await clock.pass(IDLE_MS)
  await settled(instances)
  assert.deepEqual(
    forks.map((fork) => instances.get(fork.id).state),
    ['Standby', 'Standby'],
  )
  assert.equal(instances.get(id).state, 'Running')
  await instances.stop(id)
  await instances.restoreSnapshot(id, kept, 'Running')
  assert.deepEqual(instances.get(id).autoStandby, autoStandby)
  await idle(clock, auto, id)
  assert.equal(instances.get(id).state, 'Standby')
  await assertInOrder(house)
})

test('a policy outlives the daemon, and one that was never set is none', async (t) => {
  await using house = new TestHouse()
  const first = await begin(t, house)
  const { id } = await running(first.instances)
  const { id: other } = await first.instances.create({ name: 'other', image: 'test', overlayBytes: TEST_OVERLAY })
  await settled(first.instances)
  await first.auto.close()
  await house.end()
  const { instances, clock, auto } = await begin(t, house)
  assert.deepEqual([instances.get(id).autoStandby, instances.get(other).autoStandby], [autoStandby, undefined])
  await idle(clock, auto, id)
  assert.equal(instances.get(id).state, 'Standby')
  assert.equal((await auto.status(other)).reason, 'policy_missing')
  await assertInOrder(house)
})
