/**
 * The daemon dies at every named step of every operation, on the fake driver; test/vm/crash-*.test.ts does the same with real VMs.
 * After each death a new daemon begins, and the house must be in order: see `assertInOrder`.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { InstanceState } from '@dormouse/api/instance-states.ts'
import type { FakeMachine } from '../hypervisors/fake/fake-host.ts'
import type { InstanceId } from './instance.ts'
import type { Instances } from './instances.ts'
import type { TargetState } from './operations/fork.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from './test-house.ts'

/** What is done until the daemon dies, from a Running instance `a` (or none, for create). */
type Deed = (instances: Instances) => Promise<unknown>

const make: Deed = (instances) =>
  instances.create({ name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, network: { ports: [{ hostPort: 0, guestPort: 80 }] } })
const makeRoomy: Deed = (instances) => instances.create({ name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, hotplugBytes: 2 ** 27 })
const REAL = 'REAL_KEY'
/** What it opens goes by a proxy. */
const makeMediated: Deed = (instances) =>
  instances.create({
    ...{ name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, env: { [REAL]: 'first' } },
    egress: { mode: 'all', credentials: { KEY: { source: REAL, inject: [{ header: 'authorization', format: `\${value}` }] } } },
  })
const byName =
  (deed: (instances: Instances, id: ReturnType<Instances['resolve']>['id']) => Promise<unknown>): Deed =>
  (instances) =>
    deed(instances, instances.resolve('a').id)

interface Case {
  readonly at: string
  /** `roomy`: it runs, with room for more memory. `mediated`: with a proxy. `at rest` as well, and Stopped. */
  readonly before: 'nothing' | 'running' | 'stopped' | 'roomy' | 'mediated' | 'mediated at rest'
  readonly deed: Deed
  /** What `a` is after the restart; undefined: gone, with all that it had. */
  readonly ends: InstanceState | undefined
}

const SLOW = { bandwidthDownload: 1 << 20 }
const OTHER_PORTS = [{ hostPort: 0, guestPort: 81 }]

