/** Sleeping and waking with real VMs: what goes on, and that the workload cannot tell. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { readJournal } from '../../packages/daemon/src/guest/journal.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { addSwap, buildPageOut, dropFromCache, swappedKib } from '../harness/paging.ts'
import { scratchDir } from '../harness/scratch.ts'
import { timeFactor } from '../harness/slow-host.ts'
import { InstanceStory, type Look } from './instance-story.ts'

let story: InstanceStory
before(async () => {
  story = await InstanceStory.begin({ driver: 'qemu-microvm' })
})
after(() => story?.[Symbol.asyncDispose]())

/** Each takes a good part of a minute where everything is slow. */
const ROUNDS = timeFactor > 1 ? 10 : 50
const CLOCK_LIMIT_MS = 100

/** The same machine and workload as before, which has gone on. */
function assertGoesOn(now: Look, before: Look): void {
  assert.deepEqual([now.boot, now.born, now.held], [before.boot, before.born, before.born])
  assert.ok(now.count >= before.count, `it counted ${now.count} after ${before.count}`)
}

function assertClockRight({ nowMs, askedMs, heardMs }: Look): void {
  const off = nowMs < askedMs ? nowMs - askedMs : Math.max(0, nowMs - heardMs)
  assert.ok(Math.abs(off) <= CLOCK_LIMIT_MS, `the guest's clock is ${off} ms off`)
}

test(`a counter in RAM goes on over ${ROUNDS} naps: the same boot, open files, timers, listeners; the clock is right each time`, {
  timeout: 400_000,
}, async () => {
  const instance = await story.run('naps')
  const first = await story.look(instance)
  let last = first
  const seen = new Set([first.chance])
  for (let round = 0; round < ROUNDS; round++) {
    const asleep = await story.standby('naps')
    assert.deepEqual([asleep.state, asleep.network], ['Standby', instance.network])
    // Neither who sleeps nor who runs notices that a daemon ends.
    if (round === ROUNDS / 5) await story.restartDaemon('kill')
    const awake = await story.restore('naps')
    if (round === (3 * ROUNDS) / 5) await story.restartDaemon('kill')
    assert.deepEqual([awake.state, awake.network], ['Running', instance.network])
    const now = await story.look(awake)
    assertGoesOn(now, last)
    assertClockRight(now)
    seen.add(now.chance)
    last = now
  }
  assert.equal(seen.size, ROUNDS + 1)
  const journal = await readJournal(story.daemon.paths.instanceLogs(instance.id).journal)
  assert.equal(new Set(journal.map(({ boot }) => boot)).size, 1)
  await pollUntil('the count to go on', async () => (await story.look(instance)).count > last.count, {
    signal: AbortSignal.timeout(10_000),
  })
  await story.assertInOrder()
  await story.remove('naps')
})

test('the board with PCI sleeps, wakes and is forked as well, with two processors', { timeout: 120_000 }, async () => {
  const instance = await story.run('pci', { hypervisor: 'qemu', vcpus: 2 })
  let last = await story.look(instance)
  for (let round = 0; round < 2; round++) {
    await story.standby('pci')
    await story.restore('pci')
    const now = await story.look(instance)
    assertGoesOn(now, last)
    assertClockRight(now)
    last = now
  }
  const fork = await story.fork('pci', { name: 'pci-fork', from_running: true, target_state: 'Running' })
  assertGoesOn(await story.look(fork), last)
  assertGoesOn(await story.look(instance), last)
  await story.assertInOrder()
  await story.remove('pci', 'pci-fork')
})

test('one that wants fresh boots has one at every start, and sleeps, wakes and is forked like any', { timeout: 120_000 }, async () => {
  const instance = await story.run('fresh', { fresh_boot: true })
  const origins = async () => (await story.logged('VM started', instance)).map(({ origin }) => String(origin))
  const before = await story.look(instance)
  await story.standby('fresh')
  await story.restore('fresh')
  const fork = await story.fork('fresh', { name: 'fresh-fork', from_running: true })
  for (const one of [instance, fork]) assertGoesOn(await story.look(one), before)
  await story.stop('fresh')
  await story.daemon.client.post('/instances/fresh/start?wait=running', {})
  assert.deepEqual(await origins(), ['boot', 'boot'])
  assert.equal((await story.daemon.client.get<{ fresh_boot?: boolean }>('/instances/fresh-fork')).fresh_boot, true)
  await story.assertInOrder()
  await story.remove('fresh', 'fresh-fork')
})

