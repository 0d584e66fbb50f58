import assert from 'node:assert/strict'
import { existsSync, readdirSync, statSync } from 'node:fs'
import { type TestContext, test } from 'node:test'
import type { Volume } from '../volumes/volumes.ts'
import type { Instance, InstanceId, MountRequest } from './instance.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from './test-house.ts'

const MIB = 2 ** 20
const BYTES = 64 * MIB

async function houseOf(t: TestContext, options: ConstructorParameters<typeof TestHouse>[0] = {}): Promise<TestHouse> {
  const house = new TestHouse(options)
  t.after(() => house[Symbol.asyncDispose]())
  await house.begin()
  return house
}

async function run(house: TestHouse, name: string, volumes: readonly MountRequest[] = []): Promise<Instance> {
  const { id } = await house.instances.create({ name, image: 'test', overlayBytes: TEST_OVERLAY, volumes })
  await settled(house.instances)
  return house.instances.get(id)
}

const make = (house: TestHouse, name = 'data'): Promise<Volume> => house.volumes.create({ name, bytes: BYTES })
const writing = (volume: string, mountPath = '/data'): MountRequest => ({ volume, mountPath, readOnly: false })
const reading = (volume: string, mountPath = '/data'): MountRequest => ({ volume, mountPath, readOnly: true })
const machineOf = (house: TestHouse, id: InstanceId) =>
  house.host.running().find(({ spec }) => spec.id === id) ?? assert.fail(`no VM runs for ${id}`)
const kinds = (house: TestHouse, subject: string): string[] =>
  house.db
    .prepare('SELECT kind FROM events WHERE subject = ? ORDER BY id')
    .all(subject)
    .map(({ kind }) => String(kind))

test('a volume is made, attached at create, kept over stop and start, and given back with its instance', async (t) => {
  const house = await houseOf(t)
  const volume = await make(house)
  const { id } = await run(house, 'web', [writing('data')])
  assert.deepEqual(machineOf(house, id).guest.mounts, new Map([['volume-0', '/data']]))
  assert.deepEqual(machineOf(house, id).chains.get('volume-0'), [house.paths.disk(String(volume.disk[0]))])
  assert.deepEqual(house.volumes.resolve('data').disk, [])
  await house.instances.stop(id)
  await house.instances.start(id)
  await settled(house.instances)
  await assertInOrder(house)
  await assert.rejects(house.volumes.delete('data'), { code: 'conflict', message: /attached to the instance web/ })
  await house.instances.delete(id)
  assert.deepEqual(house.volumes.resolve('data').disk, volume.disk)
  await house.volumes.delete('data')
  await assertInOrder(house)
  assert.deepEqual(kinds(house, volume.id), ['volume.created', 'volume.attached', 'volume.detached', 'volume.deleted'])
})

test('a volume is found by its id, then by its name, as long as only one has that', async (t) => {
  const house = await houseOf(t)
  const first = await house.volumes.create({ name: 'data', bytes: BYTES, id: 'Mine_1.a' })
  assert.equal(house.volumes.resolve('Mine_1.a').id, first.id)
  assert.equal(house.volumes.resolve('data').id, first.id)
  await assert.rejects(house.volumes.create({ name: 'other', bytes: BYTES, id: 'Mine_1.a' }), { code: 'already_exists' })
  const second = await house.volumes.create({ name: 'data', bytes: BYTES, tags: { team: 'a' } })
  assert.throws(() => house.volumes.resolve('data'), { code: 'ambiguous' })
  assert.throws(() => house.volumes.resolve('nothing'), { code: 'not_found' })
  assert.deepEqual(
    house.volumes.list({ tags: { team: 'a' } }).map(({ id }) => id),
    [second.id],
  )
  await assertInOrder(house)
})

test('a detach of which it is not known how far it came is finished by the next daemon', async (t) => {
  const house = await houseOf(t)
  await make(house)
  const { id } = await run(house, 'web', [writing('data')])
  house.host.injectFault('eject_disk')
  await assert.rejects(house.instances.detachVolume(id, 'data'))
  assert.equal(house.instances.get(id).state, 'Unknown')
  await house.end()
  await house.begin()
  await settled(house.instances)
  assert.deepEqual(house.instances.get(id).volumes, [])
  await house.instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  await assertInOrder(house)
  await house.volumes.delete('data')
})

