/** Snapshots with real VMs: kept, gone back to, gone on from; and what is damaged, or of another machine, is refused with its reason. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { readdir, readFile, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { assertHostInOrder, type ShownInstance } from './house-in-order.ts'
import { InstanceStory, type ShownSnapshot } from './instance-story.ts'

let story: InstanceStory
before(async () => {
  story = await InstanceStory.begin({ driver: 'qemu-microvm' })
})
after(() => story?.[Symbol.asyncDispose]())

const file = (name: string) => story.sh(name, 'cat /root/file')
const inMemory = (name: string) => story.sh(name, 'cat /dev/shm/file')
const write = (name: string, text: string) => story.sh(name, `echo ${text} | tee /dev/shm/file > /root/file`)

test('memory and disk go back to a snapshot, one that was taken while it ran, slept or was stopped; others go on from it without its source', {
  timeout: 300_000,
}, async () => {
  const instance = await story.run('kept')
  await write('kept', 'one')
  const atOne = await story.look(instance)
  const running = await story.snapshot('kept', { kind: 'Standby', name: 'running' })
  await story.expect('kept', 'Running')
  const wentOn = await story.look(instance)
  assert.deepEqual([wentOn.boot, wentOn.born], [atOne.boot, atOne.born])

  await write('kept', 'two')
  await story.standby('kept')
  const asleep = await story.snapshot('kept', { kind: 'Standby', name: 'asleep' })
  await story.restore('kept')
  await write('kept', 'three')
  await story.daemon.client.post('/instances/kept/stop')
  const stopped = await story.snapshot('kept', { kind: 'Stopped', name: 'stopped' })

  // Each is a boot of its own or one and the same, with the disk of its moment.
  assert.equal((await story.restoreSnapshot('kept', running)).state, 'Running')
  const back = await story.look(instance)
  assert.deepEqual([back.boot, back.born, back.held], [atOne.boot, atOne.born, atOne.born])
  assert.ok(back.count >= atOne.count, `${atOne.count} ${back.count}`)
  assert.equal(await inMemory('kept'), 'one')
  assert.notEqual(back.chance, wentOn.chance)
  assert.equal(await file('kept'), 'one')
  await write('kept', 'four')

  await story.standby('kept')
  assert.equal((await story.restoreSnapshot('kept', asleep, 'Standby')).state, 'Standby')
  await story.restore('kept')
  assert.equal(await file('kept'), 'two')
  assert.equal(await inMemory('kept'), 'two')
  assert.equal((await story.look(instance)).born, atOne.born)

  await story.stop('kept')
  assert.equal((await story.restoreSnapshot('kept', stopped)).state, 'Stopped')
  await story.daemon.client.post('/instances/kept/start?wait=running', {})
  await story.untilItListens(instance)
  assert.equal(await file('kept'), 'three')
  assert.notEqual((await story.look(instance)).boot, atOne.boot)

  await story.remove('kept')
  const listed = await story.daemon.client.get<ShownSnapshot[]>('/snapshots')
  assert.deepEqual(listed.map(({ name }) => name).sort(), ['asleep', 'running', 'stopped'])
  await story.assertInOrder()

  const live = await story.forkSnapshot(running, 'live')
  assert.deepEqual([live.state, await file('live'), await story.sh('live', 'hostname')], ['Running', 'one', 'live'])
  const child = await story.look(live)
  assert.deepEqual([child.boot, child.born], [atOne.boot, atOne.born])
  const booted = await story.forkSnapshot(stopped, 'booted', 'Running')
  await story.untilItListens(booted)
  assert.equal(await file('booted'), 'three')
  assert.equal((await story.forkSnapshot(asleep, 'later', 'Standby')).state, 'Standby')
  // A disk alone is no board's own.
  const body = { name: 'moved', target_state: 'Running', target_hypervisor: 'qemu' }
  const moved = await story.daemon.client.post<ShownInstance>(`/snapshots/${stopped.id}/fork?wait=running`, body)
  assert.deepEqual([moved.state, moved.hypervisor, await file('moved')], ['Running', 'qemu', 'three'])
  await story.remove('moved')

  // What others stand on stays for them.
  for (const { id } of listed) await story.daemon.client.delete(`/snapshots/${id}`)
  assert.deepEqual(await readdir(story.daemon.paths.snapshotsDir), [])
  await write('live', 'five')
  await story.standby('live')
  await story.restartDaemon('kill')
  for (const name of ['live', 'later']) await story.restore(name)
  assert.deepEqual([await file('live'), await file('later'), await story.sh('later', 'hostname')], ['five', 'two', 'later'])
  assert.equal((await story.look(live)).born, atOne.born)
  await story.stop('booted')
  await story.daemon.client.post('/instances/booted/start?wait=running', {})
  assert.equal(await file('booted'), 'three')

  await story.remove('live', 'booted', 'later')
  await assertHostInOrder(story.dir, [])
  assert.deepEqual(await readdir(story.daemon.paths.basesDir), [])
})

interface Envelope {
  sha256: string
  text: string
}

test('a sleeping state of another machine, or one that was damaged, is refused with its reason and stays; a stop leads out', {
  timeout: 300_000,
}, async () => {
  const { paths } = story.daemon
  const instance = await story.run('sleeper')
  // What is only in its page cache goes with its memory.
  await story.sh('sleeper', 'echo kept > /root/file; sync')
  const before = await story.look(instance)
  await story.standby('sleeper')
  await story.untilConsolidated(instance, 1)
  // The second nap has little to say, so that its delta stays beside the base.
  await story.restore('sleeper')
  await story.standby('sleeper')
  const [generation = ''] = await readdir(paths.instanceSleepDir(instance.id))
  const dir = paths.instanceSleep(instance.id, generation)
  assert.deepEqual((await readdir(dir)).sort(), ['delta', 'manifest.json', 'state'])
  const [base = ''] = await readdir(paths.basesDir)

  const refuses = async (why: RegExp): Promise<void> => {
    const { status, code, message } = await story.refused('POST', '/instances/sleeper/restore')
    assert.deepEqual([status, code], [409, 'snapshot_unusable'], message)
    assert.match(message, why)
    await story.expect('sleeper', 'Standby')
  }
  /** `damage` for as long as it is refused. */
  const damaged = async (name: string, damage: (path: string, content: Buffer) => Promise<void>, why: RegExp): Promise<void> => {
    const path = name.startsWith('/') ? name : join(dir, name)
    const whole = await readFile(path)
    await damage(path, whole)
    await refuses(why)
    await writeFile(path, whole)
  }
  const flip =
    (at: number) =>
    async (path: string, content: Buffer): Promise<void> => {
      const bad = Buffer.from(content)
      const where = at < 0 ? content.length + at : at
      bad.writeUInt8(bad.readUInt8(where) ^ 1, where)
      await writeFile(path, bad)
    }
  const cut = async (path: string, content: Buffer): Promise<void> => truncate(path, content.length - 4096)
  const says =
    (change: (facts: Record<string, string | number>) => void) =>
    async (path: string, content: Buffer): Promise<void> => {
      const manifest = JSON.parse((JSON.parse(content.toString()) as Envelope).text)
      change(manifest.facts)
      const text = JSON.stringify(manifest)
      await writeFile(path, JSON.stringify({ sha256: createHash('sha256').update(text).digest('hex'), text }))
    }

  const fact = (name: string, value: string | number, why: RegExp) =>
    damaged(
      'manifest.json',
      says((facts) => Object.assign(facts, { [name]: value })),
      why,
    )
  await fact('vmm', '6.2.0', /taken by QEMU 6\.2\.0, this is QEMU /)
  await fact('kernel', 'f'.repeat(64), /another guest kernel/)
  await fact('cpu', 'Opteron_G1', /another processor \(Opteron_G1, not /)
  await fact('board', 'pc', /on the board pc, not /)
  await fact('vcpus', 2, /had 2 processors, the instance has 1/)
  await fact('fortune', 'fair', /machine has changed since then \(fortune\)/)
  await damaged('manifest.json', flip(-40), /manifest is missing or damaged/)
  await damaged('manifest.json', cut, /manifest is missing or damaged/)
  await damaged('state', flip(1000), /device state is damaged/)
  await damaged('state', cut, /device state is damaged/)
  await damaged('delta', flip(-1), /its memory could not be loaded/)
  await damaged('delta', flip(70), /its memory could not be loaded/)
  await damaged('delta', cut, /its memory could not be loaded/)

  // A base that several stand on is read before it is given to anyone.
  await story.fork('sleeper', { name: 'sharer', target_state: 'Standby' })
  const memory = join(paths.basesDir, base, 'memory')
  await damaged(memory, flip(await written(memory)), /memory that it stands on is damaged/)
  await damaged(memory, async (path, content) => truncate(path, content.length - 4096), /memory that it stands on/)
  await story.assertInOrder()

  // All of it is whole again.
  await story.restore('sleeper')
  const after = await story.look(instance)
  assert.deepEqual([after.born, await file('sleeper')], [before.born, 'kept'])

  // Nothing that is whole is given up for a snapshot that is not.
  const kept = await story.snapshot('sleeper', { kind: 'Standby' })
  await story.standby('sleeper')
  const wounds: [string, typeof cut][] = [
    ['manifest.json', says((facts) => Object.assign(facts, { kernel: 'f'.repeat(64) }))],
    ['state', flip(1000)],
    ['delta', flip(-1)],
  ]
  for (const [name, damage] of wounds) {
    const path = join(paths.snapshotDir(kept.id), name)
    const whole = await readFile(path)
    await damage(path, whole)
    for (const target_state of ['Running', 'Standby']) {
      const refused = await story.refused('POST', `/instances/sleeper/snapshots/${kept.id}/restore`, { target_state })
      assert.equal(refused.code, 'snapshot_unusable', refused.message)
      await story.expect('sleeper', 'Standby')
    }
    assert.equal((await story.refused('POST', `/snapshots/${kept.id}/fork`, { name: 'none' })).code, 'snapshot_unusable')
    await writeFile(path, whole)
  }
  await story.daemon.client.delete(`/snapshots/${kept.id}`)
  await story.restore('sleeper')
  assert.equal((await story.look(instance)).born, before.born)
  await story.assertInOrder()

  // A fork of what is damaged is none; a stop gives up the memory and keeps the disk.
  const [other = ''] = await readdir(paths.instanceSleepDir((await story.get('sharer')).id))
  await writeFile(join(paths.instanceSleep((await story.get('sharer')).id, other), 'state'), 'nonsense')
  const fork = await story.refused('POST', '/instances/sharer/fork', { name: 'none', target_state: 'Running' })
  assert.equal(fork.code, 'snapshot_unusable', fork.message)
  assert.equal((await story.daemon.client.call('GET', '/instances/none')).status, 404)
  assert.equal((await story.refused('POST', '/instances/sharer/restore')).code, 'snapshot_unusable')
  await story.stop('sharer')
  await story.daemon.client.post('/instances/sharer/start?wait=running', {})
  assert.equal(await file('sharer'), 'kept')
  await story.assertInOrder()
  await story.remove('sleeper', 'sharer')
  await assertHostInOrder(story.dir, [])
})

/** Where in a sparse file something is written. */
async function written(path: string): Promise<number> {
  const content = await readFile(path)
  assert.ok((await stat(path)).blocks > 0)
  const at = content.findIndex((byte) => byte !== 0)
  return at
}
