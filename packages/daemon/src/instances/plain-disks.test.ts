/** Instances whose VMM knows no layers: every disk that a VM comes to is one raw file, whatever has been made of it meanwhile. */
import assert from 'node:assert/strict'
import { open, readFile } from 'node:fs/promises'
import { test } from 'node:test'
import { isPlain } from '../disks/layer.ts'
import type { DiskRole } from '../hypervisors/vm-spec.ts'
import type { Instance, InstanceId } from './instance.ts'
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

const MIB = 2 ** 20
const volumesOf = (house: TestHouse, id: InstanceId) =>
  house.instances.get(id).volumes.map(({ volumeName, disk }) => [volumeName, isPlain(disk)])
/** What the machine that runs has in the slot. */
const behind = (house: TestHouse, id: InstanceId, role: DiskRole): readonly string[] | undefined =>
  house.host
    .running()
    .find(({ spec }) => spec.id === id)
    ?.chains.get(role)

test('volumes that are read, shared or come later are one file each for a VM that has them, and the files go with it', async () => {
  await using house = new TestHouse({ lacks: ['disk_layers', 'fresh_boot'] })
  const instances = await house.begin()
  const { volumes } = house
  for (const name of ['data', 'site']) await volumes.create({ name, bytes: 64 * MIB })
  const before = volumes.demandBytes()
  const site = volumes.resolve('site').disk
  const { id } = await instances.create({
    name: 'a',
    image: 'test',
    overlayBytes: TEST_OVERLAY,
    volumes: [{ volume: 'site', mountPath: '/site', readOnly: true }],
  })
  await settled(instances)
  assert.deepEqual(volumesOf(house, id), [['site', true]])
  assert.notDeepEqual(behind(house, id, 'volume-0'), [house.paths.disk(String(site[0]))])
  // It may become as large as the volume.
  assert.equal(volumes.demandBytes(), before + 64 * MIB)
  await instances.attachVolume(id, { volume: 'data', mountPath: '/data', readOnly: false })
  assert.equal(behind(house, id, 'volume-1')?.length, 1)
  const fork = await instances.fork(id, { name: 'b', fromRunning: true })
  await settled(instances)
  assert.deepEqual(volumesOf(house, fork.id), [
    ['site', true],
    ['data-b', true],
  ])
  for (const name of ['site', 'data']) await instances.detachVolume(id, name)
  // Of several layers where the file system shares no blocks, since another fork stands on it.
  await instances.stop(fork.id)
  await instances.fork(fork.id, { name: 'c' })
  await instances.detachVolume(fork.id, 'data-b')
  await instances.attachVolume(id, { volume: 'data-b', mountPath: '/data', readOnly: false })
  await instances.attachVolume(id, { volume: 'site', mountPath: '/site', readOnly: true })
  for (const role of ['volume-0', 'volume-1'] as const) assert.equal(behind(house, id, role)?.length, 1)
  await assertInOrder(house)
  for (const name of ['a', 'b', 'c']) await instances.delete(instances.resolve(name).id)
  await assertInOrder(house)
  assert.deepEqual(volumes.resolve('site').disk, site)
})

test('one goes back to a snapshot with its volume as it was then, in one file', async () => {
  await using house = new TestHouse({ lacks: ['disk_layers', 'fresh_boot'] })
  const instances = await house.begin()
  await house.volumes.create({ name: 'data', bytes: 64 * MIB })
  const mount = { volume: 'data', mountPath: '/data', readOnly: false }
  const { id } = await instances.create({ name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, volumes: [mount] })
  await settled(instances)
  const writeData = async (words: string): Promise<void> => {
    await using file = await open(house.paths.disk(String(instances.get(id).volumes[0]?.disk[0])), 'r+')
    await file.write(words, 32 * MIB)
  }
  await writeData('first')
  const snapshot = await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
  await writeData('later')
  await instances.stop(id)
  const back = await instances.restoreSnapshot(id, snapshot, 'Running')
  assert.deepEqual(volumesOf(house, id), [['data', true]])
  const file = house.paths.disk(String(back.volumes[0]?.disk[0]))
  assert.deepEqual(behind(house, id, 'volume-0'), [file])
  assert.equal((await readFile(file)).toString('latin1', 32 * MIB, 32 * MIB + 5), 'first')
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

type Deed = (instances: Instances, source: Instance) => Promise<unknown>
const DEEDS: readonly [what: string, before: (instances: Instances, source: Instance) => Promise<unknown>, deed: Deed][] = [
  ['a fork of one that runs', async () => undefined, (instances, { id }) => instances.fork(id, { name: 'b', fromRunning: true })],
  [
    'the restore of one whose disk was shared while it slept',
    async (instances, { id }) => {
      await instances.standby(id)
      await instances.fork(id, { name: 'b' })
    },
    (instances, { id }) => instances.restore(id),
  ],
  [
    'the start of one whose disk was shared while it was stopped',
    async (instances, { id }) => {
      await instances.stop(id)
      await instances.fork(id, { name: 'b' })
    },
    (instances, { id }) => instances.start(id),
  ],
]

/** Around them disks are copied, come to be on record, and are let go of. */
const STEPS = new Set(['pivot', 'resume', 'layer', 'flatten', 'load', 'spawn', 'record'])

for (const [what, before, deed] of DEEDS) {
  test(`a daemon that dies over the disk in ${what} loses nothing of it and leaves nothing`, async () => {
    for (let step = 0; ; step++) {
      await using house = makeHouse()
      const first = await house.begin()
      const source = await running(first)
      await write(house, source, 'first')
      await before(first, source)
      await settled(first)
      await house.end()

      const died = Promise.withResolvers<'died'>()
      let isPrepared = false
      let passed = 0
      const second = await house.begin({
        atStep: async (_operation, name) => {
          if (!isPrepared || !STEPS.has(name) || passed++ !== step) return
          died.resolve('died')
          await new Promise(() => undefined)
        },
      })
      await settled(second)
      isPrepared = true
      const done = deed(second, second.get(source.id)).then(() => 'done' as const)
      done.catch(() => undefined)
      if ((await Promise.race([died.promise, done])) === 'done') {
        assert.ok(step >= 3, 'there were steps to die at')
        return
      }
      house.crash()

      const third = await house.begin()
      await settled(third)
      const { state } = third.get(source.id)
      if (state === 'Standby') await third.restore(source.id)
      if (state === 'Stopped') await third.start(source.id)
      await settled(third)
      assert.equal(third.get(source.id).state, 'Running', `after a death at step ${step}`)
      assert.equal(await read(house, third.get(source.id)), 'first')
      await assertInOrder(house)
    }
  })
}
