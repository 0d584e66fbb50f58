/** Health checks as a daemon does them, on the fake driver. What one check is: check.test.ts; what is thought of many: verdict.test.ts. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FakeOwnDoings } from '../audit/fake-own-doings.ts'
import { pollUntil } from '../host/poll-until.ts'
import type { CreateInstance, HealthCheck, Instance, InstanceId, RestartPolicy } from '../instances/instance.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from '../instances/test-house.ts'
import { silentLogger } from '../log.ts'
import { Supervision } from './supervision.ts'

const PORT = 8080
const CHECK: HealthCheck = {
  probe: { kind: 'tcp', port: PORT },
  ...{ intervalMs: 1, timeoutMs: 10_000, startPeriodMs: 0, failureThreshold: 2, successThreshold: 1 },
}
const SOON: RestartPolicy = { policy: 'on_failure', backoffMs: 1, maxAttempts: 0, stableAfterMs: 3_600_000 }
const request: CreateInstance = { name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, healthCheck: CHECK }

const supervise = (house: TestHouse): Supervision => {
  const supervision = new Supervision({
    db: house.db,
    instances: house.instances,
    events: house.events,
    audit: new FakeOwnDoings(),
    log: silentLogger,
  })
  supervision.recover()
  return supervision
}
const until = (what: string, look: () => boolean) => pollUntil(what, look, { signal: AbortSignal.timeout(20_000) })
const healthOf = (house: TestHouse, supervision: Supervision, id: InstanceId) => supervision.of(house.instances.get(id), Date.now()).health
const untilIs = (house: TestHouse, supervision: Supervision, id: InstanceId, status: string) =>
  until(`it to be ${status}`, () => healthOf(house, supervision, id)?.status === status)

/** A service that can be closed and opened. */
const open = (house: TestHouse): void => void house.host.services.set(PORT, () => undefined)
const shut = (house: TestHouse): void => void house.host.services.delete(PORT)

async function running(house: TestHouse, more: Partial<CreateInstance> = {}): Promise<Instance> {
  const { id } = await house.instances.create({ ...request, ...more })
  await house.instances.wait(id, { state: 'Running', timeoutMs: 10_000 })
  return house.instances.get(id)
}

/** What was told of its health, in order. */
const told = (house: TestHouse, id: InstanceId): unknown[] =>
  house.db
    .prepare(
      "SELECT json_extract(data, '$.status') AS status FROM events WHERE kind = 'instance.health_changed' AND subject = ? ORDER BY id",
    )
    .all(id)
    .map(({ status }) => status)

test('a service that answers is healthy, one that does not any more is not, and both are told', async () => {
  await using house = new TestHouse()
  await house.begin()
  await using supervision = supervise(house)
  open(house)
  const { id } = await running(house)
  await untilIs(house, supervision, id, 'healthy')
  shut(house)
  await untilIs(house, supervision, id, 'unhealthy')
  const health = healthOf(house, supervision, id)
  assert.match(health?.lastError ?? '', /Connection refused/)
  assert.ok((health?.failures ?? 0) >= 2)
  open(house)
  await untilIs(house, supervision, id, 'healthy')
  assert.equal(healthOf(house, supervision, id)?.lastError, undefined)
  assert.deepEqual(told(house, id), ['healthy', 'unhealthy', 'healthy'])
  // Health changes no state.
  assert.equal(house.instances.get(id).state, 'Running')
  await assertInOrder(house)
})

test('what runs a program of the guest’s own is checked without a network', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using supervision = supervise(house)
  const exec = (command: string[]): HealthCheck => ({ ...CHECK, probe: { kind: 'exec', command } })
  const { id } = await running(house, { network: { enabled: false }, healthCheck: exec(['true']) })
  await untilIs(house, supervision, id, 'healthy')
  await instances.update(id, { healthCheck: exec(['exit', '3']) })
  await untilIs(house, supervision, id, 'unhealthy')
  assert.equal(healthOf(house, supervision, id)?.lastError, 'exited with code 3')
  // A port is asked over a network only.
  for (const kind of ['tcp', 'http'] as const) {
    const probe = { kind, port: 80, scheme: 'http', path: '/', expectedStatus: 200 } as const
    const refused = { code: 'invalid_request', message: new RegExp(`type ${kind} needs the network`) }
    await assert.rejects(instances.update(id, { healthCheck: { ...CHECK, probe } }), refused)
    const other: CreateInstance = { name: 'b', image: 'test', network: { enabled: false }, healthCheck: { ...CHECK, probe } }
    await assert.rejects(instances.create(other), refused)
  }
  assert.equal(instances.list().length, 1)
  await instances.update(id, { healthCheck: { ...CHECK, probe: { kind: 'none' } } })
  assert.equal(healthOf(house, supervision, id)?.status, 'disabled')
})

