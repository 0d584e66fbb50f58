/**
 * The daemon is killed with SIGKILL at the named steps of standby, restore, fork, snapshot and their like, with a real VM whose workload
 * counts in RAM: what the next daemon makes of it is asked of the workload, which would know of a boot, a loss and a jump back in time,
 * and of the host. One instance lives through all of it. The whole matrix runs on the fake driver: instances/crash.test.ts.
 */
import assert from 'node:assert/strict'
import { glob, readdir } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { killFamily } from '../../packages/daemon/src/host/process-identity.ts'
import { findShims } from '../../packages/daemon/src/hypervisors/find-shims.ts'
import { timeFactor } from '../harness/slow-host.ts'
import { atRest, type ShownInstance } from './house-in-order.ts'
import { InstanceStory, type Look, type ShownSnapshot } from './instance-story.ts'

type Board = 'qemu' | 'qemu-microvm'
type Deed = () => Promise<unknown>

let story: InstanceStory
/** What `a` said last. */
let seen: Look
/** A moment of `a` that it can be taken back to. */
let kept: ShownSnapshot | undefined

before(async () => {
  story = await InstanceStory.begin({ driver: 'qemu-microvm' })
})
after(() => story?.[Symbol.asyncDispose]())

const standby: Deed = () => story.standby('a')
const restore: Deed = () => story.restore('a')
const fork: Deed = () => story.fork('a', { name: 'b', from_running: true })
const snapshot: Deed = () => story.snapshot('a', { kind: 'Standby' })
const goBack: Deed = () => story.restoreSnapshot('a', kept as ShownSnapshot, 'Running')
/** Enough for the nap to be worth a base of its own. */
const standbyWide: Deed = async () => {
  await story.ask(await story.get('a'), `fill 0 ${WIDE_PAGES} ${Date.now()}`)
  await story.standby('a')
}
const HELD_MIB = 16
const WIDE_PAGES = 2048

interface Case {
  readonly at: string
  readonly from: 'Running' | 'Standby'
  readonly deed: Deed
  readonly ends: 'Running' | 'Standby'
  /** The fork is there, whole. */
  readonly hasFork?: true
  /** It is where the snapshot was. */
  readonly isBack?: true
}

const each = (operation: string, steps: string, the: Omit<Case, 'at'>): Case[] =>
  steps.split(' ').map((step) => ({ at: `${operation}:${step}`, ...the }))

const ON_MICROVM: readonly Case[] = [
  ...each('standby', 'capture record', { from: 'Running', deed: standby, ends: 'Running' }),
  ...each('standby', 'kill', { from: 'Running', deed: standby, ends: 'Standby' }),
  ...each('consolidate', 'publish record', { from: 'Running', deed: standbyWide, ends: 'Standby' }),
  ...each('restore', 'load record', { from: 'Standby', deed: restore, ends: 'Standby' }),
  ...each('restore', 'resume wake', { from: 'Standby', deed: restore, ends: 'Running' }),
  ...each('fork', 'capture pivot resume', { from: 'Running', deed: fork, ends: 'Running' }),
  ...each('create', 'record', { from: 'Running', deed: fork, ends: 'Running' }),
  ...each('create', 'wake', { from: 'Running', deed: fork, ends: 'Running', hasFork: true }),
  ...each('snapshot', 'record', { from: 'Running', deed: snapshot, ends: 'Running' }),
  ...each('restore_snapshot', 'record', { from: 'Standby', deed: goBack, ends: 'Standby' }),
  ...each('restore_snapshot', 'wake', { from: 'Standby', deed: goBack, ends: 'Running', isBack: true }),
]
const ON_Q35: readonly Case[] = [
  ...each('standby', 'record', { from: 'Running', deed: standby, ends: 'Running' }),
  ...each('standby', 'kill', { from: 'Running', deed: standby, ends: 'Standby' }),
  ...each('restore', 'record', { from: 'Standby', deed: restore, ends: 'Standby' }),
  ...each('restore', 'wake', { from: 'Standby', deed: restore, ends: 'Running' }),
  ...each('fork', 'pivot', { from: 'Running', deed: fork, ends: 'Running' }),
]

