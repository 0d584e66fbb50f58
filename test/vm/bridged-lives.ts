/** Lives of instances of a driver that needs KVM and a bridge, through the API, in a network namespace of the test's own. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import type { Capabilities } from '@dormouse/api/capabilities.ts'
import { readJournal } from '../../packages/daemon/src/guest/journal.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import type { HypervisorName } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { type Lab, makeLab } from '../harness/bridged-lab.ts'
import type { ShownInstance } from './house-in-order.ts'
import { InstanceStory, type Look } from './instance-story.ts'

export interface BridgedLives {
  readonly driver: HypervisorName
  /** What /capabilities says that it can. */
  readonly features: readonly string[]
  /** Wishes of a create that are refused. */
  readonly refused: readonly object[]
}

/** Written at a MiB a second. */
const RATED_MIB = 14

function assertGoesOn(now: Look, then: Look): void {
  assert.deepEqual([now.born, now.held], [then.born, then.born])
  assert.ok(now.count >= then.count, `it counted ${now.count} after ${then.count}`)
}

const addressOf = ({ network }: ShownInstance): string | undefined => (network as { readonly ip?: string }).ip

export function tellBridgedLives({ driver, features, refused }: BridgedLives): void {
  let lab: Lab
  let story: InstanceStory

  before(async () => {
    lab = await makeLab()
    story = await InstanceStory.begin({
      driver,
      env: { DORMOUSE_NETWORK: 'bridged', DORMOUSE_CPU_RATIO: '32', DORMOUSE_MEMORY_RATIO: '4' },
    })
  })
  after(async () => {
    await story?.[Symbol.asyncDispose]()
    await lab?.[Symbol.asyncDispose]()
  })

  const run = (name: string, more: object = {}): Promise<ShownInstance> => story.run(name, { overlay_size: '64MB', ...more })
  const macIn = (name: string): Promise<string> => story.sh(name, 'cat /sys/class/net/eth0/address')

  test('it runs, its network is that of the API, and it stops and starts', async () => {
    const instance = await run('a')
    assert.equal(await macIn('a'), instance.network.mac)
    assert.match(await story.sh('a', 'ip addr show dev eth0'), new RegExp(`inet ${addressOf(instance)}/`))
    assert.equal(await story.sh('a', 'echo kept > /kept; cat /kept; sync'), 'kept')
    await story.daemon.client.post('/instances/a/stop', {})
    // By the signal that asked it to.
    assert.equal((await story.expect('a', 'Stopped')).exit_code, 143)
    const child = await story.fork('a', { name: 'b', target_state: 'Running' })
    await story.untilItListens(child)
    assert.deepEqual([await story.sh('b', 'cat /kept'), await macIn('b')], ['kept', child.network.mac])
    // Its disk is anyone's, and both have the same image then.
    const { id } = await story.snapshot('a', { kind: 'Stopped' })
    const other = { name: 'c', target_state: 'Running', target_hypervisor: 'qemu' }
    const moved = await story.daemon.client.post<ShownInstance>(`/snapshots/${id}/fork?wait=running`, other)
    assert.deepEqual([moved.hypervisor, await story.sh('c', 'cat /kept')], ['qemu', 'kept'])
    await story.daemon.client.post('/instances/a/start?wait=running', {})
    await story.untilItListens(await story.expect('a', 'Running'))
    assert.equal(await story.sh('a', 'cat /kept'), 'kept')
    await story.remove('a', 'b', 'c')
  })

  test('naps: the workload goes on, over a daemon that dies as well, and its journal is that of one boot', async () => {
    const instance = await run('naps')
    const first = await story.look(instance)
    let last = first
    for (let round = 0; round < 4; round++) {
      assert.equal((await story.standby('naps')).state, 'Standby')
      if (round === 1) await story.restartDaemon('kill')
      const awake = await story.restore('naps')
      if (round === 2) await story.restartDaemon('kill')
      assert.deepEqual([awake.state, awake.network], ['Running', instance.network])
      const now = await story.look(awake)
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
    const then = await story.look(source)
    const child = await story.fork('source', { name: 'child', from_running: true })
    assert.equal(child.state, 'Running')
    await story.sh('source', 'echo later > /told')
    assertGoesOn(await story.look(source), then)
    assertGoesOn(await story.look(child), then)
    assert.equal(await story.sh('child', 'cat /told'), 'first')
    assert.deepEqual([await macIn('child'), await story.sh('child', 'hostname')], [child.network.mac, 'child'])
    assert.notEqual(child.network.mac, source.network.mac)
    assert.notEqual(await story.sh('child', 'cat /etc/machine-id'), await story.sh('source', 'cat /etc/machine-id'))

    await story.standby('source')
    const asleep = await story.fork('source', { name: 'asleep', target_state: 'Running' })
    assertGoesOn(await story.look(asleep), then)
    const awake = await story.restore('source')
    assert.deepEqual([await story.sh('asleep', 'cat /told'), await story.sh('source', 'cat /told')], ['later', 'later'])
    assertGoesOn(await story.look(awake), then)
    await story.remove('source', 'child', 'asleep')
  })

  test('one goes back to a snapshot of when it ran, memory and disk', async () => {
    const instance = await run('kept')
    await story.sh('kept', 'echo first > /told')
    const then = await story.look(instance)
    const snapshot = await story.snapshot('kept', { kind: 'Standby' })
    await story.sh('kept', 'echo later > /told')
    await story.stop('kept')
    const back = await story.restoreSnapshot('kept', snapshot)
    assert.equal(back.state, 'Running')
    assertGoesOn(await story.look(back), then)
    assert.equal(await story.sh('kept', 'cat /told'), 'first')
    const other = await story.forkSnapshot(snapshot, 'other', 'Running')
    assertGoesOn(await story.look(other), then)
    assert.deepEqual([await story.sh('other', 'cat /told; hostname')], ['first\nother'])
    await story.remove('kept', 'other')
  })

  const rated = { skip: !features.includes('disk-io-limit') && 'it has no rate of its disks' }
  test('what its disks move is limited, over a nap too; a VM keeps the rate that it began with', rated, async (t) => {
    await run('rated', { overlay_size: '128MB', disk_io_bps: '1MB/s' })
    // Four seconds of it pass at once, at most.
    const leastMs = (RATED_MIB - 4) * 1000
    const took = async (): Promise<number> => {
      const from = performance.now()
      await story.sh('rated', `dd if=/dev/zero of=/big bs=1M count=${RATED_MIB} && sync && rm /big`)
      const ms = Math.round(performance.now() - from)
      t.diagnostic(`${RATED_MIB} MiB took ${ms} ms`)
      return ms
    }
    assert.ok((await took()) >= leastMs)
    assert.equal((await story.refused('PATCH', '/instances/rated', { disk_io_bps: '1GB/s' })).code, 'invalid_state')
    await story.standby('rated')
    await story.restore('rated')
    assert.ok((await took()) >= leastMs)
    await story.standby('rated')
    await story.daemon.client.patch('/instances/rated', { disk_io_bps: '1GB/s' })
    await story.restore('rated')
    // How quick it is here is no one's promise; it is told.
    await took()
    await story.remove('rated')
  })

  const hotplug = { skip: !features.includes('hotplug-disk') && 'its disks are there from the start, and no others' }
  test('volumes are there from the start, come, grow and go while it runs, and sleep and are copied with it', hotplug, async () => {
    const { client } = story.daemon
    for (const name of ['data', 'more']) await client.post('/volumes', { name, size_gb: 1 })
    await run('vols', { volumes: [{ volume_id: 'data', mount_path: '/data' }] })
    await story.sh('vols', 'echo first > /data/told; sync')
    await client.post('/instances/vols/volumes/more', { mount_path: '/more' })
    await story.sh('vols', 'echo more > /more/told; sync')
    const kib = async () => Number(await story.sh('vols', "df -k /more | tail -n 1 | awk '{ print $2 }'"))
    assert.ok((await kib()) < 1.1 * 2 ** 20)
    await client.patch('/volumes/more', { size_gb: 2 })
    assert.ok((await kib()) > 1.8 * 2 ** 20)
    await story.standby('vols')
    await story.restore('vols')
    // Not synced: it is in the memory that a fork has too.
    assert.equal(await story.sh('vols', 'echo late > /data/late; cat /data/told /more/told'), 'first\nmore')
    await story.fork('vols', { name: 'vols-too', from_running: true })
    await story.sh('vols', 'echo second > /data/told; sync')
    assert.equal(await story.sh('vols-too', 'cat /data/told /data/late; echo other > /data/told; sync'), 'first\nlate')
    await client.delete('/instances/vols/volumes/more')
    assert.equal(await story.sh('vols', 'ls /more; cat /data/told'), 'second')
    await client.post('/instances/vols/volumes/more', { mount_path: '/again', readonly: true })
    assert.match(await story.sh('vols', 'cat /again/told; touch /again/x 2>&1 || true'), /^more\n.*Read-only/)
    for (const name of ['vols', 'vols-too']) await client.post(`/instances/${name}/stop`, {})
    for (const name of ['vols', 'vols-too']) await client.post(`/instances/${name}/start?wait=running`, {})
    assert.equal(await story.sh('vols', 'cat /data/told /again/told; sh -c "echo x > /again/x" 2>/dev/null || echo no'), 'second\nmore\nno')
    assert.equal(await story.sh('vols-too', 'cat /data/told /more/told'), 'other\nmore')
    await story.remove('vols', 'vols-too')
    for (const name of ['data', 'more', 'data-vols-too', 'more-vols-too']) await client.delete(`/volumes/${name}`)
  })

  test('a guest that reboots ends its VM', async () => {
    await run('boots')
    await story.sh('boots', 'reboot -f || echo b > /proc/sysrq-trigger').catch(() => undefined)
    const isOver = async () => (await story.get('boots')).state === 'Stopped'
    await pollUntil('boots to be Stopped', isOver, { signal: AbortSignal.timeout(30_000) }, { everyMs: 50 })
    await story.remove('boots')
  })

  test('one without a network lives as well', async () => {
    const shape = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '64MB', network: { enabled: false } }
    await story.daemon.client.post('/instances?wait=running', { ...shape, name: 'alone' })
    assert.doesNotMatch(await story.sh('alone', 'echo first > /told; ls /sys/class/net'), /eth0/)
    await story.standby('alone')
    await story.restore('alone')
    await story.daemon.client.post('/instances/alone/fork', { name: 'alone-too', from_running: true })
    for (const name of ['alone', 'alone-too']) assert.equal(await story.sh(name, 'cat /told; hostname'), `first\n${name}`)
    await story.remove('alone', 'alone-too')
  })

  test('what it cannot do is refused with the reason, and capabilities say what it can', async () => {
    const shape = { name: 'no', image: 'box', size: '256MB', overlay_size: '64MB' }
    for (const wish of refused) {
      const { code } = await story.refused('POST', '/instances', { ...shape, ...wish })
      assert.equal(code, 'not_supported', JSON.stringify(wish))
    }
    const { runtimes } = await story.daemon.client.get<Capabilities>('/capabilities')
    const mine = runtimes.find(({ name }) => name === driver)
    assert.deepEqual([mine?.available, mine?.acceleration, mine?.features], [true, 'kvm', features])
  })

  test('nothing is left of any of them', async () => {
    await story.assertInOrder()
  })
}