test('a service that is coming up may fail for as long as its start period says', async () => {
  await using house = new TestHouse()
  await house.begin()
  await using supervision = supervise(house)
  const { id } = await running(house, { healthCheck: { ...CHECK, startPeriodMs: 3_600_000 } })
  await until('some checks', () => healthOf(house, supervision, id)?.lastFailureAtMs !== undefined)
  assert.deepEqual([healthOf(house, supervision, id)?.status, healthOf(house, supervision, id)?.failures], ['starting', 0])
  open(house)
  await untilIs(house, supervision, id, 'healthy')
})

test('who sleeps is not checked, and begins anew when it wakes; what stopped is unknown', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using supervision = supervise(house)
  open(house)
  const { id } = await running(house)
  await untilIs(house, supervision, id, 'healthy')
  shut(house)
  await instances.standby(id)
  const asleep = { status: 'unknown', successes: 0, failures: 0 }
  assert.deepEqual(healthOf(house, supervision, id), asleep)
  // In any state.
  await instances.update(id, { healthCheck: { ...CHECK, failureThreshold: 1 } })
  assert.deepEqual(healthOf(house, supervision, id), asleep)
  open(house)
  await instances.restore(id)
  await untilIs(house, supervision, id, 'healthy')
  await instances.stop(id)
  assert.deepEqual(healthOf(house, supervision, id), asleep)
  assert.ok(!told(house, id).includes('unhealthy'))
  await assertInOrder(house)
})

test('a check that a nap or a copy came in between of does not count', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using supervision = supervise(house)
  // A call that is taken and never answered, until it is.
  const calls: (() => void)[] = []
  house.host.services.set(PORT, (connection) => void calls.push(() => connection.destroy()))
  const http: HealthCheck = {
    ...CHECK,
    probe: { kind: 'http', scheme: 'http', port: PORT, path: '/', expectedStatus: 200 },
    ...{ failureThreshold: 1, timeoutMs: 3_600_000 },
  }
  const { id } = await running(house, { healthCheck: http })
  await until('a call', () => calls.length === 1)
  await instances.fork(id, { name: 'b', fromRunning: true, target: 'Stopped' })
  calls[0]?.()
  await until('the next call', () => calls.length === 2)
  assert.deepEqual(healthOf(house, supervision, id), { status: 'starting', successes: 0, failures: 0 })
  await instances.standby(id)
  await instances.restore(id)
  await until('a call after the nap', () => calls.length === 3)
  assert.deepEqual(healthOf(house, supervision, id), { status: 'starting', successes: 0, failures: 0 })
  calls[2]?.()
  await untilIs(house, supervision, id, 'unhealthy')
})

test('a fork is checked as its source is, and knows nothing of what was found there', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using supervision = supervise(house)
  open(house)
  const { id } = await running(house)
  await untilIs(house, supervision, id, 'healthy')
  shut(house)
  const fork = await instances.fork(id, { name: 'b', fromRunning: true })
  assert.deepEqual(fork.healthCheck, CHECK)
  await untilIs(house, supervision, fork.id, 'unhealthy')
  assert.deepEqual(told(house, fork.id), ['unhealthy'])
})

test('what was found is known to the next daemon, as long as it is the same life and the same check', async () => {
  await using house = new TestHouse()
  await house.begin()
  const first = supervise(house)
  open(house)
  const { id } = await running(house)
  await untilIs(house, first, id, 'healthy')
  await first.close()
  await house.end()
  const instances = await house.begin()
  // It never asks: what it says is what the last one found.
  const slow = new Supervision({
    ...{ db: house.db, instances, events: house.events, audit: new FakeOwnDoings(), log: silentLogger },
    passing: { now: () => 0, after: () => ({ [Symbol.dispose]: () => undefined }) },
  })
  slow.recover()
  assert.equal(healthOf(house, slow, id)?.status, 'healthy')
  await slow.close()
  await instances.standby(id)
  await instances.restore(id)
  await house.end()
  await house.begin()
  shut(house)
  await using last = supervise(house)
  assert.equal(healthOf(house, last, id)?.status, 'starting')
  await untilIs(house, last, id, 'unhealthy')
})