test('one instance writes to a volume, or many read it, and who has it is named', async (t) => {
  const house = await houseOf(t)
  await make(house)
  const writer = await run(house, 'writer', [writing('data')])
  await assert.rejects(run(house, 'second', [writing('data')]), { code: 'conflict', message: /instance writer, which writes/ })
  await assert.rejects(run(house, 'second', [reading('data')]), { code: 'conflict', message: /writer/ })
  await house.instances.delete(writer.id)
  await run(house, 'reader-1', [reading('data')])
  const reader = await run(house, 'reader-2', [reading('data')])
  await assert.rejects(run(house, 'second', [writing('data')]), { code: 'conflict', message: /reader-1/ })
  assert.equal(house.instances.list().length, 2)
  // What is below a reader's layer is the same for both, and a reader's own goes with it.
  const [own = '', ...shared] = house.instances.get(reader.id).volumes[0]?.disk ?? []
  assert.deepEqual(shared, house.volumes.resolve('data').disk)
  await house.instances.delete(reader.id)
  assert.ok(!existsSync(house.paths.disk(own)))
  await assertInOrder(house)
})

test('of those who want a volume at the same moment one has it', async (t) => {
  const house = await houseOf(t)
  await make(house)
  const create = (name: string) => house.instances.create({ name, image: 'test', overlayBytes: TEST_OVERLAY, volumes: [writing('data')] })
  const made = await Promise.allSettled(['a', 'b', 'c'].map(create))
  assert.deepEqual(made.map(({ status }) => status).sort(), ['fulfilled', 'rejected', 'rejected'])
  for (const one of made) if (one.status === 'rejected') assert.equal(one.reason.code, 'conflict')
  await settled(house.instances)
  const [winner] = house.instances.list()
  assert.equal(house.instances.list().length, 1)
  await assertInOrder(house)
  await house.instances.delete(winner?.id as InstanceId)
  const [x, y] = [await run(house, 'x'), await run(house, 'y')]
  const deeds = [x, y].map(({ id }) => house.instances.attachVolume(id, writing('data')))
  const settledDeeds = await Promise.allSettled([...deeds, house.volumes.delete('data')])
  assert.equal(settledDeeds.filter(({ status }) => status === 'fulfilled').length, 1)
  await settled(house.instances)
  await assertInOrder(house)
})

test('volumes that cannot be had are refused before anything is made', async (t) => {
  const house = await houseOf(t)
  await make(house)
  await make(house, 'more')
  const refused: readonly (readonly [code: string, volumes: MountRequest[]])[] = [
    ['not_found', [writing('nothing')]],
    ['conflict', [writing('data'), writing('data', '/again')]],
    ['invalid_path', [writing('data'), writing('more')]],
    ['invalid_path', [writing('data'), writing('more', '/data/inside')]],
    ['invalid_path', [writing('data', '/a/b'), writing('more', '/a')]],
    ...['/', 'data', '/proc/x', '/sys', '/dev/shm', '/etc', '/usr/', '/a/../b', '/a//b', '/./a', '/run/x', '/lib/modules'].map(
      (path) => ['invalid_path', [writing('data', path)]] as [string, MountRequest[]],
    ),
    ['invalid_request', [writing('a', '/1'), writing('b', '/2'), writing('c', '/3'), writing('d', '/4')]],
    ['invalid_overlay_size', [{ ...reading('data'), overlayBytes: BYTES + MIB }]],
  ]
  for (const [code, volumes] of refused) {
    await assert.rejects(
      house.instances.create({ name: 'web', image: 'test', overlayBytes: TEST_OVERLAY, volumes }),
      { code },
      JSON.stringify(volumes),
    )
  }
  assert.deepEqual(house.instances.list(), [])
  await run(house, 'web', [writing('data', '/var/lib/data/')])
  assert.equal(house.instances.resolve('web').volumes[0]?.mountPath, '/var/lib/data')
  await assertInOrder(house)
})

test('a create that fails gives its volumes back as they were', async (t) => {
  const house = await houseOf(t)
  const { disk } = await make(house)
  using _ = house.host.injectFault('start')
  await assert.rejects(run(house, 'web', [writing('data')]))
  assert.deepEqual(house.volumes.resolve('data').disk, disk)
  await assertInOrder(house)
})