const CASES: readonly Case[] = [
  { at: 'create:files', before: 'nothing', deed: make, ends: undefined },
  { at: 'create:attach', before: 'nothing', deed: make, ends: undefined },
  { at: 'create:spawn', before: 'nothing', deed: make, ends: undefined },
  { at: 'create:record', before: 'nothing', deed: make, ends: undefined },
  { at: 'boot:connect', before: 'nothing', deed: make, ends: 'Running' },
  { at: 'boot:go', before: 'nothing', deed: make, ends: 'Running' },
  { at: 'boot:running', before: 'nothing', deed: make, ends: 'Running' },
  { at: 'start:intent', before: 'stopped', deed: byName((i, id) => i.start(id)), ends: 'Stopped' },
  { at: 'start:logs', before: 'stopped', deed: byName((i, id) => i.start(id)), ends: 'Stopped' },
  { at: 'start:attach', before: 'stopped', deed: byName((i, id) => i.start(id)), ends: 'Stopped' },
  { at: 'start:spawn', before: 'stopped', deed: byName((i, id) => i.start(id)), ends: 'Stopped' },
  { at: 'start:record', before: 'stopped', deed: byName((i, id) => i.start(id)), ends: 'Stopped' },
  { at: 'boot:go', before: 'stopped', deed: byName((i, id) => i.start(id)), ends: 'Running' },
  { at: 'stop:intent', before: 'running', deed: byName((i, id) => i.stop(id)), ends: 'Running' },
  { at: 'stop:ask_guest', before: 'running', deed: byName((i, id) => i.stop(id)), ends: 'Stopped' },
  { at: 'stop:await_exit', before: 'running', deed: byName((i, id) => i.stop(id)), ends: 'Stopped' },
  { at: 'stop:kill', before: 'running', deed: byName((i, id) => i.stop(id, { force: true })), ends: 'Stopped' },
  { at: 'stop:settle', before: 'running', deed: byName((i, id) => i.stop(id)), ends: 'Stopped' },
  { at: 'stop:sweep', before: 'running', deed: byName((i, id) => i.stop(id)), ends: 'Stopped' },
  { at: 'stop:detach', before: 'running', deed: byName((i, id) => i.stop(id)), ends: 'Stopped' },
  { at: 'delete:intent', before: 'running', deed: byName((i, id) => i.delete(id)), ends: 'Running' },
  { at: 'delete:ask_guest', before: 'running', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'delete:await_exit', before: 'running', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'delete:kill', before: 'running', deed: byName((i, id) => i.delete(id, { graceful: false })), ends: undefined },
  { at: 'delete:sweep', before: 'running', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'delete:detach', before: 'running', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'delete:remove_files', before: 'running', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'delete:forget', before: 'stopped', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'update:ports', before: 'running', deed: byName((i, id) => i.update(id, { network: { ports: OTHER_PORTS } })), ends: 'Running' },
  { at: 'update:record', before: 'running', deed: byName((i, id) => i.update(id, { network: { ports: OTHER_PORTS } })), ends: 'Running' },
  { at: 'update:bandwidth', before: 'running', deed: byName((i, id) => i.update(id, { network: SLOW })), ends: 'Running' },
  { at: 'update:record', before: 'running', deed: byName((i, id) => i.update(id, { network: SLOW })), ends: 'Running' },
  { at: 'update:memory', before: 'roomy', deed: byName((i, id) => i.update(id, { hotplugBytes: 2 ** 28 })), ends: 'Running' },
  { at: 'update:record', before: 'roomy', deed: byName((i, id) => i.update(id, { hotplugBytes: 0 })), ends: 'Running' },
  { at: 'update:disk_rate', before: 'running', deed: byName((i, id) => i.update(id, { diskIoBps: 2 ** 24 })), ends: 'Running' },
  { at: 'update:record', before: 'running', deed: byName((i, id) => i.update(id, { diskIoBps: 2 ** 24 })), ends: 'Running' },
  { at: 'update:record', before: 'stopped', deed: byName((i, id) => i.update(id, { overlayBytes: 2 * TEST_OVERLAY })), ends: 'Stopped' },
  { at: 'update:grow', before: 'stopped', deed: byName((i, id) => i.update(id, { overlayBytes: 2 * TEST_OVERLAY })), ends: 'Stopped' },
  { at: 'update:settle', before: 'stopped', deed: byName((i, id) => i.update(id, { overlayBytes: 2 * TEST_OVERLAY })), ends: 'Stopped' },
  { at: 'create:egress', before: 'nothing', deed: makeMediated, ends: undefined },
  { at: 'create:attach', before: 'nothing', deed: makeMediated, ends: undefined },
  { at: 'create:record', before: 'nothing', deed: makeMediated, ends: undefined },
  { at: 'boot:go', before: 'nothing', deed: makeMediated, ends: 'Running' },
  { at: 'start:egress', before: 'mediated at rest', deed: byName((i, id) => i.start(id)), ends: 'Stopped' },
  { at: 'start:record', before: 'mediated at rest', deed: byName((i, id) => i.start(id)), ends: 'Stopped' },
  { at: 'stop:detach', before: 'mediated', deed: byName((i, id) => i.stop(id)), ends: 'Stopped' },
  { at: 'stop:close_egress', before: 'mediated', deed: byName((i, id) => i.stop(id)), ends: 'Stopped' },
  { at: 'delete:close_egress', before: 'mediated', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'delete:forget', before: 'mediated', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'update:record', before: 'mediated', deed: byName((i, id) => i.update(id, { env: { [REAL]: 'second' } })), ends: 'Running' },
  { at: 'update:rotate', before: 'mediated', deed: byName((i, id) => i.update(id, { env: { [REAL]: 'second' } })), ends: 'Running' },
  { at: 'standby:sweep', before: 'mediated', deed: byName((i, id) => i.standby(id)), ends: 'Standby' },
  { at: 'standby:close_egress', before: 'mediated', deed: byName((i, id) => i.standby(id)), ends: 'Standby' },
]

