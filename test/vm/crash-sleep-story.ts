/**
 * The daemon is killed with SIGKILL at named steps, with a real VM whose workload counts in RAM: what the next daemon makes of it is asked
 * of the workload, which would know of a boot, a loss and a jump back in time, and of the host. One instance lives through all of it.
 */
import assert from 'node:assert/strict'
import { glob, readdir } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { killFamily } from '../../packages/daemon/src/host/process-identity.ts'
import { findShims } from '../../packages/daemon/src/hypervisors/find-shims.ts'
import type { HypervisorName } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { timeFactor } from '../harness/slow-host.ts'
import { atRest, type ShownInstance } from './house-in-order.ts'
import { InstanceStory, type Look, type ShownSnapshot } from './instance-story.ts'

type Rest = 'Running' | 'Standby' | 'Stopped'
type Deed = 'standby' | 'standbyWide' | 'restore' | 'fork' | 'snapshot' | 'goBack' | 'stop' | 'start' | 'create' | 'attach' | 'detach'

export interface Death {
  readonly at: string
  readonly from: Rest
  readonly deed: Deed
  readonly ends: Rest
  /** The fork is there, whole. */
  readonly hasFork?: true
  /** It is where the snapshot was. */
  readonly isBack?: true
  /** Whether it has its volume, before and after. */
  readonly attached?: readonly [before: boolean, after: boolean]
}

/** One for each of the steps, which are named in one text. */
export const each = (operation: string, steps: string, the: Omit<Death, 'at'>): Death[] =>
  steps.split(' ').map((step) => ({ at: `${operation}:${step}`, ...the }))

export interface Deaths {
  readonly hypervisor: HypervisorName
  readonly deaths: readonly Death[]
}

export interface DeathsOptions {
  readonly driver: HypervisorName
  readonly env?: Readonly<Record<string, string>>
  /** Told one after the other, each with an instance of its own. */
  readonly parts: readonly Deaths[]
  /** At no step in particular, too, while files are being written. */
  readonly inBetween?: boolean
}

const HELD_MIB = 16
/** Enough for the nap to be worth a base of its own. */
const WIDE_PAGES = 2048
const VOLUME = '/instances/a/volumes/data'

