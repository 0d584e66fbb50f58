/** Restarts as a daemon does them, on the fake driver. What a policy makes of an instance is in instances/restart-policy.test.ts. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FakeOwnDoings } from '../audit/fake-own-doings.ts'
import { pollUntil } from '../host/poll-until.ts'
import type { CreateInstance, Instance, InstanceId, RestartPolicy } from '../instances/instance.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from '../instances/test-house.ts'
import { silentLogger } from '../log.ts'
import { Supervision } from './supervision.ts'

const SOON: RestartPolicy = { policy: 'on_failure', backoffMs: 1, maxAttempts: 0, stableAfterMs: 3_600_000 }
const request: CreateInstance = { name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, restartPolicy: SOON }

const supervise = (house: TestHouse, audit = new FakeOwnDoings()): Supervision => {
  const supervision = new Supervision({ db: house.db, instances: house.instances, events: house.events, audit, log: silentLogger })
  supervision.recover()
  return supervision
}
const until = (what: string, look: () => boolean) => pollUntil(what, look, { signal: AbortSignal.timeout(20_000) })
const statusOf = (house: TestHouse, supervision: Supervision, id: InstanceId) => supervision.of(house.instances.get(id), Date.now()).restart

async function running(house: TestHouse, more: Partial<CreateInstance> = {}): Promise<Instance> {
  const { id } = await house.instances.create({ ...request, ...more })
  await house.instances.wait(id, { state: 'Running', timeoutMs: 10_000 })
  return house.instances.get(id)
}

/** Its workload ends by itself; resolves once it has been started again. */
async function crashAndReturn(house: TestHouse, id: InstanceId, code = 1): Promise<void> {
  const { startedAtMs, restarts } = house.instances.get(id)
  const machine = house.host.running().find(({ spec }) => spec.id === id)
  machine?.guest.exitWorkload(code, `exited with code ${code}`)
  await until('its restart', () => {
    const now = house.instances.get(id)
    return now.state === 'Running' && now.restarts?.lastAttemptAtMs !== restarts?.lastAttemptAtMs && now.startedAtMs !== startedAtMs
  })
}

test('a workload that crashes is started again, and each attempt is counted', async () => {
  await using house = new TestHouse()
  await house.begin()
  const audit = new FakeOwnDoings()
  await using supervision = supervise(house, audit)
  const { id } = await running(house)
  assert.deepEqual(statusOf(house, supervision, id), { attempts: 0 })
  await crashAndReturn(house, id)
  await crashAndReturn(house, id)
  const status = statusOf(house, supervision, id)
  assert.equal(status?.attempts, 2)
  assert.ok(status?.lastAttemptAtMs !== undefined && status.nextAttemptAtMs === undefined)
  await settled(house.instances)
  await until('both to be told', () => audit.told.length === 2)
  assert.deepEqual(audit.told, Array(2).fill(`restartInstance ${id} done`))
  await assertInOrder(house)
})

test('a workload that ends well stays ended under on_failure, and is started again under always', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using supervision = supervise(house)
  const { id } = await instances.create({ ...request, cmd: ['true'] })
  await until('its end', () => instances.get(id).state === 'Stopped')
  await settled(instances)
  assert.deepEqual([statusOf(house, supervision, id), instances.get(id).state], [{ attempts: 0 }, 'Stopped'])
  const always = await running(house, { name: 'b', restartPolicy: { ...SOON, policy: 'always' } })
  await crashAndReturn(house, always.id, 0)
  await assertInOrder(house)
})

test('after as many attempts as there may be it stays as it is, and says why, until someone starts it', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using supervision = supervise(house)
  const { id } = await instances.create({ ...request, cmd: ['exit', '3'], restartPolicy: { ...SOON, maxAttempts: 2 } })
  await until('its attempts to be over', () => statusOf(house, supervision, id)?.blockedReason === 'max_attempts_exceeded')
  assert.equal(statusOf(house, supervision, id)?.attempts, 2)
  assert.deepEqual([instances.get(id).state, instances.get(id).exitCode], ['Stopped', 3])
  // Another policy gives it other attempts.
  await instances.update(id, { restartPolicy: { ...SOON, maxAttempts: 1 } })
  await until('its attempts to be over again', () => {
    const status = statusOf(house, supervision, id)
    return status?.blockedReason === 'max_attempts_exceeded' && status.attempts === 1
  })
  await instances.start(id, { cmd: ['sleep', '60'] })
  await instances.wait(id, { state: 'Running', timeoutMs: 10_000 })
  assert.deepEqual(statusOf(house, supervision, id), { attempts: 0 })
  await assertInOrder(house)
})

test('a start that fails is an attempt, and is tried again', async () => {
  await using house = new TestHouse()
  await house.begin()
  await using supervision = supervise(house)
  const { id } = await running(house)
  house.host.injectFault('start', 'fail', { times: 2 })
  await crashAndReturn(house, id)
  assert.equal(statusOf(house, supervision, id)?.attempts, 3)
  await assertInOrder(house)
})

test('what someone stops stays stopped, also while it waits for its restart; a start by someone ends that', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using supervision = supervise(house)
  const { id } = await running(house, { restartPolicy: { ...SOON, policy: 'always' } })
  await instances.stop(id)
  assert.deepEqual(statusOf(house, supervision, id), { attempts: 0, blockedReason: 'manual_stop' })
  // Its policy may change; who stopped it meant it.
  await instances.update(id, { restartPolicy: { ...SOON, policy: 'always', backoffMs: 3_600_000 } })
  await settled(instances)
  assert.equal(instances.get(id).state, 'Stopped')
  await instances.start(id, { cmd: ['exit', '1'] })
  await until('its end', () => instances.get(id).state === 'Stopped' && statusOf(house, supervision, id)?.nextAttemptAtMs !== undefined)
  const waited = await instances.wait(id, { state: 'Running', timeoutMs: 10_000 })
  assert.match(waited.reason ?? '', /yet to be started again/)
  await instances.stop(id)
  assert.equal(statusOf(house, supervision, id)?.blockedReason, 'manual_stop')
  await assertInOrder(house)
})