const MAKE: Readonly<Partial<Record<Case['before'], Deed>>> = { roomy: makeRoomy, mediated: makeMediated, 'mediated at rest': makeMediated }

for (const { at, before, deed, ends } of CASES) {
  test(`a daemon that dies at ${at} (${before}) leaves an instance that is ${ends ?? 'gone'} after the restart`, async () => {
    await using house = new TestHouse()
    const first = await house.begin()
    if (before !== 'nothing') {
      const { id } = (await (MAKE[before] ?? make)(first)) as { id: ReturnType<Instances['resolve']>['id'] }
      await first.wait(id, { state: 'Running', timeoutMs: 60_000 })
      if (before === 'stopped' || before === 'mediated at rest') await first.stop(id)
    }
    await house.end()

    await dieAt(house, at, deed)
    const instances = await house.begin()
    await settled(instances)
    const [a] = instances.list()
    assert.equal(a?.state, ends)
    assert.equal(instances.list().length, ends === undefined ? 0 : 1)
    await assertInOrder(house)

    // And it can be worked with as if nothing had been.
    if (a) {
      if (a.state === 'Stopped') await instances.start(a.id)
      if (a.state === 'Standby') await instances.restore(a.id)
      await instances.wait(a.id, { state: 'Running', timeoutMs: 60_000 })
      await instances.delete(a.id)
    } else await make(instances)
    await assertInOrder(house)
  })
}

for (const at of ['exit:collect', 'exit:settle', 'exit:sweep']) {
  test(`a daemon that dies at ${at}, while a guest's end is taken in, still knows how it ended after the restart`, async () => {
    await using house = new TestHouse()
    await house.begin()
    await dieAt(
      house,
      at,
      async (instances) => {
        const { id } = (await make(instances)) as { id: ReturnType<Instances['resolve']>['id'] }
        await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
        house.host.running()[0]?.guest.exitWorkload(3, 'it had enough')
      },
      'continue',
    )
    const instances = await house.begin()
    await settled(instances)
    const a = instances.resolve('a')
    assert.deepEqual([a.state, a.exitCode, a.exitMessage], ['Stopped', 3, 'it had enough'])
    await assertInOrder(house)
  })
}

test('a daemon that dies while it starts an instance again still knows how that ended last', async () => {
  await using house = new TestHouse()
  const first = await house.begin()
  await make(first)
  const { id } = first.resolve('a')
  await first.wait(id, { state: 'Running', timeoutMs: 60_000 })
  house.host.running()[0]?.guest.exitWorkload(3, 'it had enough')
  await first.wait(id, { state: 'Stopped', timeoutMs: 60_000 })
  await dieAt(house, 'start:spawn', (instances) => instances.start(id), 'continue')
  const instances = await house.begin()
  await settled(instances)
  const { state, exitCode, exitMessage } = instances.resolve('a')
  assert.deepEqual([state, exitCode, exitMessage], ['Stopped', 3, 'it had enough'])
})

test('a daemon that dies in the middle of its recovery recovers again', async () => {
  for (const at of ['recover:sweep', 'recover:remove_files', 'recover:forget']) {
    await using house = new TestHouse()
    await house.begin()
    await dieAt(house, 'create:record', make, 'continue')
    await dieAt(house, at, async () => undefined)
    const instances = await house.begin()
    await settled(instances)
    assert.deepEqual(instances.list(), [])
    await assertInOrder(house)
  }
})

interface SleepCase {
  readonly at: string
  readonly before: 'Running' | 'Standby' | 'Stopped'
  readonly deed: Deed
  /** What is there after the restart: `a`, and what was made of it. */
  readonly a: InstanceState
  readonly b?: InstanceState
}

