/** When what can be missed is given up, and that nothing else is: on the fake driver, with rows and files of a real house. */
import assert from 'node:assert/strict'
import { existsSync, mkdirSync, readdirSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { GARBAGE_KINDS, type GarbageKind } from '@dormouse/api/garbage.ts'
import { FakeOwnDoings } from '../audit/fake-own-doings.ts'
import { configOf } from '../config/config.ts'
import type { CollectedImages } from '../images/images.ts'
import type { InstanceId } from '../instances/instance.ts'
import type { Instances } from '../instances/instances.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from '../instances/test-house.ts'
import { createId } from '../lib/create-id.ts'
import { silentLogger } from '../log.ts'
import { DiskLayers } from '../store/disk-layers.ts'
import { type CollectGarbage, Garbage, type GarbageUses } from './garbage.ts'

const DAY = 24 * 3_600_000
const NO_IMAGES: CollectedImages = { names: [], digests: [], bytes: 0 }
const no = { count: 0, inUse: 0, bytes: 0, sharedBytes: 0, reclaimableBytes: 0 }
const ALL: CollectGarbage = { kinds: GARBAGE_KINDS, all: true, olderThanMs: 0, dryRun: false }

function garbageOf(house: TestHouse, changes: Partial<GarbageUses> = {}, settings: Readonly<Record<string, string>> = {}): Garbage {
  const { paths } = house
  return new Garbage({
    images: {
      collect: async () => NO_IMAGES,
      collectStrays: async () => ({ names: [], bytes: 0 }),
      diskUsage: async () => ({ images: no, layers: no, rootfs: no }),
    },
    memory: {
      collectBases: async () => {
        await house.memory.sweepBases()
        return { names: [], bytes: 0 }
      },
      collectGoldenBoots: async () => ({ names: [], bytes: 0 }),
      list: async () => [],
    },
    isStale: () => false,
    instances: house.instances,
    snapshots: house.snapshots,
    volumes: house.volumes,
    layers: new DiskLayers(house.db),
    paths,
    config: configOf(new Map(Object.entries({ DATA_DIR: paths.dataDir, RUN_DIR: paths.runDir, ...settings }))),
    log: silentLogger,
    audit: new FakeOwnDoings(),
    ...changes,
  })
}

async function running(instances: Instances, name = 'a'): Promise<InstanceId> {
  const { id } = await instances.create({ name, image: 'test', overlayBytes: TEST_OVERLAY })
  await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  return id
}

test('what no one has written to for a day and no row names goes, in every room; what rows name stays whatever its age', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const id = await running(instances)
  await instances.snapshot(id, { kind: 'Standby', name: 's', tags: {}, isScheduled: false })
  await running(instances, 'asleep').then((other) => instances.standby(other))
  await house.volumes.create({ name: 'data', bytes: TEST_OVERLAY })
  await settled(instances)
  await instances.consolidated()
  const { paths } = house
  const left = [
    `${paths.jwtSecret}.0123456789ab.draft`,
    `${paths.kvmProbe}.0123456789ab.draft`,
    join(paths.imageDraftsDir, 'ab12-rootfs'),
    join(paths.diskTemplatesDir, 'draft-0a'),
    join(paths.pointsDir, createId()),
    join(paths.snapshotsDir, `${createId()}.draft`),
    paths.disk(`${createId()}.raw`),
    join(paths.instancesDir, createId()),
    join(paths.instanceSleepDir(instances.resolve('asleep').id), `${createId()}.draft`),
  ]
  for (const path of left) {
    mkdirSync(join(path, '..'), { recursive: true })
    writeFileSync(path, 'x')
  }
  const now = garbageOf(house)
  assert.deepEqual(await now.collect({ ...ALL, kinds: ['drafts'] }), [{ kind: 'drafts', names: [], bytes: 0 }])
  const later = garbageOf(house, { nowMs: () => Date.now() + DAY + 1000 })
  const [dry] = await later.collect({ ...ALL, kinds: ['drafts'], dryRun: true })
  assert.deepEqual([...(dry?.names ?? [])].sort(), left.map((path) => path.slice(paths.dataDir.length + 1)).sort())
  assert.deepEqual([...((await later.collect({ ...ALL, kinds: ['drafts'], olderThanMs: 2 * DAY }))[0]?.names ?? [])], [])
  assert.deepEqual(await later.collect({ ...ALL, kinds: ['drafts'] }), [dry])
  for (const path of left) assert.ok(!existsSync(path), path)
  assert.ok(readdirSync(paths.diskTemplatesDir).length > 0)
  await assertInOrder(house)
  await instances.restore(instances.resolve('asleep').id)
})