for (const state of ['Running', 'Stopped'] as const) {
  test(`a volume is attached to and detached from an instance that is ${state}`, async (t) => {
    const house = await houseOf(t)
    const volume = await make(house)
    const { id } = await run(house, 'web')
    if (state === 'Stopped') await house.instances.stop(id)
    const attached = await house.instances.attachVolume(id, writing('data'))
    assert.deepEqual([attached.state, attached.operation, attached.volumes.length], [state, undefined, 1])
    await assert.rejects(house.instances.attachVolume(id, writing('data', '/twice')), { code: 'conflict' })
    await assertInOrder(house)
    if (state === 'Running') {
      machineOf(house, id).guest.inUse.add('volume-0')
      await assert.rejects(house.instances.detachVolume(id, 'data'), { code: 'in_use', message: /in use by sleep/ })
      assert.equal(house.instances.get(id).operation, undefined)
      await assertInOrder(house)
      machineOf(house, id).guest.inUse.clear()
    }
    const detached = await house.instances.detachVolume(id, 'data')
    assert.deepEqual([detached.state, detached.volumes], [state, []])
    assert.deepEqual(house.volumes.resolve('data').disk, volume.disk)
    await assert.rejects(house.instances.detachVolume(id, 'data'), { code: 'not_found' })
    await assertInOrder(house)
  })
}

test('an attach that fails is taken back; a sleeper takes none', async (t) => {
  const house = await houseOf(t)
  const { disk } = await make(house)
  const { id } = await run(house, 'web')
  using _ = house.host.injectFault('insert_disk')
  await assert.rejects(house.instances.attachVolume(id, writing('data')))
  assert.deepEqual([house.instances.get(id).volumes, house.instances.get(id).state], [[], 'Running'])
  assert.deepEqual(house.volumes.resolve('data').disk, disk)
  await assertInOrder(house)
  await house.instances.standby(id)
  await assert.rejects(house.instances.attachVolume(id, writing('data')), { code: 'invalid_state', message: /standby/ })
})

for (const from of ['Running', 'Standby', 'Stopped'] as const) {
  test(`a fork of an instance that is ${from} has volumes of its own, as they were; what it reads it shares`, async (t) => {
    const house = await houseOf(t)
    const data = await make(house)
    await make(house, 'tools')
    const { id } = await run(house, 'web', [writing('data'), reading('tools', '/tools')])
    if (from === 'Standby') await house.instances.standby(id)
    if (from === 'Stopped') await house.instances.stop(id)
    const child = await house.instances.fork(id, { name: 'copy', fromRunning: true, target: from })
    await settled(house.instances)
    const [copied, shared] = child.volumes
    assert.deepEqual([copied?.volumeName, copied?.mountPath, copied?.slot], ['data-copy', '/data', 0])
    assert.notEqual(copied?.volumeId, data.id)
    assert.equal(shared?.volumeId, house.volumes.resolve('tools').id)
    // Both stand on what was there, and neither writes to it.
    assert.deepEqual(copied?.disk.slice(1), data.disk)
    await assertInOrder(house)
    await house.instances.delete(id)
    await house.volumes.delete(data.id)
    await assertInOrder(house)
    await house.instances.delete(child.id)
    // It is the fork's owner's like any other, and outlives the fork.
    assert.equal(house.volumes.resolve('data-copy').disk.length, from === 'Stopped' ? 2 : copied?.disk.length)
    await house.volumes.delete('data-copy')
    await assertInOrder(house)
  })
}

test('a fork that fails leaves no volume behind', async (t) => {
  const house = await houseOf(t)
  await make(house)
  const { id } = await run(house, 'web', [writing('data')])
  using _ = house.host.injectFault('restore')
  await assert.rejects(house.instances.fork(id, { name: 'copy', fromRunning: true }))
  await settled(house.instances)
  assert.deepEqual(
    house.volumes.list().map(({ name }) => name),
    ['data'],
  )
  await assertInOrder(house)
})

