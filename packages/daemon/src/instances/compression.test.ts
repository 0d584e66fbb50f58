/** Memories that are compressed after the fact, on the fake driver: when, by whose word, and what ends it. test/vm/compression.test.ts has real ones. */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { test } from 'node:test'
import { pollUntil } from '../host/poll-until.ts'
import { readManifest } from '../memory/capture-files.ts'
import type { Snapshot } from '../store/snapshots.ts'
import { chooseCompression, compressionDelayMs } from './compression-choice.ts'
import type { Instance } from './instance.ts'
import type { Instances } from './instances.ts'
import { assertInOrder, TEST_OVERLAY, TestHouse } from './test-house.ts'

const ZSTD = { algorithm: 'zstd', level: 1 } as const
const LZ4 = { algorithm: 'lz4', level: 0 } as const

const DELTA_BYTES = 8 << 20

function makeHouse(settings: Record<string, string> = {}): TestHouse {
  const house = new TestHouse({ settings })
  house.host.deltaBytes = DELTA_BYTES
  return house
}

async function running(instances: Instances, more: object = {}): Promise<Instance> {
  const { id } = await instances.create({ name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, ...more })
  await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  return instances.get(id)
}

const until = <T>(what: string, look: () => T | Promise<T>) =>
  pollUntil(what, look, { signal: AbortSignal.timeout(60_000) }, { everyMs: 1, upToMs: 5 })

/** How its sleeping state is compressed; undefined when it is not, or not yet. */
async function compressionOf(house: TestHouse, id: Instance['id']) {
  const { sleep } = house.instances.get(id)
  return sleep === undefined || sleep.compress !== undefined
    ? undefined
    : (await readManifest(house.paths.instanceSleep(id, sleep.generation))).delta?.compression
}

const settledOf = (house: TestHouse, { id }: Snapshot): Promise<Snapshot> =>
  until('the snapshot to be compressed', () => {
    const snapshot = house.snapshots.get(id)
    return snapshot.compressionState === 'compressing' ? undefined : snapshot
  })

const take = (instances: Instances, id: Instance['id'], compression?: typeof ZSTD | typeof LZ4 | 'off') =>
  instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false, ...(compression === undefined ? {} : { compression }) })

test('the request decides whether and how, else the policy, else the daemon', () => {
  const lz4 = { snapshotPolicy: { compression: { enabled: true, algorithm: 'lz4' }, standby_compression_delay: '1.5s' } }
  const off = { snapshotPolicy: { compression: { enabled: false, algorithm: 'lz4' } } }
  assert.deepEqual(chooseCompression(undefined, {}, undefined), undefined)
  assert.deepEqual(chooseCompression(undefined, {}, ZSTD), ZSTD)
  assert.deepEqual(chooseCompression(undefined, lz4, ZSTD), LZ4)
  assert.deepEqual(chooseCompression(undefined, off, ZSTD), undefined)
  assert.deepEqual(chooseCompression(ZSTD, lz4, undefined), ZSTD)
  assert.deepEqual(chooseCompression('off', lz4, ZSTD), undefined)
  assert.deepEqual([compressionDelayMs(undefined, {}), compressionDelayMs(undefined, lz4), compressionDelayMs(7, lz4)], [0, 1500, 7])
})

test('a sleeper is compressed as it was asked for, and wakes with what it knew', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const { id } = await running(instances)
  const machine = house.host.running()[0]
  assert.ok(machine)
  machine.guest.counter = 5
  const { sleep } = await instances.standby(id, { compression: ZSTD })
  assert.deepEqual(await until('it to be compressed', () => compressionOf(house, id)), ZSTD)
  assert.notEqual(instances.get(id).sleep?.generation, sleep?.generation)
  await until('what there was to be gone', () => readdirSync(house.paths.instanceSleepDir(id)).length === 1)
  assert.equal((await instances.restore(id)).state, 'Running')
  assert.equal(house.host.running()[0]?.guest.counter, 5)
  await assertInOrder(house)
})

test('a policy and the setting of the daemon compress, and a request that says no is heard', async () => {
  await using house = makeHouse({ SNAPSHOT_COMPRESSION: 'lz4' })
  const instances = await house.begin()
  const { id } = await running(instances)
  await instances.standby(id)
  assert.deepEqual(await until('it to be compressed', () => compressionOf(house, id)), LZ4)
  await instances.restore(id)
  await instances.update(id, { snapshotPolicy: { compression: { enabled: true, level: 3 } } })
  await instances.standby(id)
  assert.deepEqual(await until('it to be compressed', () => compressionOf(house, id)), { algorithm: 'zstd', level: 3 })
  await instances.restore(id)
  const { sleep } = await instances.standby(id, { compression: 'off' })
  assert.equal(sleep?.compress, undefined)
  assert.equal((await take(instances, id, 'off')).compressionState, 'none')
  await assertInOrder(house)
})

