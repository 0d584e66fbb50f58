/**
 * The daemon dies at every named step of every operation, on the fake driver; test/vm/crash-*.test.ts does the same with real VMs.
 * After each death a new daemon begins, and the house must be in order: see `assertInOrder`.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { InstanceState } from '@dormouse/api/instance-states.ts'
import type { Instances } from './instances.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from './test-house.ts'

/** What is done until the daemon dies, from a Running instance `a` (or none, for create). */
type Deed = (instances: Instances) => Promise<unknown>

const make: Deed = (instances) =>
  instances.create({ name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, network: { ports: [{ hostPort: 0, guestPort: 80 }] } })
const byName =
  (deed: (instances: Instances, id: ReturnType<Instances['resolve']>['id']) => Promise<unknown>): Deed =>
  (instances) =>
    deed(instances, instances.resolve('a').id)

interface Case {
  readonly at: string
  readonly before: 'nothing' | 'running' | 'stopped'
  readonly deed: Deed
  /** What `a` is after the restart; undefined: gone, with all that it had. */
  readonly ends: InstanceState | undefined
}

const OTHER_PORTS = [{ hostPort: 0, guestPort: 81 }]

const CASES: readonly Case[] = [
  { at: 'create:files', before: 'nothing', deed: make, ends: undefined },
  { at: 'create:spawn', before: 'nothing', deed: make, ends: undefined },
  { at: 'create:record', before: 'nothing', deed: make, ends: undefined },
  { at: 'boot:connect', before: 'nothing', deed: make, ends: 'Running' },
  { at: 'boot:go', before: 'nothing', deed: make, ends: 'Running' },
  { at: 'boot:running', before: 'nothing', deed: make, ends: 'Running' },
  { at: 'start:intent', before: 'stopped', deed: byName((i, id) => i.start(id)), ends: 'Stopped' },
  { at: 'start:logs', before: 'stopped', deed: byName((i, id) => i.start(id)), ends: 'Stopped' },
  { at: 'start:spawn', before: 'stopped', deed: byName((i, id) => i.start(id)), ends: 'Stopped' },
  { at: 'start:record', before: 'stopped', deed: byName((i, id) => i.start(id)), ends: 'Stopped' },
  { at: 'boot:go', before: 'stopped', deed: byName((i, id) => i.start(id)), ends: 'Running' },
  { at: 'stop:intent', before: 'running', deed: byName((i, id) => i.stop(id)), ends: 'Running' },
  { at: 'stop:ask_guest', before: 'running', deed: byName((i, id) => i.stop(id)), ends: 'Stopped' },
  { at: 'stop:await_exit', before: 'running', deed: byName((i, id) => i.stop(id)), ends: 'Stopped' },
  { at: 'stop:kill', before: 'running', deed: byName((i, id) => i.stop(id, { force: true })), ends: 'Stopped' },
  { at: 'stop:settle', before: 'running', deed: byName((i, id) => i.stop(id)), ends: 'Stopped' },
  { at: 'stop:sweep', before: 'running', deed: byName((i, id) => i.stop(id)), ends: 'Stopped' },
  { at: 'delete:intent', before: 'running', deed: byName((i, id) => i.delete(id)), ends: 'Running' },
  { at: 'delete:ask_guest', before: 'running', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'delete:await_exit', before: 'running', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'delete:kill', before: 'running', deed: byName((i, id) => i.delete(id, { graceful: false })), ends: undefined },
  { at: 'delete:sweep', before: 'running', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'delete:remove_files', before: 'running', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'delete:forget', before: 'stopped', deed: byName((i, id) => i.delete(id)), ends: undefined },
  { at: 'update:ports', before: 'running', deed: byName((i, id) => i.update(id, { network: { ports: OTHER_PORTS } })), ends: 'Running' },
  { at: 'update:record', before: 'running', deed: byName((i, id) => i.update(id, { network: { ports: OTHER_PORTS } })), ends: 'Running' },
  { at: 'update:record', before: 'stopped', deed: byName((i, id) => i.update(id, { overlayBytes: 2 * TEST_OVERLAY })), ends: 'Stopped' },
  { at: 'update:grow', before: 'stopped', deed: byName((i, id) => i.update(id, { overlayBytes: 2 * TEST_OVERLAY })), ends: 'Stopped' },
  { at: 'update:settle', before: 'stopped', deed: byName((i, id) => i.update(id, { overlayBytes: 2 * TEST_OVERLAY })), ends: 'Stopped' },
]

for (const { at, before, deed, ends } of CASES) {
  test(`a daemon that dies at ${at} (${before}) leaves an instance that is ${ends ?? 'gone'} after the restart`, async () => {
    await using house = new TestHouse()
    const first = await house.begin()
    if (before !== 'nothing') {
      const { id } = (await make(first)) as { id: ReturnType<Instances['resolve']>['id'] }
      await first.wait(id, { state: 'Running', timeoutMs: 5000 })
      if (before === 'stopped') await first.stop(id)
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
      await instances.wait(a.id, { state: 'Running', timeoutMs: 5000 })
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
        await instances.wait(id, { state: 'Running', timeoutMs: 5000 })
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
  await first.wait(id, { state: 'Running', timeoutMs: 5000 })
  house.host.running()[0]?.guest.exitWorkload(3, 'it had enough')
  await first.wait(id, { state: 'Stopped', timeoutMs: 5000 })
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

/** Begins a daemon that dies at `at`, does the deed, and takes down what is left of the daemon once it has died. */
async function dieAt(house: TestHouse, at: string, deed: Deed, how: 'begin' | 'continue' = 'begin'): Promise<void> {
  if (how === 'continue') await house.end()
  const died = Promise.withResolvers<void>()
  const begun = house.begin({ crashAt: at, onCrash: () => died.resolve() })
  // A death within the recovery leaves `begin` without an end.
  void begun.then((instances) => deed(instances)).catch(() => undefined)
  await Promise.race([
    died.promise,
    new Promise((_, reject) => setTimeout(() => reject(new Error(`The daemon never came to ${at}`)), 5000).unref()),
  ])
  house.crash()
}
