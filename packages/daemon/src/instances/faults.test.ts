/** What fails in the middle, row by row: the failure table of docs/lifecycle.md. For sleep, forks and snapshots: sleep-faults.test.ts. */
import assert from 'node:assert/strict'
import { existsSync, statSync, truncateSync } from 'node:fs'
import { test } from 'node:test'
import type { Instance } from './instance.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from './test-house.ts'

const request = { name: 'a', image: 'test', overlayBytes: TEST_OVERLAY }

async function running(house: TestHouse, more: object = {}): Promise<Instance> {
  const { id } = await house.instances.create({ ...request, ...more })
  await house.instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  return house.instances.get(id)
}

test('a create whose VM does not start leaves nothing, and the name is free again', async () => {
  for (const at of ['start', 'start_late'] as const) {
    await using house = new TestHouse()
    const instances = await house.begin()
    house.host.injectFault(at)
    await assert.rejects(instances.create(request), { code: 'internal_error' })
    assert.deepEqual(instances.list(), [])
    await assertInOrder(house)
    await running(house)
  }
})

test('a start whose VM does not start leaves the instance Stopped, with the end of its last life still told', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house, { cmd: ['exit', '4'] })
  await instances.wait(id, { state: 'Stopped', timeoutMs: 60_000 })
  house.host.injectFault('start')
  await assert.rejects(instances.start(id), { code: 'internal_error' })
  assert.deepEqual([instances.get(id).state, instances.get(id).exitCode], ['Stopped', 4])
  await assertInOrder(house)
})

test('a guest that cannot be reached at first is dialled again', async () => {
  await using house = new TestHouse()
  await house.begin()
  house.host.injectFault('connect_guest')
  await running(house)
  await assertInOrder(house)
})

test('a guest that never answers is ended and says why it is Stopped', async () => {
  await using house = new TestHouse({ settings: { BOOT_LIMIT: '100ms' } })
  const instances = await house.begin()
  house.host.muteGuests = true
  const { id } = await instances.create(request)
  const result = await instances.wait(id, { state: 'Running', timeoutMs: 10_000 })
  assert.deepEqual([result.state, result.timedOut], ['Stopped', false])
  assert.match(result.reason ?? '', /did not|not reached/)
  await assertInOrder(house)
})

test('a workload that cannot be started is Stopped with 127 and words, and its waiter is told', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await instances.create({ ...request, cmd: ['missing'] })
  const result = await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  assert.equal(result.state, 'Stopped')
  assert.match(result.reason ?? '', /ended with code 127, command not found: missing/)
  assert.equal(instances.get(id).exitCode, 127)
  await assertInOrder(house)
})

test('a workload that ignores its stop signal is killed when its grace is over', async () => {
  await using house = new TestHouse({ settings: { STOP_GRACE: '50ms' } })
  const instances = await house.begin()
  const { id } = await running(house, { cmd: ['stubborn'] })
  await instances.stop(id)
  assert.deepEqual([instances.get(id).state, instances.get(id).exitCode], ['Stopped', 137])
  await assertInOrder(house)
})

test('a guest that has lost its agent is stopped by the power button, and by force after that', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const first = await running(house)
  house.host.muteGuests = true
  await instances.stop(first.id)
  assert.equal(instances.get(first.id).state, 'Stopped')
  await assertInOrder(house)
})

test('a VM that cannot be ended makes its instance Unknown with the reason; a second stop succeeds', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  house.host.injectFault('kill')
  await assert.rejects(instances.stop(id, { force: true }))
  assert.equal(instances.get(id).state, 'Unknown')
  assert.match(instances.get(id).stateError ?? '', /stop/)
  await instances.stop(id)
  assert.equal(instances.get(id).state, 'Stopped')
  await assertInOrder(house)
})

test('a delete that fails keeps the record, and a second one finishes it', async () => {
  for (const at of ['kill', 'sweep'] as const) {
    await using house = new TestHouse()
    const instances = await house.begin()
    const { id } = await running(house)
    house.host.injectFault(at)
    await assert.rejects(instances.delete(id, { graceful: false }))
    assert.equal(instances.get(id).state, 'Unknown')
    await instances.delete(id)
    assert.deepEqual(instances.list(), [])
    await assertInOrder(house)
  }
})

test('a run directory that could not be swept is swept at the next start of the daemon', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  house.host.injectFault('sweep')
  await instances.stop(id)
  assert.ok(existsSync(house.paths.vmRunDir(id)))
  await house.end()
  await settled(await house.begin())
  await assertInOrder(house)
})

test('a VM that dies under a running instance leaves it Stopped, its disk kept, its end explained', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  await house.host.running()[0]?.end({ kind: 'signaled', signal: 'SIGSEGV', atMs: Date.now() })
  await instances.wait(id, { state: 'Stopped', timeoutMs: 60_000 })
  assert.deepEqual(
    [instances.get(id).exitCode, instances.get(id).exitMessage],
    [undefined, 'the VM was killed by SIGSEGV: see its vmm log'],
  )
  await settled(instances)
  await assertInOrder(house)
})

test('a VM that cannot be looked at after a restart makes its instance Unknown, and stop makes it Stopped', async () => {
  await using house = new TestHouse()
  await house.begin()
  const { id } = await running(house)
  await house.end()
  house.host.injectFault('reconnect')
  const instances = await house.begin()
  assert.equal(instances.get(id).state, 'Unknown')
  assert.match(instances.get(id).stateError ?? '', /could not be looked at/)
  await instances.stop(id)
  assert.equal(instances.get(id).state, 'Stopped')
  await assertInOrder(house)
})

test('a disk that cannot be grown leaves all that the update named as it was', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  await instances.stop(id)
  const before = instances.get(id)
  const disk = house.paths.disk(String(before.disk[0]))
  // What a guest made of its disk is no file system any more.
  truncateSync(disk, 0)
  truncateSync(disk, TEST_OVERLAY)
  const patch = { name: 'b', env: { A: '1' }, tags: { a: 'b' }, vcpus: 1, network: { ports: [{ hostPort: 0, guestPort: 80 }] } }
  await assert.rejects(instances.update(id, { ...patch, overlayBytes: 2 * TEST_OVERLAY }))
  assert.deepEqual(instances.get(id), before)
  assert.equal(statSync(disk).size, TEST_OVERLAY)
  await settled(instances)
})

test('a rate of its disks that cannot be set leaves all of an update undone', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house, { diskIoBps: 2 ** 24 })
  house.host.injectFault('set_disk_rate')
  await assert.rejects(instances.update(id, { diskIoBps: 2 ** 25, tags: { a: 'b' } }))
  assert.deepEqual([instances.get(id).diskIoBps, instances.get(id).tags], [2 ** 24, {}])
  await assertInOrder(house)
})

test('ports that cannot be opened on a running VM leave its ports as they were', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house, { network: { ports: [{ hostPort: 0, guestPort: 80 }] } })
  const { network } = instances.get(id)
  house.host.injectFault('set_ports')
  await assert.rejects(instances.update(id, { network: { ports: [{ hostPort: 0, guestPort: 81 }] } }))
  assert.deepEqual(instances.get(id).network, network)
  await assertInOrder(house)
})
