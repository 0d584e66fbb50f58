/**
 * A random walk over operations, guest exits, faults, and the daemon's deaths, on the fake driver. Beside it walks a model that knows
 * for each name what it may be; after each step the house is let come to rest and must be in order (`assertInOrder`) and as modelled.
 * A failure prints the seed and the shortest walk that shows it; `DORMOUSE_TEST_SEED` and `DORMOUSE_TEST_RUNS` repeat and lengthen.
 */
import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import { test } from 'node:test'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import fc from 'fast-check'
import type { FaultPoint } from '../hypervisors/fake/fake.ts'
import type { Instances } from './instances.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from './test-house.ts'

type Rest = 'absent' | 'Running' | 'Stopped' | 'Unknown'

/** What may be true of each name now. One possibility, unless something happened in the middle of an operation. */
type Model = Map<string, ReadonlySet<Rest>>

interface World {
  readonly house: TestHouse
  readonly model: Model
}

type Verb = 'create' | 'start' | 'stop' | 'kill' | 'delete'
const VERBS: readonly Verb[] = ['create', 'start', 'stop', 'kill', 'delete']

type Move =
  | { readonly kind: 'do'; readonly verb: Verb; readonly name: string }
  /** Two at once, on one instance. */
  | { readonly kind: 'race'; readonly verbs: readonly [Verb, Verb]; readonly name: string }
  | { readonly kind: 'guest_exits'; readonly name: string; readonly code: number }
  | { readonly kind: 'vm_dies'; readonly name: string }
  /** The driver fails or hangs in the middle of it. */
  | { readonly kind: 'fault'; readonly at: FaultPoint; readonly verb: Verb; readonly name: string }
  | { readonly kind: 'restart' }
  | { readonly kind: 'vm_dies_meanwhile'; readonly name: string }
  /** The daemon dies at the n-th step that is reached while it does it. */
  | { readonly kind: 'crash'; readonly step: number; readonly verb: Verb; readonly name: string }

const FAULTS: readonly FaultPoint[] = ['start', 'start_late', 'connect_guest', 'request_shutdown', 'kill', 'sweep']
const name = fc.constantFrom('a', 'b')
const verb = fc.constantFrom(...VERBS)
const move: fc.Arbitrary<Move> = fc.oneof(
  { weight: 8, arbitrary: fc.record({ kind: fc.constant('do' as const), verb, name }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('race' as const), verbs: fc.tuple(verb, verb), name }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('guest_exits' as const), name, code: fc.integer({ min: 0, max: 255 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('vm_dies' as const), name }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('fault' as const), at: fc.constantFrom(...FAULTS), verb, name }) },
  { weight: 1, arbitrary: fc.constant({ kind: 'restart' as const }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('vm_dies_meanwhile' as const), name }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('crash' as const), step: fc.integer({ min: 0, max: 8 }), verb, name }) },
)

/** Walks that once showed a fault, or come close to one; they are taken each time. */
const FOUND: readonly (readonly Move[])[] = [
  [{ kind: 'crash', step: 0, verb: 'kill', name: 'b' }],
  [{ kind: 'race', verbs: ['stop', 'kill'], name: 'a' }],
  [
    { kind: 'race', verbs: ['stop', 'delete'], name: 'a' },
    { kind: 'do', verb: 'create', name: 'a' },
  ],
  [
    { kind: 'fault', at: 'kill', verb: 'kill', name: 'a' },
    { kind: 'race', verbs: ['stop', 'delete'], name: 'a' },
  ],
]

const seed = Number(process.env.DORMOUSE_TEST_SEED ?? randomInt(2 ** 31))
const options = {
  numRuns: Number(process.env.DORMOUSE_TEST_RUNS ?? 15),
  // A walk that hangs is a failure, not the end of the test.
  interruptAfterTimeLimit: 60_000,
  markInterruptAsFailure: true,
  seed,
  examples: FOUND.map((moves): [Move[]] => [[...moves]]),
}

test('whatever is done, happens or dies, every instance is in a true state and nothing is left over', async (t) => {
  let steps = 0
  await fc.assert(
    fc.asyncProperty(fc.array(move, { minLength: 1, maxLength: 20, size: 'max' }), async (moves) => {
      await using house = new TestHouse()
      const world = { house, model: new Map([...'ab'].map((it) => [it, new Set<Rest>(['absent'])])) }
      await house.begin()
      for (const it of 'ab') {
        await attempt(house.instances, 'create', it)
        world.model.set(it, new Set(['Running']))
      }
      for (const one of moves) {
        await take(world, one)
        await comparison(world, one)
        steps++
      }
    }),
    options,
  )
  t.diagnostic(`${steps} steps, seed ${seed}`)
})