test('a snapshot keeps what its volumes held, and they go back to it with their instance', async (t) => {
  const house = await houseOf(t)
  const volume = await make(house)
  const { id } = await run(house, 'web', [writing('data')])
  const kept = await house.instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
  assert.deepEqual(kept.instance.volumes[0]?.disk, volume.disk)
  await house.instances.stop(id)
  const before = house.instances.get(id).volumes[0]?.disk ?? []
  await house.instances.restoreSnapshot(id, kept, 'Running')
  await settled(house.instances)
  const after = house.instances.get(id).volumes[0]?.disk ?? []
  assert.deepEqual(after.slice(1), volume.disk)
  assert.ok(!existsSync(house.paths.disk(String(before[0]))))
  await assertInOrder(house)

  // Detached meanwhile, it is taken back; attached elsewhere or gone, it is not.
  await house.instances.stop(id)
  await house.instances.detachVolume(id, 'data')
  await house.instances.restoreSnapshot(id, kept, 'Stopped')
  await assertInOrder(house)
  await house.instances.detachVolume(id, 'data')
  const other = await run(house, 'other', [writing('data')])
  await assert.rejects(house.instances.restoreSnapshot(id, kept, 'Stopped'), {
    code: 'conflict',
    message: /attached to the instance other/,
  })
  await house.instances.delete(other.id)
  await house.volumes.delete('data')
  await assert.rejects(house.instances.restoreSnapshot(id, kept, 'Stopped'), { code: 'conflict', message: /was deleted/ })
  const fork = await house.instances.forkSnapshot(kept, { name: 'copy' })
  assert.equal(fork.volumes[0]?.volumeName, 'data-copy')
  await settled(house.instances)
  await assertInOrder(house)
  await house.snapshots.delete(kept.id)
  await assertInOrder(house)
})

test('what a snapshot alone has of a volume goes with it', async (t) => {
  const house = await houseOf(t)
  await make(house)
  const { id } = await run(house, 'web', [writing('data')])
  const first = await house.instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
  await house.instances.stop(id)
  await house.instances.restoreSnapshot(id, first, 'Stopped')
  const second = await house.instances.snapshot(id, { kind: 'Stopped', tags: {}, isScheduled: false })
  await house.instances.delete(id)
  await house.volumes.delete('data')
  for (const kept of [first, second]) {
    await house.snapshots.delete(kept.id)
    await assertInOrder(house)
  }
  assert.deepEqual(readdirSync(house.paths.disksDir), [])
})

test('a volume that a snapshot stands on is written above what the snapshot has', async (t) => {
  const house = await houseOf(t)
  const volume = await make(house)
  const { id } = await run(house, 'web', [reading('data')])
  await house.instances.stop(id)
  await house.instances.snapshot(id, { kind: 'Stopped', tags: {}, isScheduled: false })
  await house.instances.delete(id)
  const writer = await run(house, 'writer', [writing('data')])
  assert.deepEqual(writer.volumes[0]?.disk.slice(1), volume.disk)
  await assertInOrder(house)
})

for (const state of ['Running', 'Stopped', 'detached'] as const) {
  test(`a volume grows while its writer is ${state}, and never shrinks`, async (t) => {
    const house = await houseOf(t)
    const volume = await make(house)
    const { id } = await run(house, 'web', state === 'detached' ? [] : [writing('data')])
    if (state === 'Stopped') await house.instances.stop(id)
    const grown = await house.instances.growVolume('data', 2 * BYTES)
    assert.equal(grown.bytes, 2 * BYTES)
    if (state === 'Running') assert.equal(machineOf(house, id).sizes.get('volume-0'), 2 * BYTES)
    else assert.equal(statSync(house.paths.disk(String(volume.disk[0]))).size, 2 * BYTES)
    await assert.rejects(house.instances.growVolume('data', BYTES), { code: 'invalid_size' })
    await assertInOrder(house)
  })
}

for (const state of ['Running', 'Stopped', 'detached'] as const) {
  test(`a volume whose writer is ${state} does not begin to grow beyond what the host has, nor beyond what a file can be`, async (t) => {
    const house = await houseOf(t)
    const volume = await make(house)
    const { id } = await run(house, 'web', state === 'detached' ? [] : [writing('data')])
    if (state === 'Stopped') await house.instances.stop(id)
    await assert.rejects(house.instances.growVolume('data', 1_000_000 * 2 ** 30), { code: 'insufficient_resources' })
    assert.equal(house.volumes.resolve('data').bytes, BYTES)
    if (state === 'Running') assert.equal(machineOf(house, id).sizes.get('volume-0'), undefined)
    else assert.equal(statSync(house.paths.disk(String(volume.disk[0]))).size, BYTES)
    await assertInOrder(house)
  })
}

test('what readers share does not grow under them', async (t) => {
  const house = await houseOf(t)
  await make(house)
  await run(house, 'reader', [reading('data')])
  await assert.rejects(house.instances.growVolume('data', 2 * BYTES), { code: 'conflict', message: /reader/ })
})