test('a stop that comes while its workload’s end is being settled waits for that, and holds', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using supervision = supervise(house)
  const { id } = await running(house, { restartPolicy: { ...SOON, policy: 'always', backoffMs: 0 } })
  const stopping = Promise.withResolvers<Promise<Instance>>()
  using _listening = house.events.listen(({ subject, data }) => {
    if (subject === id && data.state === 'Shutdown') queueMicrotask(() => stopping.resolve(instances.stop(id)))
  })
  house.host.running()[0]?.guest.exitWorkload(1, 'exited with code 1')
  const stopped = await await stopping.promise
  assert.deepEqual([stopped.state, stopped.exitCode, stopped.restarts?.isHeld], ['Stopped', 1, true])
  await settled(instances)
  assert.deepEqual([instances.get(id).state, statusOf(house, supervision, id)?.blockedReason], ['Stopped', 'manual_stop'])
  await assertInOrder(house)
})

test('who stops or starts one is not fobbed off with a restart that finds nothing to do', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  const nothing = { unhealthySinceMs: () => undefined }
  // Each waits behind the update, and the restart is before the one who asks.
  const stopping = [instances.update(id, { tags: { a: '1' } }), instances.restartByPolicy(id, nothing), instances.stop(id)]
  await Promise.all(stopping)
  assert.deepEqual([instances.get(id).state, instances.get(id).restarts?.isHeld], ['Stopped', true])
  const starting = [instances.update(id, { tags: { a: '2' } }), instances.restartByPolicy(id, nothing), instances.start(id)]
  await Promise.all(starting)
  await instances.wait(id, { state: 'Running', timeoutMs: 10_000 })
  assert.equal(instances.get(id).state, 'Running')
  await assertInOrder(house)
})

test('a sleeper is not started, and one that is deleted is gone', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using supervision = supervise(house)
  const { id } = await running(house, { restartPolicy: { ...SOON, policy: 'always' } })
  await instances.standby(id)
  assert.deepEqual(statusOf(house, supervision, id), { attempts: 0 })
  await instances.restore(id)
  await instances.delete(id)
  await settled(instances)
  assert.deepEqual(instances.list(), [])
  await assertInOrder(house)
})

test('a fork has its source’s policy and none of its attempts; made to be Stopped, it stays so', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using supervision = supervise(house)
  const { id } = await running(house, { restartPolicy: { ...SOON, policy: 'always' } })
  await crashAndReturn(house, id)
  const fork = await instances.fork(id, { name: 'b', fromRunning: true })
  assert.deepEqual(fork.restartPolicy, house.instances.get(id).restartPolicy)
  assert.deepEqual(statusOf(house, supervision, fork.id), { attempts: 0 })
  const still = await instances.fork(id, { name: 'c', fromRunning: true, target: 'Stopped' })
  await settled(instances)
  assert.equal(instances.get(still.id).state, 'Stopped')
  await assertInOrder(house)
})

test('an instance that goes back to a snapshot as Stopped is not started by its policy', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using supervision = supervise(house)
  const { id } = await running(house)
  const kept = await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
  await instances.stop(id)
  await instances.restoreSnapshot(id, kept, 'Stopped')
  await settled(instances)
  assert.deepEqual([instances.get(id).state, statusOf(house, supervision, id)?.blockedReason], ['Stopped', 'manual_stop'])
  await assertInOrder(house)
})

test('what fell while no daemon was there is started by the next one, also when the clock was set back meanwhile', async () => {
  await using house = new TestHouse()
  await house.begin()
  const { id } = await running(house)
  await house.end()
  house.host
    .running()
    .find(({ spec }) => spec.id === id)
    ?.guest.exitWorkload(1, 'exited with code 1')
  await until('its VM to be gone', () => house.host.running().length === 0)
  const instances = await house.begin()
  // By this clock it will end an hour from now.
  const stopped = instances.get(id)
  assert.equal(stopped.state, 'Stopped')
  house.db.prepare('UPDATE instances SET stopped_at_ms = ? WHERE id = ?').run(Date.now() + 3_600_000, id)
  await house.end()
  const again = await house.begin()
  await using _supervision = supervise(house)
  await until('its restart', () => again.get(id).state === 'Running')
  await assertInOrder(house)
})

for (const crashAt of ['start:intent', 'start:logs', 'start:attach', 'start:spawn', 'start:record']) {
  test(`a daemon that dies at ${crashAt} of a restart leaves the rest to the next one`, async () => {
    await using house = new TestHouse()
    const died = Promise.withResolvers<void>()
    await house.begin()
    const { id } = await running(house)
    await house.end()
    await house.begin({ crashAt, onCrash: () => died.resolve() })
    const supervision = supervise(house)
    house.host.running()[0]?.guest.exitWorkload(1, 'exited with code 1')
    await died.promise
    house.crash()
    void supervision.close()
    const instances = await house.begin()
    await using next = supervise(house)
    await until('its restart', () => instances.get(id).state === 'Running')
    // The attempt that was cut short counts where it was on record.
    assert.equal(statusOf(house, next, id)?.attempts, crashAt === 'start:intent' ? 1 : 2)
    await assertInOrder(house)
  })
}