test('the delay is kept, over a restart too; within it a nap is as any other, and what it stands on then becomes part of what is compressed', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const { id } = await running(instances)
  const policy = { compression: { enabled: true }, standby_compression_delay: '1h' }
  await instances.update(id, { snapshotPolicy: policy })
  const early = await instances.standby(id)
  assert.ok((early.sleep?.compress?.atMs ?? 0) > Date.now() + 3_500_000)
  await instances.consolidated()
  assert.match(instances.get(id).sleep?.base ?? '', /^base\//)
  const awake = await instances.restore(id)
  assert.equal(awake.sleep, undefined)

  const { sleep } = await instances.standby(id, { compressionDelayMs: 300 })
  const dueMs = sleep?.compress?.atMs ?? 0
  await instances.consolidated()
  await house.end()
  const next = await house.begin()
  assert.match(next.get(id).sleep?.base ?? '', /^base\//)
  await until('it to be compressed', () => compressionOf(house, id))
  assert.ok(Date.now() >= dueMs)
  assert.equal(next.get(id).sleep?.base, 'zero')
  await assertInOrder(house)
})

test('a wake ends a compression that is under way, and loses nothing; a failed wake lets it go on', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const { id } = await running(instances)
  house.host.injectFault('compress', 'hang')
  await instances.standby(id, { compression: ZSTD })
  await until('it to be begun', () => readdirSync(house.paths.instanceSleepDir(id)).some((name) => name.endsWith('.draft')))
  assert.equal((await instances.restore(id)).state, 'Running')
  assert.ok(readdirSync(house.paths.instanceSleepDir(id)).every((name) => !name.endsWith('.draft')))
  // What was consumed is cleared away behind the answer.
  await until('its sleeping state to be gone', () => readdirSync(house.paths.instanceSleepDir(id)).length === 0)

  house.host.injectFault('compress', 'hang')
  await instances.standby(id, { compression: ZSTD })
  await until('it to be begun', () => readdirSync(house.paths.instanceSleepDir(id)).some((name) => name.endsWith('.draft')))
  house.host.injectFault('restore')
  await assert.rejects(instances.restore(id))
  assert.deepEqual(await until('it to be compressed', () => compressionOf(house, id)), ZSTD)
  assert.equal((await instances.restore(id)).state, 'Running')
  await assertInOrder(house)
})

for (const deed of ['stop', 'delete', 'fork', 'snapshot', 'restore_snapshot', 'end'] as const) {
  test(`a compression that is under way at a ${deed} is in no one's way, and leaves nothing`, async () => {
    await using house = makeHouse()
    const instances = await house.begin()
    const { id } = await running(instances)
    house.host.injectFault('compress', 'hang')
    await instances.standby(id, { compression: ZSTD })
    await until('it to be begun', () => readdirSync(house.paths.instanceSleepDir(id)).some((name) => name.endsWith('.draft')))
    switch (deed) {
      case 'stop':
        assert.equal((await instances.stop(id)).state, 'Stopped')
        break
      case 'delete':
        await instances.delete(id)
        break
      case 'fork':
        assert.equal((await instances.fork(id, { name: 'b', target: 'Running' })).state, 'Running')
        await instances.stop(id)
        break
      case 'snapshot':
        assert.equal((await take(instances, id, 'off')).compressionState, 'none')
        await instances.stop(id)
        break
      case 'restore_snapshot':
        assert.equal((await instances.restoreSnapshot(id, await take(instances, id, 'off'), 'Running')).state, 'Running')
        break
      case 'end':
        await house.end()
        await house.begin()
        assert.deepEqual(await until('it to be compressed', () => compressionOf(house, id)), ZSTD)
    }
    await assertInOrder(house)
  })
}

test('a snapshot is compressed after it was taken, and says so; what goes on from it goes on from the same', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const { id } = await running(instances)
  const machine = house.host.running()[0]
  assert.ok(machine)
  machine.guest.counter = 9
  const taken = await take(instances, id, LZ4)
  assert.deepEqual([taken.compressionState, taken.compression], ['compressing', LZ4])
  const { compressionState, compressedBytes, uncompressedBytes, generation } = await settledOf(house, taken)
  assert.deepEqual([compressionState, compressedBytes, uncompressedBytes], ['compressed', 1, DELTA_BYTES])
  await until('what there was to be gone', () => readdirSync(house.paths.snapshotsDir).length === 1)
  assert.deepEqual(readdirSync(house.paths.snapshotsDir), [`${taken.id}.${generation}`])
  await house.snapshots.verify(taken.id, { signal: AbortSignal.timeout(60_000), log: house.log })
  const fork = await instances.forkSnapshot(house.snapshots.get(taken.id), { name: 'b' })
  assert.equal(house.host.running().find(({ spec }) => spec.id === fork.id)?.guest.counter, 9)
  await house.snapshots.delete(taken.id)
  assert.deepEqual(readdirSync(house.paths.snapshotsDir), [])
  await assertInOrder(house)
})