const standby = byName((i, id) => i.standby(id))
const nap = byName((i, id) => i.nap(id, async () => undefined))
const restore = byName((i, id) => i.restore(id))
const forkTo = (target: TargetState): Deed => byName((i, id) => i.fork(id, { name: 'b', fromRunning: true, target }))
const keep = byName((i, id) =>
  i.snapshot(id, { kind: i.get(id).state === 'Stopped' ? 'Stopped' : 'Standby', tags: {}, isScheduled: false }),
)

/** The same deed, and what comes of a death at each of these steps. */
const each = (operation: string, steps: string, the: Omit<SleepCase, 'at'>): SleepCase[] =>
  steps.split(' ').map((step) => ({ at: `${operation}:${step}`, ...the }))

const POINT = 'draft layer prepare_disk freeze pause capture pivot resume consolidate'
const SLEEP_CASES: readonly SleepCase[] = [
  ...each('standby', 'draft freeze pause capture publish record', { before: 'Running', deed: standby, a: 'Running' }),
  ...each('standby', 'look', { before: 'Running', deed: nap, a: 'Running' }),
  ...each('standby', 'kill sweep detach', { before: 'Running', deed: standby, a: 'Standby' }),
  ...each('consolidate', 'merge publish record sweep', { before: 'Running', deed: standby, a: 'Standby' }),
  ...each('restore', 'intent attach load record', { before: 'Standby', deed: restore, a: 'Standby' }),
  ...each('restore', 'resume wake settle', { before: 'Standby', deed: restore, a: 'Running' }),
  ...each('boot', 'connect running', { before: 'Standby', deed: restore, a: 'Running' }),
  ...each('stop', 'intent', { before: 'Standby', deed: byName((i, id) => i.stop(id)), a: 'Standby' }),
  ...each('stop', 'kill settle sweep detach', { before: 'Standby', deed: byName((i, id) => i.stop(id)), a: 'Stopped' }),

  // On the side of the source.
  ...each('fork', POINT, { before: 'Running', deed: forkTo('Running'), a: 'Running' }),
  ...each('fork', 'share freeze_disk', { before: 'Standby', deed: forkTo('Running'), a: 'Standby' }),
  ...each('fork', 'freeze_disk', { before: 'Stopped', deed: forkTo('Stopped'), a: 'Stopped' }),
  // On the side of the child.
  ...each('create', 'files layer attach load record', { before: 'Running', deed: forkTo('Running'), a: 'Running' }),
  ...each('create', 'resume wake settle', { before: 'Running', deed: forkTo('Running'), a: 'Running', b: 'Running' }),
  ...each('create', 'files layer attach load record', { before: 'Standby', deed: forkTo('Running'), a: 'Standby' }),
  ...each('create', 'resume wake settle', { before: 'Standby', deed: forkTo('Running'), a: 'Standby', b: 'Running' }),
  ...each('create', 'files layer link record', { before: 'Running', deed: forkTo('Standby'), a: 'Running' }),
  ...each('create', 'files layer record', { before: 'Stopped', deed: forkTo('Stopped'), a: 'Stopped' }),
  ...each('create', 'files layer attach spawn record', { before: 'Stopped', deed: forkTo('Standby'), a: 'Stopped' }),
  // It boots first, and is whole from then on.
  ...each('create', 'boot draft freeze pause capture publish', { before: 'Stopped', deed: forkTo('Standby'), a: 'Stopped', b: 'Running' }),
  ...each('create', 'kill sweep', { before: 'Stopped', deed: forkTo('Standby'), a: 'Stopped', b: 'Standby' }),

  ...each('snapshot', `intent ${POINT} publish record`, { before: 'Running', deed: keep, a: 'Running' }),
  ...each('snapshot', 'intent share freeze_disk publish record', { before: 'Standby', deed: keep, a: 'Standby' }),
  ...each('snapshot', 'intent freeze_disk record', { before: 'Stopped', deed: keep, a: 'Stopped' }),
]

/** What a guest had in memory before the deed. */
const BEFORE = 7

