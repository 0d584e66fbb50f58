/** Instances whose VMM knows no layers: every disk that a VM comes to is one raw file, whatever has been made of it meanwhile. */
import assert from 'node:assert/strict'
import { open, readFile } from 'node:fs/promises'
import { test } from 'node:test'
import { isPlain } from '../disks/layer.ts'
import type { Instance } from './instance.ts'
import type { Instances } from './instances.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from './test-house.ts'

const makeHouse = (): TestHouse => new TestHouse({ lacks: ['disk_layers', 'fresh_boot', 'disk_hotplug', 'memory_hotplug'] })

async function running(instances: Instances, name = 'a'): Promise<Instance> {
  const { id } = await instances.create({ name, image: 'test', overlayBytes: TEST_OVERLAY })
  await settled(instances)
  return instances.get(id)
}

/** Somewhere behind what mkfs wrote. */
const PLACE = TEST_OVERLAY - 4096

async function write(house: TestHouse, { disk }: Instance, words: string): Promise<void> {
  await using file = await open(house.paths.disk(String(disk[0])), 'r+')
  await file.write(words, PLACE)
}

async function read(house: TestHouse, { disk }: Instance): Promise<string> {
  assert.ok(isPlain(disk), `its disk is ${disk.join(', ')}`)
  const bytes = await readFile(house.paths.disk(String(disk[0])))
  assert.equal(bytes.length, TEST_OVERLAY)
  return bytes.toString('latin1', PLACE, PLACE + 5)
}

test('forks of one that runs, sleeps or is stopped have disks of their own with what was in its', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const source = await running(instances)
  await write(house, source, 'first')
  const [live, other] = await Promise.all([
    instances.fork(source.id, { name: 'live', fromRunning: true }),
    instances.fork(source.id, { name: 'other', fromRunning: true }),
  ])
  // It goes on with the very file that its VM has open.
  assert.deepEqual(instances.get(source.id).disk, source.disk)
  await write(house, source, 'later')
  assert.deepEqual([await read(house, live), await read(house, other)], ['first', 'first'])

  await instances.standby(source.id)
  const asleep = await instances.fork(source.id, { name: 'asleep', target: 'Running' })
  assert.equal(await read(house, asleep), 'later')
  await instances.restore(source.id)
  assert.equal(await read(house, instances.get(source.id)), 'later')

  await instances.stop(source.id)
  const stopped = await instances.fork(source.id, { name: 'stopped', target: 'Running' })
  await settled(instances)
  assert.equal(await read(house, instances.get(stopped.id)), 'later')
  await instances.start(source.id)
  await settled(instances)
  assert.equal(await read(house, instances.get(source.id)), 'later')
  await assertInOrder(house)
})

test('one goes back to a snapshot that was taken of it while it ran, and a fork of that has it too', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const source = await running(instances)
  await write(house, source, 'first')
  const snapshot = await instances.snapshot(source.id, { kind: 'Standby', tags: {}, isScheduled: false })
  await write(house, source, 'later')
  await instances.stop(source.id)
  const back = await instances.restoreSnapshot(source.id, snapshot, 'Running')
  assert.equal(await read(house, back), 'first')
  const fork = await instances.forkSnapshot(snapshot, { name: 'b' })
  assert.equal(await read(house, fork), 'first')
  await assertInOrder(house)
})

test('a boot from the start is refused before anything is made', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  await assert.rejects(instances.create({ name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, freshBoot: true }), {
    code: 'not_supported',
    message: /golden boots/,
  })
  assert.deepEqual(instances.list(), [])
})