test('logs of the boot before go, when they are old enough; those of the last boot stay', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const id = await running(instances)
  const { app, vmm } = house.paths.instanceLogs(id)
  for (const file of [app, vmm, `${app}.previous`, `${vmm}.previous`]) writeFileSync(file, 'x'.repeat(10_000))
  const later = garbageOf(house, { nowMs: () => Date.now() + 2 * DAY })
  const wanted = { ...ALL, kinds: ['logs' as const] }
  assert.deepEqual((await later.collect({ ...wanted, olderThanMs: 3 * DAY }))[0]?.names, [])
  const logs = (await later.usage()).kinds.find(({ kind }) => kind === 'logs')
  const [done] = await later.collect({ ...wanted, olderThanMs: DAY })
  assert.deepEqual(done?.names, [`${id}/app.log.previous`, `${id}/vmm.log.previous`])
  assert.equal(done?.bytes, logs?.reclaimableBytes)
  assert.ok(existsSync(app) && existsSync(vmm))
})

/** Every step of every deed, with a collection of everything in the middle of it. */
const DEEDS: readonly (readonly [name: string, deed: (instances: Instances, house: TestHouse) => Promise<unknown>])[] = [
  ['a create', (instances) => running(instances, 'b')],
  [
    'a standby and a restore',
    async (instances) => {
      const { id } = instances.resolve('a')
      await instances.standby(id)
      await instances.consolidated()
      await instances.restore(id)
    },
  ],
  [
    'a fork of one that runs',
    (instances) => instances.fork(instances.resolve('a').id, { name: 'b', fromRunning: true, target: 'Running' }),
  ],
  [
    'a fork of one that sleeps',
    async (instances) => {
      const { id } = instances.resolve('a')
      await instances.standby(id)
      await instances.fork(id, { name: 'b', target: 'Running' })
      await instances.restore(id)
    },
  ],
  [
    'a snapshot, a fork of it and its deletion',
    async (instances, house) => {
      const { id } = await instances.snapshot(instances.resolve('a').id, { kind: 'Standby', tags: {}, isScheduled: false })
      await instances.forkSnapshot(house.snapshots.get(id), { name: 'b', target: 'Running' })
      await house.snapshots.delete(id)
    },
  ],
  [
    'a restore of a snapshot',
    async (instances, house) => {
      const { id } = instances.resolve('a')
      const snapshot = await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
      await instances.stop(id)
      await instances.restoreSnapshot(id, house.snapshots.get(snapshot.id), 'Running')
    },
  ],
  ['a delete', async (instances) => instances.delete(instances.resolve('a').id)],
]

for (const [name, deed] of DEEDS) {
  test(`${name}: whatever step a collection of everything comes at, nothing is lost`, async () => {
    await using house = new TestHouse()
    let garbage: Garbage | undefined
    let collections = 0
    const instances = await house.begin({
      atStep: async () => {
        if (garbage === undefined) return
        const done = await garbage.collect(ALL)
        for (const { error } of done) assert.equal(error, undefined)
        collections++
      },
    })
    await running(instances)
    garbage = garbageOf(house)
    await deed(instances, house)
    await settled(instances)
    await assertInOrder(house)
    assert.ok(collections > 2)
    garbage = undefined
  })
}