for (const { at, before, deed, a, b } of SLEEP_CASES) {
  for (const sharesBlocks of at.endsWith('freeze_disk') || at === 'snapshot:record' ? [false, true] : [false]) {
    test(`a daemon that dies at ${at} (${before}) leaves a ${a} and ${b ? `its fork ${b}` : 'nothing of it'}${sharesBlocks ? ', where blocks are shared' : ''}`, async () => {
      await using house = new TestHouse({ sharesBlocks })
      await asleepOrAwake(house, before)
      // Wide enough for a base of its own.
      house.host.deltaBytes = 96 << 20
      await dieAt(house, at, deed, 'continue')
      const instances = await house.begin()
      await settled(instances)
      assert.deepEqual([instances.resolve('a').state, instances.list().find(({ name }) => name === 'b')?.state], [a, b])
      assert.equal(instances.list().length, b === undefined ? 1 : 2)
      assert.deepEqual(house.snapshots.list(), [])
      await assertInOrder(house)

      // Memory is what it was: neither lost nor booted anew. And all can be done as if nothing had been.
      if (a !== 'Stopped') await assertGoesOn(house, 'a')
      if (b !== undefined && before !== 'Stopped') await assertGoesOn(house, 'b')
      await instances.fork(instances.resolve('a').id, { name: 'c', fromRunning: true })
      await keep(instances)
      await assertInOrder(house)
      await assertLeavesNothing(house)
    })
  }
}

interface ReturnCase {
  readonly at: string
  readonly before: 'Stopped' | 'Standby'
  readonly target: TargetState
  /** It is as it was, or where it was to go. */
  readonly isDone: boolean
}

const RETURN_CASES: readonly ReturnCase[] = (['Stopped', 'Standby'] as const).flatMap((before) => [
  ...['intent', 'layer', 'attach', 'load', 'record'].map((step) => ({ at: step, before, target: 'Running', isDone: false }) as const),
  ...['resume', 'wake', 'settle'].map((step) => ({ at: step, before, target: 'Running', isDone: true }) as const),
  ...['intent', 'layer', 'link', 'record'].map((step) => ({ at: step, before, target: 'Standby', isDone: false }) as const),
  ...['intent', 'layer', 'record'].map((step) => ({ at: step, before, target: 'Stopped', isDone: false }) as const),
])
for (const { at, before, target, isDone } of RETURN_CASES) {
  test(`a daemon that dies at restore_snapshot:${at} (${before}, to ${target}) leaves it ${isDone ? 'where it was to go' : 'as it was'}`, async () => {
    await using house = new TestHouse()
    const id = await asleepOrAwake(house, 'Running')
    const kept = await house.instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
    machineNamed(house, 'a').guest.counter = BEFORE + 1
    if (before === 'Stopped') await house.instances.stop(id)
    else await house.instances.standby(id)
    const { disk, sleep } = house.instances.get(id)
    await dieAt(house, `restore_snapshot:${at}`, (instances) => instances.restoreSnapshot(id, kept, target), 'continue')
    const instances = await house.begin()
    await settled(instances)
    const after = instances.get(id)
    assert.equal(after.state, isDone ? target : before)
    if (!isDone) assert.deepEqual([after.disk, after.sleep], [disk, sleep])
    await assertInOrder(house)
    if (after.state !== 'Stopped') await assertGoesOn(house, 'a', isDone ? BEFORE : BEFORE + 1)
    if (instances.get(id).state === 'Running') await instances.stop(id)
    await instances.restoreSnapshot(id, kept, 'Running')
    await assertGoesOn(house, 'a')
    await assertLeavesNothing(house)
  })
}