for (const [board, cases] of [
  ['qemu-microvm', ON_MICROVM],
  ['qemu', ON_Q35],
] as const) {
  test(`on ${board}, an instance that counts in RAM is made and kept`, { timeout: 180_000 }, () => begin(board))

  for (const { at, from, deed, ends, hasFork = false, isBack = false } of cases) {
    const what = isBack ? 'back where its snapshot was' : ends
    test(`killed at ${at} (${from}, ${board}): it is ${what}, its memory whole, ${hasFork ? 'and so is its fork' : 'and nothing is left over'}`, {
      timeout: 120_000,
    }, async () => {
      await bringTo(from)
      await dieAt(at, deed)
      const instances = await atRest(story.daemon.client)
      assert.deepEqual(
        Object.fromEntries(instances.map(({ name, state }) => [name, state])),
        hasFork ? { a: ends, b: 'Running' } : { a: ends },
      )
      await story.assertInOrder()
      if (hasFork) {
        // The daemon that died had been asked for its port.
        const b = await story.get('b')
        const { born, count } = await story.look(b)
        assert.equal(born, seen.born)
        assert.ok(count >= seen.count)
        assert.equal(await story.sh('b', 'hostname'), 'b')
        await story.remove('b')
      }
      if (isBack) seen = { ...seen, count: 0 }
      await assertGoesOn()
    })
  }

  test(`killed while it wakes, and its VM with it, it is Stopped and says that its memory was lost (${board})`, {
    timeout: 120_000,
  }, async () => {
    await bringTo('Standby')
    const { id } = await story.get('a')
    await dieAt('restore:wake', restore, async () => {
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

for (const [what, draft] of [
  ['its memory is written', 'data/instances/*/sleep/*.draft/delta'],
  ['a base is made of it', 'data/memory/*.draft/memory'],
] as const) {
  test(`killed while ${what}, at no step in particular, it is awake or asleep and its memory whole`, { timeout: 120_000 }, async () => {
    await bringTo('Running')
    const { daemon } = story
    standbyWide().catch(() => undefined)
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

async function begin(board: Board): Promise<void> {
  if (kept !== undefined) {
    await story.daemon.client.delete(`/snapshots/${kept.id}`)
    await story.remove('a')
  }
  const a = await story.run('a', { hypervisor: board, cmd: ['/bin/wakeful', '80', `${HELD_MIB}`] })
  seen = await story.look(a)
  kept = await story.snapshot('a', { kind: 'Standby' })
}

async function bringTo(state: Case['from']): Promise<void> {
  const a = await story.get('a')
  if (a.state === 'Standby') await story.restore('a')
  seen = await story.look(await story.expect('a', 'Running'))
  if (state === 'Standby') await story.standby('a')
}

/** It has neither booted nor lost a moment. */
async function assertGoesOn(): Promise<void> {
  if ((await story.get('a')).state === 'Standby') await story.restore('a')
  const now = await story.look(await story.expect('a', 'Running'))
  assert.deepEqual([now.born, now.boot, now.held], [seen.born, seen.boot, seen.held])
  assert.ok(now.count >= seen.count, `it counts ${now.count} and had come to ${seen.count}`)
  seen = now
}

/** The daemon that comes after the death is the story's; `meanwhile` is done while there is none. */
async function dieAt(at: string, deed: Deed, meanwhile: Deed = async () => undefined): Promise<void> {
  await story.restartDaemon('stop', { DORMOUSE_CRASH_AT: at })
  const { daemon } = story
  // The answer never comes.
  deed().catch(() => undefined)
  const limit = setTimeout(() => void daemon.stop(), 60_000 * timeFactor)
  try {
    assert.equal(await daemon.exited, 'SIGKILL', `it never came to ${at}`)
  } finally {
    clearTimeout(limit)
  }
  await meanwhile()
  await story.restartDaemon('kill')
}