test('an image is held by a create until its row says so itself, and let go however that ends', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const held: string[][] = []
  // In the tick in which there is a row.
  using _ = house.events.listen(({ kind }) => {
    if (kind === 'instance.created') held.push([...house.heldImages])
  })
  const id = await running(instances)
  assert.deepEqual(held, [[instances.get(id).imageDigest]])
  assert.deepEqual(house.heldImages, [])
  await assert.rejects(instances.create({ name: 'b', image: 'test', platform: 'linux/arm64' }))
  assert.deepEqual(house.heldImages, [])
})

for (const kind of GARBAGE_KINDS) {
  test(`a daemon that dies before it collects ${kind} leaves all in order, and the next one collects them`, async () => {
    await using house = new TestHouse()
    const instances = await house.begin()
    const id = await running(instances)
    await instances.standby(id)
    await instances.consolidated()
    const reached: string[] = []
    const dying = garbageOf(house, {
      crashPoint: async (_, step) => {
        reached.push(step)
        if (step === kind) await new Promise(() => undefined)
      },
    })
    void dying.collect(ALL)
    while (!reached.includes(kind)) await new Promise(setImmediate)
    house.crash()
    const next = await house.begin()
    await settled(next)
    await assertInOrder(house)
    assert.deepEqual(
      (await garbageOf(house).collect(ALL)).map((one) => one.kind),
      GARBAGE_KINDS,
    )
    await next.restore(id)
    await assertInOrder(house)
  })
}

test('a kind that fails says why, and the others go on', async () => {
  await using house = new TestHouse()
  await house.begin()
  const garbage = garbageOf(house, {
    memory: {
      collectBases: async () => ({ names: [], bytes: 0 }),
      collectGoldenBoots: () => Promise.reject(new Error('out of luck')),
      list: async () => [],
    },
  })
  const done = await garbage.collect(ALL)
  assert.deepEqual(
    done.map(({ kind, error }) => [kind, error?.message]),
    GARBAGE_KINDS.map((kind) => [kind, kind === 'golden_boots' ? 'out of luck' : undefined]),
  )
})

test('collections take turns, and a daemon that stops waits for the one under way and begins no other', async () => {
  await using house = new TestHouse()
  await house.begin()
  const [begun, go] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
  let [now, most] = [0, 0]
  const garbage = garbageOf(house, {
    crashPoint: async () => {
      most = Math.max(most, ++now)
      begun.resolve()
      await go.promise
      now--
    },
  })
  const both = Promise.allSettled([garbage.collect(ALL), garbage.collect(ALL)])
  await begun.promise
  const ended = garbage[Symbol.asyncDispose]()
  go.resolve()
  await ended
  const [first, second] = await both
  assert.deepEqual([now, most, first.status, second.status], [0, 1, 'fulfilled', 'rejected'])
  await assert.rejects(garbage.collect(ALL))
})

test('by itself it collects what no one can miss, and images only where that is wanted', async () => {
  await using house = new TestHouse()
  await house.begin()
  const asked: unknown[] = []
  const images = {
    collect: async (wanted: unknown) => {
      asked.push(wanted)
      return NO_IMAGES
    },
    collectStrays: async () => ({ names: [], bytes: 0 }),
    diskUsage: async () => ({ images: no, layers: no, rootfs: no }),
  }
  const kinds = async (settings?: Readonly<Record<string, string>>): Promise<readonly GarbageKind[]> =>
    (await garbageOf(house, { images }, settings).collectRoutinely()).map(({ kind }) => kind)
  const always: GarbageKind[] = ['layers', 'golden_boots', 'memory_bases', 'drafts', 'logs']
  assert.deepEqual(await kinds(), always)
  assert.deepEqual(asked, [])
  const settings = { IMAGE_AUTO_DELETE: 'true', IMAGE_AUTO_DELETE_UNUSED_FOR: '48h', IMAGE_AUTO_DELETE_ALLOWED: 'docker.io/*' }
  assert.deepEqual(await kinds(settings), [...always, 'images'])
  const [wanted] = asked as { which: string; unusedForMs: number; isAllowed: (name: string) => boolean }[]
  assert.deepEqual([wanted?.which, wanted?.unusedForMs], ['unused', 2 * DAY])
  assert.deepEqual([wanted?.isAllowed('docker.io/a'), wanted?.isAllowed('mine/a')], [true, false])
})