test('a daemon that dies while a restore is finished finishes it again, and one whose VM died meanwhile says what was lost', async () => {
  await using house = new TestHouse()
  const id = await asleepOrAwake(house, 'Standby')
  await dieAt(house, 'restore:resume', restore, 'continue')
  await dieAt(house, 'recover:resume', async () => undefined)
  await dieAt(house, 'recover:wake', async () => undefined)
  await dieAt(house, 'recover:settle', async () => undefined)
  await house.begin()
  await settled(house.instances)
  assert.equal(house.instances.get(id).state, 'Running')
  await assertGoesOn(house, 'a')

  await house.instances.standby(id)
  await dieAt(house, 'restore:wake', restore, 'continue')
  await house.host.running()[0]?.end({ kind: 'signaled', signal: 'SIGSEGV', atMs: Date.now() })
  for (const at of ['recover:collect', 'recover:settle', 'recover:sweep']) await dieAt(house, at, async () => undefined)
  await house.begin()
  await settled(house.instances)
  const { state, exitMessage } = house.instances.get(id)
  assert.equal(state, 'Stopped')
  assert.match(exitMessage ?? '', /its memory was lost while it woke/)
  await assertInOrder(house)
})

test('forks of one point that was being shared out when the daemon died are gone, each of them', async () => {
  for (const at of ['fork:consolidate', 'create:files', 'create:load']) {
    await using house = new TestHouse()
    const id = await asleepOrAwake(house, 'Running')
    house.host.deltaBytes = 32 << 20
    const forks = (instances: Instances) => Promise.all(['b', 'c', 'd'].map((name) => instances.fork(id, { name, fromRunning: true })))
    await dieAt(house, at, forks, 'continue')
    await house.begin()
    await settled(house.instances)
    assert.equal(house.instances.list().length, 1)
    await assertGoesOn(house, 'a')
    await assertLeavesNothing(house)
  }
})

test('what a snapshot leaves behind when the daemon dies over its deletion is swept', async () => {
  await using house = new TestHouse()
  const id = await asleepOrAwake(house, 'Running')
  house.host.deltaBytes = 96 << 20
  const kept = await house.instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
  const deleted = house.snapshots.delete(kept.id).catch(() => undefined)
  // Its row is gone at once, its files are not.
  house.crash()
  await deleted
  await house.begin()
  await assertInOrder(house)
  await assertLeavesNothing(house)
})

/** Brings an instance `a` there, with a number in its memory. */
async function asleepOrAwake(house: TestHouse, state: SleepCase['before']): Promise<InstanceId> {
  const instances = await house.begin()
  await make(instances)
  const { id } = instances.resolve('a')
  await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  machineNamed(house, 'a').guest.counter = BEFORE
  if (state === 'Standby') await instances.standby(id)
  if (state === 'Stopped') await instances.stop(id)
  return id
}

async function assertGoesOn(house: TestHouse, name: string, counter = BEFORE): Promise<void> {
  const { id, state } = house.instances.resolve(name)
  if (state === 'Standby') await house.instances.restore(id)
  const { guest } = machineNamed(house, name)
  assert.deepEqual([guest.counter, guest.identity.hostname], [counter, name])
}

async function assertLeavesNothing(house: TestHouse): Promise<void> {
  for (const { id } of house.snapshots.list()) await house.snapshots.delete(id)
  for (const { id } of house.instances.list()) await house.instances.delete(id, { graceful: false })
  await assertInOrder(house)
  assert.deepEqual([house.host.running(), house.instances.list()], [[], []])
}

function machineNamed(house: TestHouse, name: string): FakeMachine {
  const { id } = house.instances.resolve(name)
  const machine = house.host.running().find(({ spec }) => spec.id === id)
  assert.ok(machine, `no VM runs for ${name}`)
  return machine
}

/** Begins a daemon that dies at `at`, does the deed, and takes down what is left of the daemon once it has died. */
async function dieAt(house: TestHouse, at: string, deed: Deed, how: 'begin' | 'continue' = 'begin'): Promise<void> {
  if (how === 'continue') await house.end()
  const died = Promise.withResolvers<void>()
  const begun = house.begin({ crashAt: at, onCrash: () => died.resolve() })
  // A death within the recovery leaves `begin` without an end.
  void begun.then((instances) => deed(instances)).catch(() => undefined)
  await Promise.race([
    died.promise,
    new Promise((_, reject) => setTimeout(() => reject(new Error(`The daemon never came to ${at}`)), 60_000).unref()),
  ])
  house.crash()
}