async function take({ house, model }: World, one: Move): Promise<void> {
  const before = (it: string): ReadonlySet<Rest> => model.get(it) ?? new Set()
  switch (one.kind) {
    case 'do': {
      const known = before(one.name)
      const error = await attempt(house.instances, one.verb, one.name)
      model.set(one.name, new Set([...known].flatMap((state) => after(state, one.verb))))
      for (const state of known) if (known.size === 1) assert.equal(errorCodeOf(error), refusal(state, one.verb), `${one.verb} of ${state}`)
      return
    }
    case 'race': {
      const known = before(one.name)
      await Promise.all(one.verbs.map((it) => attempt(house.instances, it, one.name)))
      // In whichever order, and either may be refused for the other's sake.
      const [x, y] = one.verbs
      const reached = [...known].flatMap((state) => [
        ...after(state, x).flatMap((next) => [next, ...after(next, y)]),
        ...after(state, y).flatMap((next) => [next, ...after(next, x)]),
      ])
      model.set(one.name, new Set(reached))
      return
    }
    case 'guest_exits':
    case 'vm_dies': {
      const machine = machineOf(house, one.name)
      if (one.kind === 'guest_exits') machine?.guest.exitWorkload(one.code, 'in the walk')
      else await machine?.end({ kind: 'signaled', signal: 'SIGSEGV', atMs: Date.now() })
      model.set(one.name, new Set([...before(one.name)].map((state) => (state === 'Running' ? 'Stopped' : state))))
      await house.instances
        .wait(idOf(house.instances, one.name) ?? ('' as never), { state: 'Stopped', timeoutMs: 5000 })
        .catch(() => undefined)
      if (machine && one.kind === 'guest_exits' && before(one.name).has('Running')) {
        assert.equal(house.instances.resolve(one.name).exitCode, one.code)
      }
      return
    }
    case 'fault': {
      const known = before(one.name)
      house.host.injectFault(one.at)
      await attempt(house.instances, one.verb, one.name)
      await settled(house.instances)
      house.host.clearFaults()
      // What could not be swept is swept by the next daemon.
      if (one.at === 'sweep') {
        await house.end()
        await house.begin()
      }
      // What failed left it as it was, or where it was going, or says that it does not know; a new daemon then finds it without a VM.
      model.set(one.name, new Set([...known].flatMap((state) => possible(state, one.verb))))
      return
    }
    case 'restart': {
      await house.end()
      await house.begin()
      return
    }
    case 'vm_dies_meanwhile': {
      const machine = machineOf(house, one.name)
      await house.end()
      await machine?.end({ kind: 'signaled', signal: 'SIGSEGV', atMs: Date.now() })
      await house.begin()
      model.set(one.name, new Set([...before(one.name)].map((state) => (state === 'Running' ? 'Stopped' : state))))
      return
    }
    case 'crash': {
      const known = before(one.name)
      await house.end()
      const died = Promise.withResolvers<void>()
      // What a dead daemon would have answered no one hears; it may die while it recovers, and then never takes a request.
      const deed = house.begin({ crashAtStep: one.step, onCrash: died.resolve }).then(async (instances) => {
        await attempt(instances, one.verb, one.name)
        await settled(instances)
      })
      deed.catch(() => undefined)
      await Promise.race([died.promise, deed])
      house.crash()
      await house.begin()
      model.set(one.name, new Set([...known].flatMap((state) => [state, ...after(state, one.verb)])))
      return
    }
  }
}

async function comparison({ house, model }: World, one: Move): Promise<void> {
  await settled(house.instances)
  await assertInOrder(house)
  for (const [it, possible] of model) {
    const state = house.instances.list().find((instance) => instance.name === it)?.state ?? 'absent'
    assert.ok(possible.has(state as Rest), `after ${JSON.stringify(one)} ${it} is ${state}, not ${[...possible].join(' or ')}`)
    // What was seen is what is.
    model.set(it, new Set([state as Rest]))
  }
}

/** Where a verb leads from a state at rest, when it is done in full. */
function after(state: Rest, verb: Verb): Rest[] {
  switch (verb) {
    case 'create':
      return [state === 'absent' ? 'Running' : state]
    case 'start':
      return [state === 'Stopped' ? 'Running' : state]
    case 'stop':
    case 'kill':
      return [state === 'absent' ? 'absent' : 'Stopped']
    case 'delete':
      return ['absent']
  }
}

const possible = (state: Rest, verb: Verb): Rest[] =>
  state === 'absent' ? ['absent', ...after(state, verb)] : [state, ...after(state, verb), 'Unknown', 'Stopped']

function refusal(state: Rest, verb: Verb): string | undefined {
  if (verb === 'create') return state === 'absent' ? undefined : 'name_conflict'
  if (state === 'absent') return 'not_found'
  return verb === 'start' && state === 'Unknown' ? 'invalid_state' : undefined
}

/** Does it and gives what it threw. */
async function attempt(instances: Instances, verb: Verb, name: string): Promise<unknown> {
  try {
    if (verb === 'create') {
      const { id } = await instances.create({
        name,
        image: 'test',
        overlayBytes: TEST_OVERLAY,
        network: { ports: [{ hostPort: 0, guestPort: 80 }] },
      })
      await instances.wait(id, { state: 'Running', timeoutMs: 5000 })
      return undefined
    }
    const { id } = instances.resolve(name)
    if (verb === 'start') await instances.start(id).then(() => instances.wait(id, { state: 'Running', timeoutMs: 5000 }))
    if (verb === 'stop') await instances.stop(id)
    if (verb === 'kill') await instances.stop(id, { force: true })
    if (verb === 'delete') await instances.delete(id)
    return undefined
  } catch (error) {
    if (!(error instanceof AppError)) throw error
    return error
  }
}

const idOf = (instances: Instances, name: string) => instances.list().find((instance) => instance.name === name)?.id
const machineOf = (house: TestHouse, name: string) => house.host.running().find(({ spec }) => spec.id === idOf(house.instances, name))
