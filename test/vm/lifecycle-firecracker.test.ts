/** Lives of instances as Firecracker's microVMs, through the API. They have no network; their workload is asked from within. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import type { Capabilities } from '@dormouse/api/capabilities.ts'
import { readJournal } from '../../packages/daemon/src/guest/journal.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { whyNoFirecracker } from '../harness/firecracker-driver.ts'
import { agentManners } from '../harness/guest-manners.ts'
import type { ShownInstance } from './house-in-order.ts'
import { InstanceStory, type Look } from './instance-story.ts'

const why = await whyNoFirecracker(agentManners)

if (why === undefined) tellStories()
else test("Firecracker's instances", { skip: why }, () => undefined)

function assertGoesOn(now: Look, then: Look): void {
  assert.deepEqual([now.born, now.held], [then.born, then.born])
  assert.ok(now.count >= then.count, `it counted ${now.count} after ${then.count}`)
}

function tellStories(): void {
  let story: InstanceStory

  before(async () => {
    story = await InstanceStory.begin({
      driver: 'firecracker',
      env: { DORMOUSE_CPU_RATIO: '32', DORMOUSE_MEMORY_RATIO: '4' },
    })
  })
  after(async () => {
    await story?.[Symbol.asyncDispose]()
  })

  const shape = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '64MB', network: { enabled: false } }
  async function run(name: string): Promise<ShownInstance> {
    await story.daemon.client.post('/instances?wait=running', { ...shape, name })
    return story.expect(name, 'Running')
  }
  async function look({ name }: ShownInstance): Promise<Look> {
    const ask = async () => story.sh(name, "printf 'look\\n' | nc 127.0.0.1 80").catch(() => undefined)
    return JSON.parse(await pollUntil(`${name} to answer`, ask, { signal: AbortSignal.timeout(30_000) }, { everyMs: 50 }))
  }
  const fork = (source: string, asked: object): Promise<ShownInstance> => story.daemon.client.post(`/instances/${source}/fork`, asked)

  test('it runs, its disk is kept, and it stops and starts', async () => {
    await run('a')
    assert.equal(await story.sh('a', 'echo kept > /kept; cat /kept; sync'), 'kept')
    await story.daemon.client.post('/instances/a/stop', { force: true })
    await story.expect('a', 'Stopped')
    await story.daemon.client.post('/instances/a/start?wait=running', {})
    await story.expect('a', 'Running')
    assert.equal(await story.sh('a', 'cat /kept'), 'kept')
    await story.remove('a')
  })

  test('naps: the workload goes on, over a daemon that dies as well, and its journal is that of one boot', async () => {
    const instance = await run('naps')
    const first = await look(instance)
    let last = first
    for (let round = 0; round < 4; round++) {
      assert.equal((await story.standby('naps')).state, 'Standby')
      if (round === 1) await story.restartDaemon('kill')
      const awake = await story.restore('naps')
      if (round === 2) await story.restartDaemon('kill')
      assert.deepEqual([awake.state, awake.network], ['Running', instance.network])
      const now = await look(awake)
      assertGoesOn(now, last)
      assert.equal(now.boot, first.boot)
      last = now
    }
    const journal = await readJournal(story.daemon.paths.instanceLogs(instance.id).journal)
    assert.equal(new Set(journal.map(({ boot }) => boot)).size, 1)
    await story.remove('naps')
  })

  test('a fork of one that runs has its memory, and names, addresses and a disk of its own; the source never stops', async () => {
    const source = await run('source')
    await story.sh('source', 'echo first > /told')
    const then = await look(source)
    await fork('source', { name: 'child', from_running: true })
    const child = await story.expect('child', 'Running')
    await story.sh('source', 'echo later > /told')
    assertGoesOn(await look(source), then)
    assertGoesOn(await look(child), then)
    assert.equal(await story.sh('child', 'cat /told'), 'first')
    assert.equal(await story.sh('child', 'hostname'), 'child')
    assert.notEqual(await story.sh('child', 'cat /etc/machine-id'), await story.sh('source', 'cat /etc/machine-id'))

    await story.standby('source')
    await fork('source', { name: 'asleep', target_state: 'Running' })
    const asleep = await story.expect('asleep', 'Running')
    assertGoesOn(await look(asleep), then)
    const awake = await story.restore('source')
    assert.deepEqual([await story.sh('asleep', 'cat /told'), await story.sh('source', 'cat /told')], ['later', 'later'])
    assertGoesOn(await look(awake), then)
    await story.remove('source', 'child', 'asleep')
  })

  test('one goes back to a snapshot of when it ran, memory and disk', async () => {
    const instance = await run('kept')
    await story.sh('kept', 'echo first > /told')
    const then = await look(instance)
    const snapshot = await story.snapshot('kept', { kind: 'Standby' })
    await story.sh('kept', 'echo later > /told')
    await story.stop('kept')
    const back = await story.restoreSnapshot('kept', snapshot)
    assert.equal(back.state, 'Running')
    assertGoesOn(await look(back), then)
    assert.equal(await story.sh('kept', 'cat /told'), 'first')
    await story.remove('kept')
  })

  test('what it cannot do is refused with the reason, and capabilities say what it can', async () => {
    for (const wish of [{ network: {} }, { fresh_boot: true }, { hotplug_size: '128MB' }, { gpu: { profile: 'x' } }]) {
      const { code } = await story.refused('POST', '/instances', { ...shape, name: 'no', ...wish })
      assert.equal(code, 'not_supported', JSON.stringify(wish))
    }
    const { runtimes } = await story.daemon.client.get<Capabilities>('/capabilities')
    const mine = runtimes.find(({ name }) => name === 'firecracker')
    assert.deepEqual([mine?.available, mine?.acceleration, mine?.features], [true, 'kvm', ['fork', 'pause', 'snapshots', 'standby']])
  })

  test('nothing is left of any of them', async () => {
    await story.assertInOrder()
  })
}