test('what goes unasked is told to the audit log: images one by one, of the rest what went of each kind', async () => {
  await using house = new TestHouse()
  await house.begin()
  const audit = new FakeOwnDoings()
  const images = {
    collect: async () => ({ names: ['a:1', 'b:1'], digests: [], bytes: 2 }),
    collectStrays: async () => ({ names: ['x', 'y'], bytes: 3 }),
    diskUsage: async () => ({ images: no, layers: no, rootfs: no }),
  }
  const garbage = garbageOf(house, { images, audit }, { IMAGE_AUTO_DELETE: 'true' })
  await garbage.collect({ ...ALL, kinds: ['images', 'layers'] })
  assert.deepEqual(audit.told, [])
  await garbage.collectRoutinely()
  assert.deepEqual(audit.told, ['prune layers x y done', 'deleteImage a:1 done', 'deleteImage b:1 done'])
})

/** A disk on which each image and golden boot takes 10 bytes. */
function lowDisk(free: number) {
  const disk = { free, images: 3, golden: 30, took: [] as string[] }
  const take = (what: string, bytes: number): void => {
    disk.free += bytes
    disk.took.push(what)
  }
  const uses: Partial<GarbageUses> = {
    freeBytes: async () => disk.free,
    images: {
      collect: async ({ which, atMost }) => {
        if (which !== 'unused' || disk.images === 0) return NO_IMAGES
        assert.equal(atMost, 1)
        disk.images--
        take('image', 10)
        return { names: ['x'], digests: ['x'], bytes: 10 }
      },
      collectStrays: async () => {
        take('layers', 5)
        return { names: ['l'], bytes: 5 }
      },
      diskUsage: async () => ({ images: no, layers: no, rootfs: no }),
    },
    memory: {
      collectBases: async () => ({ names: [], bytes: 0 }),
      collectGoldenBoots: async ({ keepBytes }) => {
        const bytes = Math.max(0, disk.golden - keepBytes)
        disk.golden -= bytes
        take('golden', bytes)
        return { names: ['g'], bytes }
      },
      list: async () => [{ ref: 'golden/a', bytes: disk.golden, isNeeded: false }],
    },
  }
  return { disk, uses }
}

test('on a low disk what costs least goes first, and no more than is needed', async () => {
  await using house = new TestHouse()
  await house.begin()
  const auto = { IMAGE_AUTO_DELETE: 'true' }
  for (const [bytes, took, settings] of [
    [5, ['layers'], auto],
    [20, ['layers', 'golden'], auto],
    [50, ['layers', 'golden', 'image', 'image'], auto],
    [1000, ['layers', 'golden', 'image', 'image', 'image'], auto],
    [1000, ['layers', 'golden'], {}],
    [1000, [], { ...auto, GC: 'false' }],
  ] as const) {
    const { disk, uses } = lowDisk(0)
    await garbageOf(house, uses, settings).makeRoom(bytes)
    assert.deepEqual(disk.took, took, `${bytes}`)
  }
  const { disk, uses } = lowDisk(0)
  await garbageOf(house, uses).makeRoom(20)
  assert.deepEqual([disk.free, disk.golden], [20, 15])
  // Golden boots are of no use to those whose share of the disk is short.
  const short = lowDisk(0)
  await garbageOf(house, short.uses, auto).makeRoom(20, 'images')
  assert.deepEqual(short.disk.took, ['layers', 'image', 'image'])
})

test('who asks for room at the same time shares one collection; a failure is no one’s', async () => {
  await using house = new TestHouse()
  await house.begin()
  const { disk, uses } = lowDisk(0)
  const garbage = garbageOf(house, uses)
  await Promise.all([garbage.makeRoom(5), garbage.makeRoom(5), garbage.makeRoom(5)])
  assert.deepEqual(disk.took, ['layers'])
  const broken = garbageOf(house, { ...uses, freeBytes: () => Promise.reject(new Error('no disk')) })
  await broken.makeRoom(5)
})

