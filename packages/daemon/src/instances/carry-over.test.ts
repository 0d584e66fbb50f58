/** Snapshots that go on with another hypervisor than they were taken with. */
import assert from 'node:assert/strict'
import { open, readFile } from 'node:fs/promises'
import { test } from 'node:test'
import { isPlain } from '../disks/layer.ts'
import type { Snapshot } from '../store/snapshots.ts'
import type { CreateInstance, Instance } from './instance.ts'
import type { Instances } from './instances.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from './test-house.ts'

/** The other takes one raw file for a disk, no more memory once it runs, and two processors. */
const OTHER = 'firecracker'
const makeHouse = (): TestHouse =>
  new TestHouse({ beside: { name: OTHER, lacks: ['disk_layers', 'memory_hotplug', 'disk_limit', 'gpu'], mostVcpus: 2 } })

/** Somewhere behind what mkfs wrote. */
const PLACE = TEST_OVERLAY - 4096

async function write(house: TestHouse, { disk }: Instance, words: string): Promise<void> {
  await using file = await open(house.paths.disk(String(disk[0])), 'r+')
  await file.write(words, PLACE)
}

async function readPlain(house: TestHouse, { disk }: Instance): Promise<string> {
  assert.ok(isPlain(disk), `its disk is ${disk.join(', ')}`)
  const bytes = await readFile(house.paths.disk(String(disk[0])))
  return bytes.toString('latin1', PLACE, PLACE + 5)
}

async function running(instances: Instances, more: Partial<CreateInstance> = {}): Promise<Instance> {
  const { id } = await instances.create({ name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, ...more })
  await settled(instances)
  return instances.get(id)
}

async function keptOf(house: TestHouse, source: Instance, kind: Snapshot['kind']): Promise<Snapshot> {
  if (kind === 'Stopped') await house.instances.stop(source.id)
  return house.instances.snapshot(source.id, { kind, tags: {}, isScheduled: false })
}

test('a fork of the disk alone runs on another hypervisor, with a disk as that takes it', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const source = await running(instances)
  await write(house, source, 'first')
  const kept = await keptOf(house, source, 'Stopped')
  const fork = await instances.forkSnapshot(kept, { name: 'b', target: 'Running' }, OTHER)
  await settled(instances)
  assert.equal(instances.get(fork.id).hypervisor, OTHER)
  assert.equal(await readPlain(house, instances.get(fork.id)), 'first')
  const resting = await instances.forkSnapshot(kept, { name: 'c', target: 'Stopped' }, OTHER)
  await instances.start(resting.id)
  await settled(instances)
  assert.equal(await readPlain(house, instances.get(resting.id)), 'first')
  // What the snapshot is of has not become another.
  assert.equal((await instances.start(source.id)).hypervisor, 'fake')
  await assertInOrder(house)
})

test('an instance goes over to another hypervisor with a snapshot of its own, and back with another', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const source = await running(instances)
  await write(house, source, 'first')
  const asleep = await keptOf(house, source, 'Standby')
  const kept = await keptOf(house, source, 'Stopped')
  const over = await instances.restoreSnapshot(source.id, kept, 'Running', OTHER)
  await settled(instances)
  assert.equal(over.hypervisor, OTHER)
  assert.equal(await readPlain(house, instances.get(source.id)), 'first')
  await instances.standby(source.id)
  await instances.restore(source.id)
  await instances.stop(source.id)
  // With the memory that was kept it is what it was taken with.
  assert.equal((await instances.restoreSnapshot(source.id, asleep, 'Running')).hypervisor, 'fake')
  await assertInOrder(house)
})

test('a daemon that dies while an instance goes over to another hypervisor leaves it where it was, or there', async () => {
  for (const step of ['intent', 'layer', 'flatten', 'spawn', 'record']) {
    await using house = makeHouse()
    const first = await house.begin()
    const source = await running(first)
    await write(house, source, 'first')
    const kept = await keptOf(house, source, 'Stopped')
    await house.end()

    const died = Promise.withResolvers<void>()
    const second = await house.begin({
      atStep: async (operation, name) => {
        if (operation !== 'restore_snapshot' || name !== step) return
        died.resolve()
        await new Promise(() => undefined)
      },
    })
    await settled(second)
    second.restoreSnapshot(source.id, kept, 'Running', OTHER).catch(() => undefined)
    await died.promise
    house.crash()

    const third = await house.begin()
    await settled(third)
    const { state, hypervisor } = third.get(source.id)
    assert.deepEqual({ step, state, hypervisor }, { step, state: 'Stopped', hypervisor: 'fake' })
    await third.restoreSnapshot(source.id, kept, 'Running', OTHER)
    await settled(third)
    assert.equal(await readPlain(house, third.get(source.id)), 'first')
    await assertInOrder(house)
  }
})

test('more processors than it gives are refused before anything is made: to one that is made, changed, or goes over to it', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const refusal = { code: 'not_supported', message: /at most 2 processors, not 3/, hint: /qemu/ }
  const shape = { image: 'test', overlayBytes: TEST_OVERLAY }
  await assert.rejects(instances.create({ name: 'a', ...shape, vcpus: 3, hypervisor: OTHER }), refusal)
  const { id } = await running(instances, { vcpus: 2, hypervisor: OTHER })
  await instances.stop(id)
  await assert.rejects(instances.update(id, { vcpus: 3 }), refusal)
  const larger = await running(instances, { name: 'b', vcpus: 3 })
  const kept = await keptOf(house, larger, 'Stopped')
  await assert.rejects(instances.forkSnapshot(kept, { name: 'c' }, OTHER), refusal)
  await assert.rejects(instances.restoreSnapshot(larger.id, kept, 'Running', OTHER), refusal)
  assert.deepEqual(
    instances
      .list()
      .map(({ name, vcpus }) => [name, vcpus])
      .sort(),
    [
      ['a', 2],
      ['b', 3],
    ],
  )
  await assertInOrder(house)
})

test('what the other cannot do, or could not go on from, is refused before anything is made', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const source = await running(instances, { hotplugBytes: 2 ** 27 })
  const asleep = await keptOf(house, source, 'Standby')
  const kept = await keptOf(house, source, 'Stopped')
  await assert.rejects(instances.forkSnapshot(asleep, { name: 'b' }, OTHER), { code: 'invalid_request', message: /kind Standby/ })
  await assert.rejects(instances.restoreSnapshot(source.id, asleep, 'Running', OTHER), { code: 'invalid_request' })
  await assert.rejects(instances.forkSnapshot(kept, { name: 'b' }, OTHER), { code: 'not_supported', message: /add memory/ })
  await assert.rejects(instances.restoreSnapshot(source.id, kept, 'Stopped', OTHER), { code: 'not_supported', message: /add memory/ })
  await assert.rejects(instances.forkSnapshot(kept, { name: 'b' }, 'vz'), { code: 'not_supported', message: /macOS/ })
  assert.equal((await instances.forkSnapshot(kept, { name: 'b' }, 'fake')).hypervisor, 'fake')
  assert.equal(instances.list().length, 2)
  await assertInOrder(house)
})
