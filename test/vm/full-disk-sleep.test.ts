/**
 * A disk that is full when memory is to be written: a nap, a fork and a snapshot are refused in words and the VM runs on, what sleeps sleeps
 * on as it was, and all of it works once there is room. What ends an instance on a full disk: full-disk.test.ts.
 */
import assert from 'node:assert/strict'
import { mkdir, rmdir } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { fillDisk, mountSmallDisk } from '../harness/small-disk.ts'
import { atRest, type ShownInstance } from './house-in-order.ts'
import { InstanceStory, type Look } from './instance-story.ts'

const isRoot = process.geteuid?.() === 0
const LIMIT = { timeout: 180_000, skip: isRoot ? false : 'only root can mount a file system' }
/** More than admission and images want to be free. */
const DISK_BYTES = 2 ** 30
/** Room for a draft and a layer of a disk, not for what the guest has written. */
const LITTLE = 4 << 20
const LZ4 = { compression: { enabled: true, algorithm: 'lz4' } }

let story: InstanceStory
let a: ShownInstance
let seen: Look

before(async () => {
  if (!isRoot) return
  story = await InstanceStory.begin({ driver: 'qemu-microvm', diskBytes: DISK_BYTES, env: { DORMOUSE_DISK_RATIO: '100' } })
  a = await story.run('a', { cmd: ['/bin/wakeful', '80', '16'] })
  seen = await story.look(a)
})
after(() => story?.[Symbol.asyncDispose]())

/** Its workload has neither stopped nor begun anew. */
async function assertGoesOn(): Promise<void> {
  const goesOn = async () => (await story.look(await story.expect('a', 'Running'))).count > seen.count
  await pollUntil('its workload to go on', goesOn, { signal: AbortSignal.timeout(10_000) })
  const now = await story.look(a)
  assert.deepEqual([now.boot, now.born, now.held], [seen.boot, seen.born, seen.held])
  seen = now
}

async function assertRefused(path: string, body: object): Promise<void> {
  const { status, code, message } = await story.refused('POST', path, body)
  assert.deepEqual([status, code], [409, 'insufficient_resources'], message)
  assert.match(message, /the disk of the data directory is full|not enough disk space/i)
  await assertGoesOn()
}

for (const [what, options] of [
  ['there is not a block left', {}],
  ['there is too little for its memory', { leaveBytes: LITTLE }],
] as const) {
  test(`while ${what}, a nap, a fork and a snapshot are refused, and the VM runs on with nothing left over`, LIMIT, async () => {
    {
      await using _full = await fillDisk(story.daemon.paths.dataDir, options)
      await assertRefused('/instances/a/standby', {})
      await assertRefused('/instances/a/snapshots', { kind: 'Standby' })
      await assertRefused('/instances/a/fork', { name: 'b', from_running: true })
      await story.assertInOrder()
    }
    await assertGoesOn()
  })
}

test('a fork that was admitted and then finds no room leaves its source as it was, and no fork', LIMIT, async () => {
  const { pointsDir } = story.daemon.paths
  await rmdir(pointsDir).catch(() => undefined)
  {
    // Only that is full where the memory is written, as when others were quicker.
    await using _small = await mountSmallDisk(pointsDir, LITTLE)
    await assertRefused('/instances/a/fork', { name: 'b', from_running: true })
    assert.deepEqual(
      (await atRest(story.daemon.client)).map(({ name }) => name),
      ['a'],
    )
  }
  await mkdir(pointsDir, { recursive: true })
  await story.assertInOrder()
})

for (const [what, at, body, failure, success] of [
  ['a base', 'consolidate:merge', {}, 'a sleeping state could not be consolidated', 'sleeping state consolidated'],
  ['a compression', 'compress:write', LZ4, 'a sleeping state could not be compressed', 'sleeping state compressed'],
] as const) {
  test(`${what} that finds no room leaves what sleeps as it was, and is made by the next daemon that has some`, LIMIT, async () => {
    const b = await story.fork('a', { name: 'b', from_running: true })
    const before = await story.look(b)
    const hasLogged = async (message: string): Promise<void> => {
      const isThere = async () => (await story.logged(message, b)).length > 0
      await pollUntil(message, isThere, { signal: AbortSignal.timeout(60_000) })
    }
    await story.restartDaemon('stop', { DORMOUSE_CRASH_AT: at })
    // It is asleep, and the daemon dies over what comes next.
    story.daemon.client.post('/instances/b/standby', body).catch(() => undefined)
    assert.equal(await story.daemon.exited, 'SIGKILL')
    {
      await using _full = await fillDisk(story.daemon.paths.dataDir, { leaveBytes: 1 << 19 })
      await story.restartDaemon('kill')
      await hasLogged(failure)
      const states = (await atRest(story.daemon.client)).map(({ name, state }) => `${name} ${state}`)
      assert.deepEqual(states.sort(), ['a Running', 'b Standby'])
      await story.assertInOrder()
    }
    await story.restartDaemon('stop')
    await hasLogged(success)
    await story.restore('b')
    const { born, boot, count } = await story.look(b)
    assert.deepEqual([born, boot], [before.born, before.boot])
    assert.ok(count >= before.count)
    await story.remove('b')
    await story.assertInOrder()
  })
}

test('with room again it naps, wakes, is kept and is forked', LIMIT, async () => {
  await story.standby('a')
  await story.restore('a')
  const kept = await story.snapshot('a', { kind: 'Standby' })
  const b = await story.fork('a', { name: 'b', from_running: true })
  assert.equal((await story.look(b)).born, seen.born)
  await assertGoesOn()
  await story.daemon.client.delete(`/snapshots/${kept.id}`)
  await story.remove('a', 'b')
  await story.assertInOrder()
})
