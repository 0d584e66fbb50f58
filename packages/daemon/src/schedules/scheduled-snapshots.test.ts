/** Schedules over the real rooms, with made-up VMs. */
import assert from 'node:assert/strict'
import { mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import { FakeOwnDoings } from '../audit/fake-own-doings.ts'
import { FakeClock } from '../host/fake-clock.ts'
import { pollUntil } from '../host/poll-until.ts'
import { assertInOrder, TEST_OVERLAY, TestHouse } from '../instances/test-house.ts'
import { silentLogger } from '../log.ts'
import { Database } from '../store/database.ts'
import { Schedules, scheduledSnapshots } from './schedules.ts'

const HOUR = 3_600_000

test('scheduled snapshots are of the kind that the state allows, counted apart from others, and found damaged when they are', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { snapshots } = house
  const { id } = await instances.create({ name: 'web', image: 'test', overlayBytes: TEST_OVERLAY })
  await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  const audit = new FakeOwnDoings()
  const door = scheduledSnapshots(instances, snapshots, audit)
  const step = { signal: AbortSignal.timeout(10_000), log: silentLogger }
  await instances.snapshot(id, { kind: 'Standby', name: 'by-hand', tags: {}, isScheduled: false })
  const running = await door.create(id, { kind: 'Standby', name: 'first', tags: { a: 'b' } })
  await instances.standby(id)
  const asleep = await door.create(id, { kind: 'Standby', name: 'second', tags: {} })
  await instances.stop(id)
  const stopped = await door.create(id, { kind: 'Stopped', name: 'third', tags: {} })
  assert.deepEqual(
    door.listScheduled(id).map(({ name }) => name),
    ['third', 'second', 'first'],
  )
  assert.deepEqual([snapshots.get(running.id).isScheduled, snapshots.get(running.id).tags], [true, { a: 'b' }])
  for (const one of [running, asleep, stopped]) assert.equal(await door.verify(one.id, step), 'whole')
  await assert.rejects(door.create(id, { kind: 'Stopped', name: 'third', tags: {} }), { code: 'conflict' })
  const made = [running, asleep, stopped].map((one) => `createSnapshot ${id} done ${one.id}`)
  assert.deepEqual(audit.told, [...made, `createSnapshot ${id} failed`])

  // What cannot be read today may be read tomorrow.
  const [state, layer] = [join(house.paths.snapshotDir(running.id), 'state'), house.paths.disk(String(snapshots.get(stopped.id).disk[0]))]
  for (const [file, spoil, code, one] of [
    [state, () => mkdirSync(state), 'EISDIR', running],
    [join(house.paths.snapshotDir(running.id), 'manifest.json'), (path: string) => mkdirSync(path), 'EISDIR', running],
    [layer, () => symlinkSync(layer, layer), 'ELOOP', stopped],
  ] as const) {
    renameSync(file, `${file}.aside`)
    spoil(file)
    await assert.rejects(door.verify(one.id, step), { code })
    rmSync(file, { recursive: true })
    renameSync(`${file}.aside`, file)
    assert.equal(await door.verify(one.id, step), 'whole')
  }

  writeFileSync(join(house.paths.snapshotDir(running.id), 'state'), 'flipped')
  assert.equal(await door.verify(running.id, step), 'damaged')
  for (const layer of snapshots.get(stopped.id).disk) rmSync(house.paths.disk(layer))
  assert.equal(await door.verify(stopped.id, step), 'damaged')
  const deletedMeanwhile = scheduledSnapshots(
    instances,
    {
      get: (wanted) => snapshots.get(wanted),
      listScheduled: () => [],
      delete: async () => undefined,
      verify: async (wanted) => {
        await snapshots.delete(wanted)
        throw new AppError('snapshot_unusable', 'Its files are gone')
      },
    },
    audit,
  )
  await assert.rejects(deletedMeanwhile.verify(asleep.id, step), { code: 'not_found' })
  await door.delete(stopped.id)
  assert.equal(audit.told.at(-1), `deleteSnapshot ${stopped.id} done`)
  await assert.rejects(door.verify(stopped.id, step), { code: 'not_found' })
})

test('a schedule keeps so many snapshots of a VM, others that were taken by hand aside, and goes with the last of them', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { snapshots } = house
  const clock = new FakeClock(new Date().toISOString())
  using db = Database.open(':memory:')
  let ran: PromiseWithResolvers<unknown> = Promise.withResolvers()
  const schedules = new Schedules({
    db,
    events: { record: ({ data }) => ran.resolve(data) },
    instances,
    snapshots: scheduledSnapshots(instances, snapshots, new FakeOwnDoings()),
    log: silentLogger,
    clock,
  })
  const web = await instances.create({ name: 'web', image: 'test', overlayBytes: TEST_OVERLAY })
  await instances.wait(web.id, { state: 'Running', timeoutMs: 60_000 })
  const byHand = await instances.snapshot(web.id, { kind: 'Standby', name: 'by-hand', tags: {}, isScheduled: false })
  schedules.put(web, { intervalMs: HOUR, retention: { maxCount: 2, maxAgeMs: 100 * HOUR }, namePrefix: 'nightly', metadata: { team: 'a' } })
  for (let n = 0; n < 4; n++) {
    ran = Promise.withResolvers()
    await clock.pass(schedules.get(web).nextRunAtMs - clock.wall())
    await ran.promise
    assert.equal(schedules.get(web).lastError, undefined)
  }
  const made = snapshots.list({ sourceId: web.id, tags: { team: 'a' } })
  assert.deepEqual([made.length, made[0]?.id, made[0]?.kind], [2, schedules.get(web).lastSnapshotId, 'Standby'])
  assert.equal(snapshots.list().length, 3)
  assert.equal(instances.get(web.id).state, 'Running')
  await assertInOrder(house)

  await instances.delete(web.id, { graceful: false })
  await clock.pass(110 * HOUR)
  await pollUntil('the clean-up to end', () => db.prepare('SELECT 1 FROM snapshot_schedules').get() === undefined, {
    signal: AbortSignal.timeout(10_000),
  })
  assert.deepEqual(
    snapshots.list().map(({ id }) => id),
    [byHand.id],
  )
  await snapshots.delete(byHand.id)
  await assertInOrder(house)
  await schedules.close()
})