test('volumes count against the disk at their full size', async (t) => {
  const house = await houseOf(t, { settings: { DISK_RATIO: '0.000001' } })
  await assert.rejects(make(house), { code: 'insufficient_resources' })
  assert.deepEqual(house.volumes.list(), [])
  await assertInOrder(house)
})

const CRASHES: readonly (readonly [at: string, what: 'create' | 'attach' | 'detach' | 'delete' | 'grow', left: 'yes' | 'no'])[] = [
  ['volume_create:files', 'create', 'no'],
  ['volume_create:record', 'create', 'no'],
  ['attach_volume:intent', 'attach', 'no'],
  ['attach_volume:layer', 'attach', 'no'],
  ['attach_volume:record', 'attach', 'no'],
  ['attach_volume:insert', 'attach', 'yes'],
  ['attach_volume:mount', 'attach', 'yes'],
  ['attach_volume:settle', 'attach', 'yes'],
  ['detach_volume:intent', 'detach', 'yes'],
  ['detach_volume:unmount', 'detach', 'no'],
  ['detach_volume:eject', 'detach', 'no'],
  ['detach_volume:record', 'detach', 'no'],
  ['detach_volume:sweep', 'detach', 'no'],
  ['volume_delete:record', 'delete', 'yes'],
  ['volume_delete:files', 'delete', 'no'],
  ['volume_grow:files', 'grow', 'no'],
  ['volume_grow:record', 'grow', 'no'],
]

for (const [at, what, left] of CRASHES) {
  test(`the daemon's death at ${at} leaves a volume ${left === 'yes' ? 'with' : 'without'} what was asked for, and nothing over`, async (t) => {
    const house = await houseOf(t)
    if (what !== 'create') await make(house)
    const needsInstance = what === 'attach' || what === 'detach'
    const id = needsInstance ? (await run(house, 'web', what === 'detach' ? [reading('data')] : [])).id : undefined
    await house.end()
    const { promise: died, resolve: onCrash } = Promise.withResolvers<void>()
    await house.begin({ crashAt: at, onCrash })
    await settled(house.instances)
    const asked = {
      create: () => make(house),
      attach: () => house.instances.attachVolume(id as InstanceId, reading('data')),
      detach: () => house.instances.detachVolume(id as InstanceId, 'data'),
      delete: () => house.volumes.delete('data'),
      grow: () => house.instances.growVolume('data', 2 * BYTES),
    }[what]()
    asked.catch(() => undefined)
    await died
    house.crash()
    await house.begin()
    await settled(house.instances)
    await assertInOrder(house)
    if (id !== undefined) assert.equal(house.instances.get(id).volumes.length, left === 'yes' ? 1 : 0)
    else if (what === 'grow') assert.equal(house.volumes.resolve('data').bytes, BYTES)
    else assert.equal(house.volumes.list().length, left === 'yes' ? 1 : 0)
  })
}

test('all volumes together are as large as they may be, and no larger', async (t) => {
  const house = await houseOf(t, { settings: { MAX_TOTAL_VOLUME_STORAGE: '192MB' } })
  const { instances, volumes } = house
  const short = { code: 'insufficient_resources', message: /Volumes may have 192MB together/ }
  await make(house, 'one')
  await make(house, 'two')
  await assert.rejects(volumes.create({ name: 'large', bytes: BYTES + MIB }), {
    ...short,
    message: /64MB is left, and the volume large needs 65MB/,
  })
  const [third, fourth] = await Promise.allSettled([make(house, 'three'), make(house, 'four')])
  assert.deepEqual([third.status, fourth.status].toSorted(), ['fulfilled', 'rejected'])
  await assert.rejects(instances.growVolume('one', BYTES + MIB), short)
  await volumes.delete('two')
  await instances.growVolume('one', BYTES + MIB)
  const { id } = await run(house, 'web', [writing('one')])
  await assert.rejects(instances.growVolume('one', 3 * BYTES), short)
  // What it writes to would be there twice, what it reads is shared.
  await assert.rejects(instances.fork(id, { name: 'twin', fromRunning: true, target: 'Stopped' }), short)
  const reader = await run(house, 'reader', [reading(third.status === 'fulfilled' ? 'three' : 'four')])
  await instances.fork(reader.id, { name: 'twin', fromRunning: true, target: 'Stopped' })
  await settled(instances)
  await assertInOrder(house)
})
