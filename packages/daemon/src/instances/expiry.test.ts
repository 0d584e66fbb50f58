/** Times to live, and how long instances have been in which phase. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { Audit } from '../audit/audit.ts'
import { pollUntil } from '../host/poll-until.ts'
import type { Instance } from './instance.ts'
import { durationsAt } from './instance.ts'
import { Reaper } from './reaper.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from './test-house.ts'

const request = { image: 'test', overlayBytes: TEST_OVERLAY }
const HOUR_MS = 3_600_000

async function running(house: TestHouse, name: string, more: object = {}): Promise<Instance> {
  const { id } = await house.instances.create({ ...request, name, ...more })
  await house.instances.wait(id, { state: 'Running', timeoutMs: 10_000 })
  return house.instances.get(id)
}

const until = (what: string, look: () => boolean) => pollUntil(what, look, { signal: AbortSignal.timeout(20_000) })
const names = (house: TestHouse): string[] =>
  house.instances
    .list()
    .map(({ name }) => name)
    .sort()
/** Its time is up, as far as its row says. */
async function expire(house: TestHouse, id: Instance['id']): Promise<void> {
  await house.instances.update(id, { expiresAtMs: Date.now() + 1 })
  await until('its time to be up', () => Date.now() > Number(house.instances.get(id).expiresAtMs))
}

test('what has expired is deleted in any state, and nothing else is', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const asleep = await running(house, 'asleep')
  const stopped = await running(house, 'stopped')
  const awake = await running(house, 'awake')
  await running(house, 'later', { expiresAtMs: Date.now() + HOUR_MS })
  await running(house, 'never')
  await instances.standby(asleep.id)
  await instances.stop(stopped.id)
  for (const { id } of [asleep, stopped, awake]) await expire(house, id)
  instances.deleteExpired()
  await until('them to be gone', () => instances.list().length === 2)
  assert.deepEqual(names(house), ['later', 'never'])
  await assertInOrder(house)
})

test('the reaper tells the audit log of what it deletes, by name and by id', async () => {
  await using house = new TestHouse()
  await house.begin()
  using audit = new Audit({ db: house.db, log: house.log, config: { keep: 100, maxAgeMs: HOUR_MS } })
  const { id } = await running(house, 'short')
  await expire(house, id)
  using _reaper = new Reaper({ instances: house.instances, audit })
  await until('it to be told', () => audit.list({ target: id, limit: 9 })[0]?.outcome.result === 'done')
  const [row, ...rest] = audit.list({ caller: 'system', limit: 9 })
  assert.deepEqual([rest, row?.operation, row?.target, row?.subjectId], [[], 'deleteInstance', { id, name: 'short' }, id])
  await assertInOrder(house)
})

test('one that is busy is left for the next time, and one whose delete hangs or fails keeps no other waiting', async () => {
  await using house = new TestHouse({ settings: { DELETE_GRACE: '1h' } })
  const instances = await house.begin()
  // It does not end when it is asked to, for as long as it is given.
  const stuck = await running(house, 'stuck', { cmd: ['stubborn'] })
  const other = await running(house, 'other', { cmd: ['sleep', '60'] })
  for (const { id } of [stuck, other]) await expire(house, id)
  instances.deleteExpired()
  await until('the other to be gone', () => names(house).length === 1)
  assert.deepEqual([names(house), instances.get(stuck.id).operation], [['stuck'], 'delete'])
  // Looked at again, it is still being deleted, once.
  instances.deleteExpired()
  const late = await running(house, 'late')
  await expire(house, late.id)
  instances.deleteExpired()
  await until('the late one to be gone', () => names(house).length === 1)
  await instances.delete(stuck.id, { graceful: false })
  await settled(instances)
  assert.deepEqual(names(house), [])
  await assertInOrder(house)
})

test('a delete that failed is tried again', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house, 'a')
  await expire(house, id)
  house.host.injectFault('sweep')
  instances.deleteExpired()
  await until('the delete to fail', () => instances.get(id).state === 'Unknown')
  await settled(instances)
  instances.deleteExpired()
  await until('it to be gone', () => instances.list().length === 0)
  await assertInOrder(house)
})

test('what has expired cannot be changed any more, not even to live longer', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house, 'a')
  await expire(house, id)
  await assert.rejects(instances.update(id, { expiresAtMs: Date.now() + HOUR_MS }), { code: 'instance_expired' })
  await assert.rejects(instances.update(id, { expiresAtMs: null }), { code: 'instance_expired' })
  await assert.rejects(instances.update(id, { tags: {} }), { code: 'instance_expired' })
})

test('a fork lives on, and a snapshot that is gone back to leaves the end where it is', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const expiresAtMs = Date.now() + HOUR_MS
  const { id } = await running(house, 'a', { expiresAtMs })
  const fork = await instances.fork(id, { name: 'b', fromRunning: true })
  assert.equal(fork.expiresAtMs, undefined)
  const kept = await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
  assert.equal((await instances.forkSnapshot(kept, { name: 'c' })).expiresAtMs, undefined)
  await instances.update(id, { expiresAtMs: expiresAtMs + HOUR_MS })
  await instances.stop(id)
  const restored = await instances.restoreSnapshot(id, kept, undefined)
  assert.equal(restored.expiresAtMs, expiresAtMs + HOUR_MS)
})

test('one that fell while no daemon was there was Stopped from then on, and ran no longer than that', async () => {
  await using house = new TestHouse()
  await house.begin()
  const { id } = await running(house, 'a')
  house.db.prepare('UPDATE instances SET phase_since_ms = ? WHERE id = ?').run(Date.now() - 2 * HOUR_MS, id)
  await house.end()
  house.host.running()[0]?.guest.exitWorkload(1, 'exited with code 1')
  await until('its VM to be gone', () => house.host.running().length === 0)
  const fellAtMs = Date.now() - HOUR_MS
  const [run] = readdirSync(house.paths.vmsDir)
  const record = join(house.paths.vmsDir, String(run), 'exit.json')
  await until('its exit to be on record', () => existsSync(record) && readFileSync(record, 'utf8').endsWith('}'))
  writeFileSync(record, JSON.stringify({ ...JSON.parse(readFileSync(record, 'utf8')), atMs: fellAtMs }))
  const instances = await house.begin()
  const { state, stoppedAtMs, phases } = instances.get(id)
  assert.deepEqual([state, stoppedAtMs, phases.sinceMs], ['Stopped', fellAtMs, fellAtMs])
  const { running: ranMs = 0, stopped = 0 } = durationsAt(phases, fellAtMs + 5)
  assert.equal(stopped, 5)
  assert.ok(Math.abs(ranMs - HOUR_MS) < 60_000, `it ran for ${ranMs} ms`)
})

test('phases are counted over starts, naps and ends, and begin from nothing with a fork', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house, 'a')
  await instances.standby(id)
  await instances.restore(id)
  await instances.stop(id)
  const { phases } = instances.get(id)
  const seen = Object.keys(durationsAt(phases, Date.now())).sort()
  assert.deepEqual(seen, ['created', 'initializing', 'paused', 'running', 'shutdown', 'standby', 'stopped'])
  const total = Object.values(durationsAt(phases, phases.sinceMs)).reduce((sum, ms) => sum + ms, 0)
  assert.equal(total, phases.sinceMs - instances.get(id).createdAtMs)
  const fork = await instances.fork(id, { name: 'b' })
  assert.deepEqual(Object.keys(durationsAt(fork.phases, Date.now())).sort(), ['created', 'stopped'])
})