test('one without a network sleeps, wakes and is forked', { timeout: 120_000 }, async () => {
  const asked = { name: 'mute', image: 'box', vcpus: 1, size: '256MB', overlay_size: '256MB', network: { enabled: false } }
  await story.daemon.client.post('/instances?wait=running', asked)
  const look = async (name: string): Promise<Look> => JSON.parse(await story.sh(name, 'echo look | nc 127.0.0.1 80'))
  await pollUntil('it to listen', () => look('mute').catch(() => undefined), { signal: AbortSignal.timeout(10_000) })
  const before = await look('mute')
  await story.standby('mute')
  await story.restore('mute')
  assertGoesOn(await look('mute'), before)
  await story.daemon.client.post('/instances/mute/fork', { name: 'mute-fork', from_running: true })
  await story.expect('mute-fork', 'Running')
  assertGoesOn(await look('mute-fork'), before)
  assert.equal(await story.sh('mute-fork', 'hostname'), 'mute-fork')
  await story.assertInOrder()
  await story.remove('mute', 'mute-fork')
})

test('a command that runs over a nap ends: its caller is told why, and it is gone from the guest', { timeout: 60_000 }, async () => {
  const instance = await story.run('interrupted')
  const over = execOverApi(story.daemon.socket, 'interrupted', { command: ['/bin/sleep', '5005'] })
  over.catch(() => undefined)
  const isThere = async () => (await story.sh('interrupted', 'ps | grep "[s]leep 5005" || true')) !== ''
  await pollUntil('the command to run', isThere, { signal: AbortSignal.timeout(10_000) })
  await story.standby('interrupted')
  await assert.rejects(over, /was put into standby/)
  await story.restore('interrupted')
  await pollUntil('it to be gone', async () => !(await isThere()), { signal: AbortSignal.timeout(20_000) })
  await story.look(instance)
  await story.remove('interrupted')
})

test('forks of one sleeping state have each their own chance, names and address, before their workload goes on', {
  timeout: 120_000,
}, async () => {
  const source = await story.run('parent')
  const before = await story.look(source)
  await story.standby('parent')
  const forks = await Promise.all(['one', 'two'].map((name) => story.fork('parent', { name, target_state: 'Running' })))
  const looks = await Promise.all(forks.map((fork) => story.look(fork)))
  for (const look of looks) {
    assertGoesOn(look, before)
    assertClockRight(look)
  }
  const woken = await story.restore('parent')
  looks.push(await story.look(woken))
  assert.equal(new Set([before, ...looks].map(({ chance }) => chance)).size, 4)
  const identities: string[][] = []
  for (const { name, network } of [woken, ...forks]) {
    const told = (
      await story.sh(name, 'hostname; cat /etc/machine-id /sys/class/net/eth0/address; head -c 16 /dev/urandom | xxd -p')
    ).split('\n')
    assert.deepEqual([told[0], told[2]], [name, network.mac])
    identities.push(told)
  }
  for (const column of [0, 1, 2, 3]) assert.equal(new Set(identities.map((told) => told[column])).size, 3)
  await story.assertInOrder()
  await story.remove('parent', 'one', 'two')
})

test('what the host has swapped out of a guest is captured, and one wakes from files that no cache holds', {
  timeout: 120_000,
}, async (t) => {
  if (process.geteuid?.() !== 0) return t.skip('only root can add swap')
  let swap: AsyncDisposable | undefined
  t.after(() => swap?.[Symbol.asyncDispose]())
  const dir = await scratchDir(t)
  try {
    swap = await addSwap(dir, 512)
  } catch (error) {
    return t.skip(`this host takes no swap: ${error instanceof Error ? error.message : String(error)}`)
  }
  const pageOut = await buildPageOut(dir)
  const instance = await story.run('paged', { cmd: ['/bin/wakeful', '80', '64'] })
  await story.ask(instance, 'fill 0 16384 7')
  const [sum, before] = [await story.ask(instance, 'sum'), await story.look(instance)]

  const vmm = await story.vmmOf(instance)
  const isOut = async () => {
    await pageOut(vmm)
    return (await swappedKib(vmm)) > 64 * 1024
  }
  await pollUntil('the guest to be swapped out', isOut, { signal: AbortSignal.timeout(30_000) })
  await story.standby('paged')
  const [nap] = await story.logged('memory captured', instance)
  assert.ok(Number(nap?.bytes) > 64 << 20, `${nap?.bytes} bytes were captured`)

  await story.untilConsolidated(instance, 1)
  const { paths } = story.daemon
  for (const store of [paths.instanceSleepDir(instance.id), paths.basesDir, paths.goldenDir])
    assert.equal(await dropFromCache(store), 0, `${store} is in the page cache still`)
  await story.restore('paged')
  assertGoesOn(await story.look(instance), before)
  assert.equal(await story.ask(instance, 'sum'), sum)

  // Now its memory comes from a file of its own, whose pages the host may drop as well.
  await pageOut(await story.vmmOf(instance))
  assert.equal(await story.ask(instance, 'sum'), sum)
  await story.remove('paged')
})
