/**
 * A random walk over what is done with volumes and with instances that have some, with faults and the daemon's deaths, on the fake driver.
 * Where it leads is not modelled, as random-walk.test.ts does for instances; but after each step the house is in order: one writes a volume
 * or many read it, its layers are on one record, no layer is written by two, what a guest has mounted is what is on record, and nothing is
 * left over. A failure prints the seed and the shortest walk; `DORMOUSE_TEST_SEED` and `DORMOUSE_TEST_RUNS` repeat and lengthen.
 */
import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import { test } from 'node:test'
import { errorCodeOf } from '@dormouse/api/errors.ts'
import fc from 'fast-check'
import type { FaultPoint } from '../hypervisors/fake/fake.ts'
import type { MountRequest } from './instance.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from './test-house.ts'

const BYTES = 64 * 2 ** 20
const VOLUMES = ['v', 'w'] as const
const DEEDS = [
  ...(['make', 'drop', 'enlarge', 'attach', 'read', 'overlay', 'detach'] as const),
  ...(['run_with', 'start', 'stop', 'delete', 'standby', 'restore', 'fork', 'snapshot', 'go_back', 'revive', 'forget', 'use'] as const),
]
type Deed = (typeof DEEDS)[number]

const FAULTS: readonly FaultPoint[] = [
  ...(['start', 'start_late', 'restore', 'capture', 'store', 'prepare_pivot', 'commit_pivot', 'pause', 'resume'] as const),
  ...(['insert_disk', 'eject_disk', 'grow_disk', 'connect_guest'] as const),
]

interface Move {
  readonly deed: Deed
  readonly name: 'a' | 'b'
  readonly volume: (typeof VOLUMES)[number]
  /** What goes wrong meanwhile: the daemon dies at the n-th step, or the driver fails. */
  readonly crashAt?: number | undefined
  readonly fault?: FaultPoint | undefined
}

const move: fc.Arbitrary<Move> = fc.record({
  deed: fc.constantFrom(...DEEDS),
  name: fc.constantFrom('a' as const, 'b' as const),
  volume: fc.constantFrom(...VOLUMES),
  crashAt: fc.oneof({ weight: 4, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary: fc.integer({ min: 0, max: 14 }) }),
  fault: fc.oneof({ weight: 4, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary: fc.constantFrom(...FAULTS) }),
})

const seed = Number(process.env.DORMOUSE_TEST_SEED ?? randomInt(2 ** 31))
const numRuns = Number(process.env.DORMOUSE_TEST_RUNS ?? 12)

test('whatever is done with volumes, and whatever dies over it, they are in order and nothing is left over', async (t) => {
  const done = new Map<Deed, number>()
  await fc.assert(
    fc.asyncProperty(fc.array(move, { minLength: 5, maxLength: 20, size: 'max' }), async (moves) => {
      await using house = new TestHouse()
      await house.begin()
      for (const name of VOLUMES) await house.volumes.create({ name, bytes: BYTES })
      await attempt(house, { deed: 'run_with', name: 'a', volume: 'v' })
      for (const one of moves) {
        const error = await take(house, one)
        if (error === undefined) done.set(one.deed, (done.get(one.deed) ?? 0) + 1)
        await settled(house.instances)
        await assertInOrder(house).catch((cause) => {
          throw new Error(`after ${JSON.stringify(one)}`, { cause })
        })
      }
    }),
    { numRuns, seed, interruptAfterTimeLimit: Math.max(60_000, numRuns * 1000), markInterruptAsFailure: true },
  )
  t.diagnostic(`seed ${seed}, done ${[...done].map(([deed, count]) => `${deed} ${count}`).join(', ')}`)
})

async function take(house: TestHouse, one: Move): Promise<unknown> {
  if (one.crashAt !== undefined) {
    await house.end()
    const died = Promise.withResolvers<void>()
    const deed = house.begin({ crashAtStep: one.crashAt, onCrash: died.resolve }).then(async (instances) => {
      await attempt(house, one)
      await settled(instances)
    })
    deed.catch(() => undefined)
    await Promise.race([died.promise, deed])
    house.crash()
    await house.begin()
    return 'died'
  }
  if (one.fault !== undefined) house.host.injectFault(one.fault)
  const error = await attempt(house, one)
  await settled(house.instances)
  house.host.clearFaults()
  // Whatever it was, it was told in words that a caller can use.
  if (one.fault === undefined && error !== undefined)
    assert.notEqual(errorCodeOf(error) ?? 'internal_error', 'internal_error', String(error))
  if (one.fault === undefined) return error
  // What could not be swept, and what is in doubt, is for the next daemon.
  await house.end()
  await house.begin()
  return error
}

/** Undefined, or why not. */
async function attempt(house: TestHouse, { deed, name, volume }: Move): Promise<unknown> {
  const { instances, snapshots, volumes } = house
  const mount: MountRequest = { volume, mountPath: `/${volume}`, readOnly: deed === 'read' || deed === 'overlay' }
  try {
    switch (deed) {
      case 'make':
        return void (volumes.list().some((one) => one.name === volume) || (await volumes.create({ name: volume, bytes: BYTES })))
      case 'drop':
        return void (await volumes.delete(volume))
      case 'enlarge':
        return void (await instances.growVolume(volume, volumes.resolve(volume).bytes + 2 ** 20))
      case 'run_with': {
        const { id } = await instances.create({ name, image: 'test', overlayBytes: TEST_OVERLAY, volumes: [mount] })
        return void (await instances.wait(id, { state: 'Running', timeoutMs: 60_000 }))
      }
      case 'forget':
        return void (await snapshots.delete(snapshots.list()[0]?.id ?? ''))
      case 'revive': {
        using held = snapshots.hold(snapshots.list()[0]?.id ?? '')
        return void (await instances.forkSnapshot(held.snapshot, { name }))
      }
    }
    const { id, state } = instances.resolve(name)
    switch (deed) {
      case 'attach':
      case 'read':
        return void (await instances.attachVolume(id, mount))
      case 'overlay':
        return void (await instances.attachVolume(id, { ...mount, overlayBytes: BYTES / 2 }))
      case 'detach':
        return void (await instances.detachVolume(id, volume))
      case 'start':
        await instances.start(id)
        return void (await instances.wait(id, { state: 'Running', timeoutMs: 60_000 }))
      case 'stop':
        return void (await instances.stop(id))
      case 'delete':
        return void (await instances.delete(id))
      case 'standby':
        return void (await instances.standby(id))
      case 'restore':
        return void (await instances.restore(id))
      case 'fork':
        return void (await instances.fork(id, { name: name === 'a' ? 'b' : 'a', fromRunning: true }))
      case 'snapshot':
        return void (await instances.snapshot(id, { kind: state === 'Stopped' ? 'Stopped' : 'Standby', tags: {}, isScheduled: false }))
      case 'go_back': {
        using held = snapshots.hold(snapshots.list({ sourceId: id })[0]?.id ?? '')
        return void (await instances.restoreSnapshot(id, held.snapshot, undefined))
      }
      case 'use': {
        const guest = house.host.running().find(({ spec }) => spec.id === id)?.guest
        if (guest?.inUse.delete('volume-0') === false) guest.inUse.add('volume-0')
        return undefined
      }
    }
  } catch (error) {
    return error
  }
}