test('a snapshot of a compressed sleeper is compressed from the start, or anew where it is asked for otherwise', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const { id } = await running(instances)
  await instances.standby(id, { compression: ZSTD })
  await until('it to be compressed', () => compressionOf(house, id))
  for (const asked of [undefined, 'off', ZSTD] as const) {
    const same = await take(instances, id, asked)
    assert.deepEqual([same.compressionState, same.compression, same.compressedBytes], ['compressed', ZSTD, 1])
  }
  const other = await settledOf(house, await take(instances, id, LZ4))
  assert.deepEqual([other.compressionState, other.compression], ['compressed', LZ4])
  await assertInOrder(house)
})

test('a snapshot that cannot be compressed stays as it is, and says why', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const { id } = await running(instances)
  house.host.injectFault('compress')
  const taken = await take(instances, id, ZSTD)
  const { compressionState, compressionError } = await settledOf(house, taken)
  assert.deepEqual([compressionState, compressionError], ['error', 'Injected fault at compress'])
  assert.deepEqual(readdirSync(house.paths.snapshotsDir), [taken.id])
  await instances.stop(id)
  assert.equal((await instances.restoreSnapshot(id, house.snapshots.get(taken.id), undefined)).state, 'Running')
  await assertInOrder(house)
})

test('whoever goes on from a snapshot while it is compressed finds it whole, and it is replaced when they are done', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const { id } = await running(instances)
  const taken = await take(instances, id, ZSTD)
  {
    using held = house.snapshots.hold(taken.id)
    await until('it to be written', () => readdirSync(house.paths.snapshotsDir).some((name) => /\.[a-z0-9]{24}$/.test(name)))
    await assert.rejects(house.snapshots.delete(taken.id), { code: 'in_use' })
    await instances.forkSnapshot(held.snapshot, { name: 'b' })
    assert.equal(house.snapshots.get(taken.id).compressionState, 'compressing')
  }
  assert.equal((await settledOf(house, taken)).compressionState, 'compressed')
  await assertInOrder(house)
})

test('a snapshot that is deleted while it is compressed is gone, with all that was made of it', async () => {
  await using house = makeHouse()
  const instances = await house.begin()
  const { id } = await running(instances)
  house.host.injectFault('compress', 'hang')
  const taken = await take(instances, id, ZSTD)
  await until('it to be begun', () => readdirSync(house.paths.snapshotsDir).some((name) => name.endsWith('.draft')))
  await house.snapshots.delete(taken.id)
  assert.deepEqual(readdirSync(house.paths.snapshotsDir), [])
  await assertInOrder(house)
})

for (const [at, what] of [
  ['compress:write', 'sleeper'],
  ['compress:publish', 'sleeper'],
  ['compress:record', 'sleeper'],
  ['compress:sweep', 'sleeper'],
  ['compress_snapshot:write', 'snapshot'],
  ['compress_snapshot:publish', 'snapshot'],
  ['compress_snapshot:record', 'snapshot'],
  ['compress_snapshot:sweep', 'snapshot'],
] as const) {
  test(`a daemon that dies at ${at} leaves a ${what} that is whole, and the next one compresses it`, async () => {
    await using house = makeHouse()
    const died = Promise.withResolvers<void>()
    const first = await house.begin({ crashAt: at, onCrash: died.resolve })
    const { id } = await running(first)
    const taken = what === 'snapshot' ? await take(first, id, ZSTD) : undefined
    if (taken === undefined) await first.standby(id, { compression: ZSTD })
    await died.promise
    house.crash()
    const instances = await house.begin()
    if (taken === undefined) {
      assert.deepEqual(await until('it to be compressed', () => compressionOf(house, id)), ZSTD)
      await until('what there was to be gone', () => readdirSync(house.paths.instanceSleepDir(id)).length === 1)
      await assertInOrder(house)
      assert.equal((await instances.restore(id)).state, 'Running')
      return
    }
    assert.equal((await settledOf(house, taken)).compressionState, 'compressed')
    await until('what there was to be gone', () => readdirSync(house.paths.snapshotsDir).length === 1)
    assert.equal((await instances.forkSnapshot(house.snapshots.get(taken.id), { name: 'b' })).state, 'Running')
    await assertInOrder(house)
  })
}