test('one that is unhealthy is stopped and started by its restart policy, which is one attempt', async () => {
  await using house = new TestHouse()
  await house.begin()
  await using supervision = supervise(house)
  open(house)
  const { id, startedAtMs } = await running(house, { restartPolicy: SOON })
  await untilIs(house, supervision, id, 'healthy')
  shut(house)
  await until('its restart', () => house.instances.get(id).startedAtMs !== startedAtMs && house.instances.get(id).state === 'Running')
  open(house)
  await untilIs(house, supervision, id, 'healthy')
  await settled(house.instances)
  const { restart } = supervision.of(house.instances.get(id), Date.now())
  assert.equal(restart?.lastReason, 'health_check_failed')
  assert.ok((restart?.attempts ?? 0) >= 1)
  assert.equal(house.instances.get(id).restarts?.owed, undefined)
  await assertInOrder(house)
})

test('one that gets well again before its time has come is left alone; without a policy it always is', async () => {
  await using house = new TestHouse()
  await house.begin()
  await using supervision = supervise(house)
  open(house)
  const { id, startedAtMs } = await running(house, { restartPolicy: { ...SOON, backoffMs: 3_600_000 } })
  await untilIs(house, supervision, id, 'healthy')
  shut(house)
  await untilIs(house, supervision, id, 'unhealthy')
  assert.notEqual(supervision.of(house.instances.get(id), Date.now()).restart?.nextAttemptAtMs, undefined)
  open(house)
  await untilIs(house, supervision, id, 'healthy')
  assert.equal(supervision.of(house.instances.get(id), Date.now()).restart?.nextAttemptAtMs, undefined)
  assert.equal(house.instances.get(id).startedAtMs, startedAtMs)
})

test('after as many restarts as there may be it runs on unhealthy, and says why', async () => {
  await using house = new TestHouse()
  await house.begin()
  await using supervision = supervise(house)
  const { id } = await running(house, { restartPolicy: { ...SOON, maxAttempts: 2 } })
  const restart = () => supervision.of(house.instances.get(id), Date.now()).restart
  await until('its attempts to be over', () => restart()?.blockedReason === 'max_attempts_exceeded')
  assert.deepEqual([restart()?.attempts, house.instances.get(id).state], [2, 'Running'])
  await settled(house.instances)
  await assertInOrder(house)
})

test('a stop by someone during a restart ends it', async () => {
  await using house = new TestHouse({ settings: { STOP_GRACE: '5s' } })
  const instances = await house.begin()
  await using supervision = supervise(house)
  // It ignores its stop signal, so that there is time to be stopped by someone.
  const { id } = await running(house, { cmd: ['stubborn'], restartPolicy: SOON })
  await until('its restart to begin', () => instances.get(id).operation === 'stop')
  await instances.stop(id, { force: true })
  await settled(instances)
  assert.deepEqual(
    [instances.get(id).state, supervision.of(instances.get(id), Date.now()).restart?.blockedReason],
    ['Stopped', 'manual_stop'],
  )
  await assertInOrder(house)
})

for (const crashAt of ['stop:intent', 'stop:ask_guest', 'stop:await_exit', 'stop:settle', 'stop:sweep', 'start:intent', 'start:record']) {
  test(`a daemon that dies at ${crashAt} of an unhealthy one’s restart leaves it to the next to finish`, async () => {
    await using house = new TestHouse()
    const died = Promise.withResolvers<void>()
    await house.begin()
    open(house)
    const { id, startedAtMs } = await running(house, { restartPolicy: SOON })
    await house.end()
    await house.begin({ crashAt, onCrash: () => died.resolve() })
    const supervision = supervise(house)
    await untilIs(house, supervision, id, 'healthy')
    shut(house)
    await died.promise
    house.crash()
    void supervision.close()
    const instances = await house.begin()
    await using _next = supervise(house)
    await until('its restart', () => instances.get(id).startedAtMs !== startedAtMs && instances.get(id).state === 'Running')
    open(house)
    await settled(instances)
    assert.ok((instances.get(id).restarts?.attempts ?? 0) >= 1)
  })
}
