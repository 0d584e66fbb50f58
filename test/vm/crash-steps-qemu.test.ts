/**
 * The daemon is killed at the steps of naps, forks and snapshots that lie farther from their commit points, with a real VM: one instance
 * lives through all of it, and another that is stopped. crash-sleep-qemu.test.ts has the steps around the commit points, and more boards.
 */
import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { atRest, type ShownInstance } from './house-in-order.ts'
import { InstanceStory, type Look, type ShownSnapshot } from './instance-story.ts'
import { StepGate } from './step-gate.ts'

type State = 'Running' | 'Standby' | 'Stopped'

let story: InstanceStory
let gate: StepGate
/** What `a` said last. */
let seen: Look
/** A moment of `a` that it can be taken back to. */
let kept: ShownSnapshot

interface Case {
  readonly at: string
  /** The instance that it is done to: `a` awake or asleep, or `s`, which is stopped. */
  readonly from: State
  readonly deed: () => Promise<unknown>
  readonly ends: State
  /** The fork is there, whole, in this state. */
  readonly fork?: State
}

const each = (operation: string, steps: string, the: Omit<Case, 'at'>): Case[] =>
  steps.split(' ').map((step) => ({ at: `${operation}:${step}`, ...the }))

const LZ4 = { compression: { enabled: true, algorithm: 'lz4' } }
const post = (path: string, body: object): Promise<unknown> => story.daemon.client.post(path, body)
const standby = () => post('/instances/a/standby', {})
/** More than is carried along to the next nap. */
const standbyWide = async (): Promise<void> => {
  await story.ask(await story.get('a'), `fill 0 ${WIDE_PAGES} ${Date.now()}`)
  await standby()
}
const standbyPacked = () => post('/instances/a/standby', LZ4)
const restore = () => post('/instances/a/restore', {})
const forkTo = (target: State) => () => story.fork('a', { name: 'b', from_running: true, target_state: target })
const forkStopped = (target: State) => () => story.fork('s', { name: 'b', target_state: target })
const snapshot = () => post('/instances/a/snapshots', { kind: 'Standby' })
const snapshotPacked = () => post('/instances/a/snapshots', { kind: 'Standby', ...LZ4 })
const goBack = (target: State) => () => story.restoreSnapshot('a', kept, target)
const HELD_MIB = 16
const WIDE_PAGES = 2048

const CASES: readonly Case[] = [
  ...each('standby', 'draft freeze pause publish', { from: 'Running', deed: standby, ends: 'Running' }),
  ...each('standby', 'sweep', { from: 'Running', deed: standby, ends: 'Standby' }),
  ...each('consolidate', 'merge sweep', { from: 'Running', deed: standbyWide, ends: 'Standby' }),
  ...each('restore', 'intent', { from: 'Standby', deed: restore, ends: 'Standby' }),
  ...each('restore', 'settle', { from: 'Standby', deed: restore, ends: 'Running' }),

  ...each('fork', 'draft layer prepare_disk freeze pause', { from: 'Running', deed: forkTo('Running'), ends: 'Running' }),
  ...each('create', 'layer load', { from: 'Running', deed: forkTo('Running'), ends: 'Running' }),
  ...each('create', 'settle', { from: 'Running', deed: forkTo('Running'), ends: 'Running', fork: 'Running' }),
  ...each('create', 'link', { from: 'Running', deed: forkTo('Standby'), ends: 'Running' }),
  ...each('fork', 'share freeze_disk', { from: 'Standby', deed: forkTo('Running'), ends: 'Standby' }),
  ...each('create', 'link', { from: 'Standby', deed: forkTo('Standby'), ends: 'Standby' }),
  ...each('create', 'wake', { from: 'Standby', deed: forkTo('Running'), ends: 'Standby', fork: 'Running' }),
  ...each('fork', 'freeze_disk', { from: 'Stopped', deed: forkStopped('Stopped'), ends: 'Stopped' }),
  ...each('create', 'record', { from: 'Stopped', deed: forkStopped('Running'), ends: 'Stopped' }),
  ...each('create', 'boot', { from: 'Stopped', deed: forkStopped('Standby'), ends: 'Stopped', fork: 'Running' }),
  ...each('create', 'sweep', { from: 'Stopped', deed: forkStopped('Standby'), ends: 'Stopped', fork: 'Standby' }),

  ...each('snapshot', 'freeze publish', { from: 'Running', deed: snapshot, ends: 'Running' }),
  ...each('snapshot', 'share record', { from: 'Standby', deed: snapshot, ends: 'Standby' }),
  ...each('restore_snapshot', 'layer', { from: 'Standby', deed: goBack('Running'), ends: 'Standby' }),
  ...each('restore_snapshot', 'link', { from: 'Standby', deed: goBack('Standby'), ends: 'Standby' }),

  ...each('compress', 'write publish record sweep', { from: 'Running', deed: standbyPacked, ends: 'Standby' }),
  ...each('compress_snapshot', 'write publish record sweep', { from: 'Running', deed: snapshotPacked, ends: 'Running' }),
]