test('the watermark: above it nothing is done, below it room is made, and what was in vain is not tried again at once', async () => {
  await using house = new TestHouse()
  await house.begin()
  const settings = { GC_LOW_DISK: '100' }
  const enough = lowDisk(100)
  await garbageOf(house, enough.uses, settings).tendDisk()
  assert.deepEqual(enough.disk.took, [])
  const low = lowDisk(80)
  const garbage = garbageOf(house, low.uses, settings)
  await garbage.tendDisk()
  assert.deepEqual([low.disk.took, low.disk.free], [['layers', 'golden'], 100])
  low.disk.free = 0
  await garbage.tendDisk()
  await garbage.tendDisk()
  assert.deepEqual(low.disk.took, ['layers', 'golden', 'layers', 'golden'])
})

test('what takes how much: real blocks, each once, whatever stands on them', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const id = await running(instances)
  await house.volumes.create({ name: 'data', bytes: TEST_OVERLAY })
  await instances.snapshot(id, { kind: 'Standby', name: 's', tags: {}, isScheduled: false })
  await instances.fork(id, { name: 'b', fromRunning: true, target: 'Running' })
  await instances.standby(id)
  await settled(instances)
  await instances.consolidated()
  // A hole is nothing, and a stranger's file is no one's disk.
  const stray = house.paths.disk(`${createId()}.raw`)
  writeFileSync(stray, '')
  truncateSync(stray, 2 ** 40)
  const garbage = garbageOf(house)
  const report = await garbage.usage()
  const of = (kind: string) => report.kinds.find((one) => one.kind === kind) ?? { ...no, kind, bytes: Number.NaN }
  const files = readdirSync(house.paths.disksDir).map((name) => statSync(join(house.paths.disksDir, name)).blocks * 512)
  const disks = files.reduce((sum, bytes) => sum + bytes, 0)
  // The memory of the snapshot is in its directory.
  const memory = readdirSync(house.paths.snapshotsDir, { recursive: true, withFileTypes: true })
    .map((entry) => statSync(join(entry.parentPath, entry.name)).blocks * 512)
    .reduce((sum, bytes) => sum + bytes, 0)
  const counted = of('overlays').bytes + of('volumes').bytes + of('snapshots').bytes
  assert.ok(counted <= disks + memory && counted >= disks, `${counted} of ${disks} and ${memory}`)
  assert.deepEqual(
    [of('overlays').count, of('volumes').count, of('volumes').inUse, of('snapshots').count, of('deltas').count],
    [2, 1, 0, 1, 1],
  )
  // What the two were before the fork is both's, and the snapshot's.
  assert.ok(of('overlays').sharedBytes > 0)
  assert.deepEqual([of('drafts').count, of('drafts').bytes, of('drafts').reclaimableBytes], [1, 0, 0])
  assert.ok(of('deltas').bytes > 0 && of('logs').bytes > 0 && of('other').bytes > 0)
  for (const { bytes, sharedBytes, reclaimableBytes } of report.kinds) assert.ok(sharedBytes <= bytes && reclaimableBytes <= bytes)
  assert.equal(report.kinds.filter(({ partOf }) => partOf !== undefined).length, 2)
})

test('who asks for the usage at once is told one measurement, and after a collection a new one', async () => {
  await using house = new TestHouse()
  await house.begin()
  let measured = 0
  const garbage = garbageOf(house, {
    memory: {
      collectBases: async () => ({ names: [], bytes: 0 }),
      collectGoldenBoots: async () => ({ names: [], bytes: 0 }),
      list: async () => {
        measured++
        return []
      },
    },
  })
  await Promise.all([garbage.usage(), garbage.usage()])
  await garbage.usage()
  assert.equal(measured, 1)
  await garbage.collect({ ...ALL, dryRun: true })
  await garbage.usage()
  assert.equal(measured, 2)
})
