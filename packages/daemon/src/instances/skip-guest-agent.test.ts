/** Instances whose guest no one enters: the agent works for the machine all the same. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { HealthProbe, InstanceId } from './instance.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from './test-house.ts'

const request = { name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, skipGuestAgent: true } as const
const check = (probe: HealthProbe) =>
  ({ probe, intervalMs: 60_000, timeoutMs: 1000, startPeriodMs: 0, failureThreshold: 3, successThreshold: 1 }) as const
const program = check({ kind: 'exec', command: ['true'] })
const port = check({ kind: 'tcp', port: 80 })

async function assertClosed({ instances, log }: TestHouse, id: InstanceId): Promise<void> {
  const step = { signal: AbortSignal.timeout(10_000), log }
  for (const operation of ['exec', 'copy', 'stat'] as const) {
    await assert.rejects(instances.guest(id, step, operation), {
      code: 'invalid_state',
      message: new RegExp(`cannot take ${operation} now: it was made with skip_guest_agent`),
    })
  }
}

test('no one enters it, awake, woken or stopped, nor what is made of it, to another daemon too', async () => {
  await using house = new TestHouse()
  let instances = await house.begin()
  const { id } = await instances.create(request)
  assert.equal((await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })).state, 'Running')
  await assertClosed(house, id)
  await instances.standby(id)
  assert.equal((await instances.restore(id)).state, 'Running')
  await assertClosed(house, id)
  const fork = await instances.fork(id, { name: 'b', fromRunning: true })
  assert.equal(fork.state, 'Running')
  await assertClosed(house, fork.id)
  const kept = await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
  const again = await instances.forkSnapshot(kept, { name: 'c' })
  await assertClosed(house, again.id)
  await house.end()
  instances = await house.begin()
  await settled(instances)
  await assertClosed(house, id)
  await instances.stop(id)
  await assertClosed(house, id)
  assert.equal((await instances.restoreSnapshot(id, kept, 'Running')).state, 'Running')
  await assertClosed(house, id)
  await assertInOrder(house)
})

test('a health check of it may ask a port and run no program', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const refusal = { code: 'invalid_request', message: /`health_check\.exec` .* `skip_guest_agent`/ }
  await assert.rejects(instances.create({ ...request, healthCheck: program }), refusal)
  assert.deepEqual(instances.list(), [])
  const { id } = await instances.create({ ...request, healthCheck: port })
  await settled(instances)
  await assert.rejects(instances.update(id, { healthCheck: program }), refusal)
  assert.deepEqual(instances.get(id).healthCheck, port)
  const other = await instances.create({ ...request, name: 'b', skipGuestAgent: false, healthCheck: program })
  assert.deepEqual(other.healthCheck, program)
  await assertInOrder(house)
})