before(async () => {
  const steps = [...new Set(CASES.map(({ at }) => at))].join(',')
  story = await InstanceStory.begin({ driver: 'qemu-microvm', env: { DORMOUSE_STOP_AT: steps } })
  gate = new StepGate(`${story.dir}/daemon.log`)
  await story.run('s', { cmd: ['/bin/wakeful', '80'] })
  await story.stop('s')
  const a = await story.run('a', { cmd: ['/bin/wakeful', '80', `${HELD_MIB}`] })
  seen = await story.look(a)
  kept = await story.snapshot('a', { kind: 'Standby' })
})
after(async () => {
  await gate?.[Symbol.asyncDispose]()
  await story?.[Symbol.asyncDispose]()
})

for (const { at, from, deed, ends, fork } of CASES) {
  test(`killed at ${at} (${from}): ${ends}, its memory whole, and ${fork === undefined ? 'nothing is left over' : `its fork is ${fork}`}`, {
    timeout: 90_000,
  }, async () => {
    if (from !== 'Stopped') await bringTo(from)
    // The answer may never come.
    deed().catch(() => undefined)
    await gate.until(at)
    await story.restartDaemon('kill')
    const found = Object.fromEntries((await atRest(story.daemon.client)).map(({ name, state }) => [name, state]))
    const expected = from === 'Stopped' ? { a: found.a, s: ends } : { a: ends, s: 'Stopped' }
    assert.deepEqual(found, fork === undefined ? expected : { ...expected, b: fork })
    await packed()
    await story.assertInOrder()
    if (fork !== undefined) await assertFork(from, fork)
    await assertGoesOn()
  })
}

test('when all is removed, nothing is left', async () => {
  await story.daemon.client.delete(`/snapshots/${kept.id}`)
  await story.remove('a', 's')
  await story.assertInOrder()
  assert.deepEqual(await readdir(story.daemon.paths.basesDir), [])
})

async function bringTo(state: State): Promise<void> {
  const a = await story.get('a')
  if (a.state === 'Standby') await story.restore('a')
  seen = await story.look(await story.expect('a', 'Running'))
  if (state === 'Standby') await story.standby('a')
}

/** Snapshots that were being compressed are, by the daemon that came after, and go; those that were being made are not there. */
async function packed(): Promise<void> {
  const list = () => story.daemon.client.get<(ShownSnapshot & { compression_state: string })[]>('/snapshots')
  const isDone = async () => (await list()).every(({ compression_state }) => compression_state !== 'compressing')
  await pollUntil('snapshots to be compressed', isDone, { signal: AbortSignal.timeout(60_000) })
  for (const { id, compression_state } of await list()) {
    if (id === kept.id) continue
    assert.equal(compression_state, 'compressed')
    await story.daemon.client.delete(`/snapshots/${id}`)
  }
}

async function assertFork(from: State, state: State): Promise<void> {
  const b: ShownInstance = state === 'Standby' ? await story.restore('b') : await story.get('b')
  // One that was made of a stopped instance has booted by itself.
  await story.untilItListens(b)
  const { born, count } = await story.look(b)
  if (from !== 'Stopped') {
    assert.equal(born, seen.born)
    assert.ok(count >= seen.count)
  }
  assert.equal(await story.sh('b', 'hostname'), 'b')
  await story.remove('b')
}

/** `a` has neither booted nor lost a moment. */
async function assertGoesOn(): Promise<void> {
  seen = await story.goesOn('a', seen)
}