export function tellDeaths({ driver, env = {}, parts, inBetween = false }: DeathsOptions): void {
  let story: InstanceStory
  /** What `a` said last. */
  let seen: Look
  /** A moment of `a` that it can be taken back to. */
  let kept: ShownSnapshot | undefined
  /** The sum of what is on its volume. */
  let written: string

  before(async () => {
    story = await InstanceStory.begin({ driver, env })
  })
  after(() => story?.[Symbol.asyncDispose]())

  const shape = (hypervisor: HypervisorName) => ({ hypervisor, cmd: ['/bin/wakeful', '80', `${HELD_MIB}`] })
  const deeds: Readonly<Record<Deed, (hypervisor: HypervisorName) => Promise<unknown>>> = {
    standby: () => story.standby('a'),
    standbyWide: async () => {
      await story.ask(await story.get('a'), `fill 0 ${WIDE_PAGES} ${Date.now()}`)
      await story.standby('a')
    },
    restore: () => story.restore('a'),
    fork: () => story.fork('a', { name: 'b', from_running: true }),
    snapshot: () => story.snapshot('a', { kind: 'Standby' }),
    goBack: () => story.restoreSnapshot('a', kept as ShownSnapshot, 'Running'),
    stop: () => story.stop('a'),
    start: () => story.daemon.client.post('/instances/a/start', {}),
    create: (hypervisor) => story.run('b', shape(hypervisor)),
    attach: () => story.daemon.client.post(VOLUME, { mount_path: '/data' }),
    detach: () => story.daemon.client.delete(VOLUME),
  }

  for (const { hypervisor, deaths } of parts) {
    test(`on ${hypervisor}, an instance that counts in RAM is made and kept`, { timeout: 180_000 }, () => begin(hypervisor))

    for (const { at, from, deed, ends, hasFork = false, isBack = false, attached } of deaths) {
      const what = isBack ? 'back where its snapshot was' : ends
      // One that was stopped, or is started, begins to count anew.
      const isAnew = ends === 'Stopped' || from === 'Stopped'
      const how = isAnew ? 'it can be started' : 'its memory is whole'
      test(`killed at ${at} (${from}, ${hypervisor}): it is ${what}, ${how}, ${hasFork ? 'and so is its fork' : 'and nothing is left over'}`, {
        timeout: 120_000,
      }, async () => {
        await bringTo(from)
        if (attached !== undefined) await beginVolume(attached[0])
        await dieAt(at, () => deeds[deed](hypervisor))
        const instances = await atRest(story.daemon.client)
        assert.deepEqual(
          Object.fromEntries(instances.map(({ name, state }) => [name, state])),
          hasFork ? { a: ends, b: 'Running' } : { a: ends },
        )
        await story.assertInOrder()
        if (attached !== undefined) await endVolume(attached[1])
        if (hasFork) await assertFork()
        if (isBack) seen = { ...seen, count: 0 }
        if (isAnew) await startAnew()
        else await assertGoesOn()
      })
    }

    test(`killed while it wakes, and its VM with it, it is Stopped and says that its memory was lost (${hypervisor})`, {
      timeout: 120_000,
    }, async () => {
      await bringTo('Standby')
      const { id } = await story.get('a')
      await dieAt('restore:wake', deeds.restore.bind(undefined, hypervisor), async () => {
        const [shim] = await findShims(`${story.dir}/run/vm/${id.slice(0, 12)}`)
        assert.ok(shim)
        await killFamily(shim, { signal: AbortSignal.timeout(10_000) })
      })
      const [a] = await atRest(story.daemon.client)
      assert.equal(a?.state, 'Stopped')
      assert.match((a as ShownInstance).exit_message ?? '', /its memory was lost while it woke/)
      await story.assertInOrder()
      await story.daemon.client.post('/instances/a/start', {})
      await story.daemon.client.get('/instances/a/wait?state=Running&timeout=60s')
      await story.untilItListens(a as ShownInstance)
    })
  }

  const drafts = [
    ['its memory is written', 'data/instances/*/sleep/*.draft/delta'],
    ['a base is made of it', 'data/memory/*.draft/memory'],
  ] as const
  for (const [what, draft] of inBetween ? drafts : []) {
    test(`killed while ${what}, at no step in particular, it is awake or asleep and its memory whole`, { timeout: 120_000 }, async () => {
      await bringTo('Running')
      const { daemon } = story
      deeds.standbyWide(driver).catch(() => undefined)
      const isThen = async () => (await Array.fromAsync(glob(draft, { cwd: story.dir }))).length > 0
      await pollUntil(what, isThen, { signal: AbortSignal.timeout(30_000) }, { everyMs: 1, upToMs: 1 })
      await daemon.kill()
      await story.restartDaemon('kill')
      const [a] = await atRest(story.daemon.client)
      assert.match(a?.state ?? '', /^(Running|Standby)$/)
      await story.assertInOrder()
      await assertGoesOn()
    })
  }

  test('when all is removed, nothing is left', async () => {
    await story.daemon.client.delete(`/snapshots/${kept?.id}`)
    await story.remove('a')
    await story.assertInOrder()
    assert.deepEqual(await readdir(story.daemon.paths.basesDir), [])
  })

  async function begin(hypervisor: HypervisorName): Promise<void> {
    if (kept !== undefined) {
      await story.daemon.client.delete(`/snapshots/${kept.id}`)
      await story.remove('a')
    }
    const a = await story.run('a', shape(hypervisor))
    seen = await story.look(a)
    kept = await story.snapshot('a', { kind: 'Standby' })
  }

  async function bringTo(state: Rest): Promise<void> {
    const a = await story.get('a')
    if (a.state === 'Standby') await story.restore('a')
    seen = await story.look(await story.expect('a', 'Running'))
    if (state === 'Standby') await story.standby('a')
    if (state === 'Stopped') await story.stop('a')
  }

  /** It has neither booted nor lost a moment. */
  async function assertGoesOn(): Promise<void> {
    seen = await story.goesOn('a', seen)
  }

  async function startAnew(): Promise<void> {
    if ((await story.get('a')).state === 'Stopped') await story.daemon.client.post('/instances/a/start?wait=running', {})
    const a = await story.expect('a', 'Running')
    await story.untilItListens(a)
    assert.notEqual((await story.look(a)).born, seen.born)
  }

  async function beginVolume(isAttached: boolean): Promise<void> {
    await story.daemon.client.post('/volumes', { name: 'data', size_gb: 1 })
    await deeds.attach(driver)
    written = await story.sh('a', 'dd if=/dev/urandom of=/data/file bs=64k count=16 2>/dev/null && sha256sum < /data/file')
    if (!isAttached) await deeds.detach(driver)
  }

  /** It is what its guest says, and all that was written is there. */
  async function endVolume(isAttached: boolean): Promise<void> {
    const isThere = async () => (await story.daemon.client.get<{ volumes: readonly unknown[] }>('/instances/a')).volumes.length > 0
    const isOver = async () => (await isThere()) === isAttached
    await pollUntil('the recovery to be over', isOver, { signal: AbortSignal.timeout(30_000) }, { everyMs: 50 })
    assert.equal(await story.sh('a', 'grep -c " /data " /proc/mounts || true'), isAttached ? '1' : '0')
    if (!isAttached) await deeds.attach(driver)
    assert.equal(await story.sh('a', 'sha256sum < /data/file'), written)
    await deeds.detach(driver)
    await story.daemon.client.delete('/volumes/data')
    await story.assertInOrder()
  }

  async function assertFork(): Promise<void> {
    // The daemon that died had been asked for its port.
    const b = await story.get('b')
    const { born, count } = await story.look(b)
    assert.equal(born, seen.born)
    assert.ok(count >= seen.count)
    assert.equal(await story.sh('b', 'hostname'), 'b')
    await story.remove('b')
  }

  /** The daemon that comes after the death is the story's; `meanwhile` is done while there is none. */
  async function dieAt(at: string, deed: () => Promise<unknown>, meanwhile: () => Promise<void> = async () => undefined): Promise<void> {
    await story.restartDaemon('stop', { DORMOUSE_CRASH_AT: at })
    const { daemon } = story
    // The answer never comes.
    deed().catch(() => undefined)
    const limit = setTimeout(() => void daemon.stop(), 60_000 * timeFactor)
    const end = await daemon.exited
    clearTimeout(limit)
    try {
      await meanwhile()
    } finally {
      await story.restartDaemon('kill')
    }
    assert.equal(end, 'SIGKILL', `it never came to ${at}`)
  }
}
