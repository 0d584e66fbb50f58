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

/** `publish` and `grow` are updates: of the ports in any state, of the disk while Stopped. */
type Verb = 'create' | 'start' | 'stop' | 'kill' | 'delete' | 'publish' | 'grow'
const VERBS: readonly Verb[] = ['create', 'start', 'stop', 'kill', 'delete', 'publish', 'grow']

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

const FAULTS: readonly FaultPoint[] = ['start', 'start_late', 'connect_guest', 'request_shutdown', 'kill', 'set_ports', 'sweep']
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

const restarts = (one: Move): boolean =>
  ['restart', 'vm_dies_meanwhile', 'crash'].includes(one.kind) || (one.kind === 'fault' && one.at === 'sweep')

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
  [
    { kind: 'fault', at: 'kill', verb: 'kill', name: 'a' },
    { kind: 'vm_dies', name: 'a' },
  ],
  [
    { kind: 'fault', at: 'kill', verb: 'kill', name: 'a' },
    { kind: 'crash', step: 0, verb: 'create', name: 'a' },
    { kind: 'do', verb: 'grow', name: 'a' },
  ],
]

const seed = Number(process.env.DORMOUSE_TEST_SEED ?? randomInt(2 ** 31))
const numRuns = Number(process.env.DORMOUSE_TEST_RUNS ?? 15)
const options = {
  numRuns,
  // A walk that hangs is a failure, not the end of the test.
  interruptAfterTimeLimit: Math.max(60_000, numRuns * 500),
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
        // The next daemon finds out, one way or the other.
        if (restarts(one)) {
          for (const [it, known] of world.model) if (known.has('Unknown')) world.model.set(it, new Set([...known, 'Running', 'Stopped']))
        }
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
      model.set(one.name, new Set([...before(one.name)].flatMap(afterExit)))
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
      model.set(one.name, new Set([...before(one.name)].flatMap(afterExit)))
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
    const instance = house.instances.list().find(({ name }) => name === it)
    const state = instance?.state ?? 'absent'
    // All of a patch or nothing: each takes along in the environment, which is merged, what it sets.
    if (instance) assert.deepEqual(instance.env, { ...portEnv(instance.network.ports[0]?.guestPort), ...diskEnv(instance.overlayBytes) })
    assert.ok(possible.has(state as Rest), `after ${JSON.stringify(one)} ${it} is ${state}, not ${[...possible].join(' or ')}`)
    // What was seen is what is; a VM that was adopted in doubt ends the doubt as soon as its guest answers.
    model.set(it, new Set(state === 'Unknown' && machineOf(house, it) ? ['Unknown', 'Running'] : [state as Rest]))
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
    case 'publish':
    case 'grow':
      return [state]
  }
}

/** Where the end of its VM leads. One that is Unknown may have none. */
const afterExit = (state: Rest): Rest[] => (state === 'Running' ? ['Stopped'] : state === 'Unknown' ? ['Unknown', 'Stopped'] : [state])

const possible = (state: Rest, verb: Verb): Rest[] =>
  state === 'absent' ? ['absent', ...after(state, verb)] : [state, ...after(state, verb), 'Unknown', 'Stopped']

function refusal(state: Rest, verb: Verb): string | undefined {
  if (verb === 'create') return state === 'absent' ? undefined : 'name_conflict'
  if (state === 'absent') return 'not_found'
  if (verb === 'grow') return state === 'Stopped' ? undefined : 'invalid_state'
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
        env: { ...portEnv(80), ...diskEnv(TEST_OVERLAY) },
      })
      await instances.wait(id, { state: 'Running', timeoutMs: 5000 })
      return undefined
    }
    const { id, overlayBytes, network } = instances.resolve(name)
    const guestPort = network.ports[0]?.guestPort ?? 0
    if (verb === 'publish')
      await instances.update(id, {
        network: { ports: [{ hostPort: 0, guestPort: guestPort + 1 }] },
        env: portEnv(guestPort + 1),
      })
    if (verb === 'grow') await instances.update(id, { overlayBytes: overlayBytes + GROWTH, env: diskEnv(overlayBytes + GROWTH) })
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

const GROWTH = 8 * 2 ** 20
const portEnv = (guestPort: number | undefined) => ({ GUEST_PORT: `${guestPort}` })
const diskEnv = (overlayBytes: number) => ({ OVERLAY: `${overlayBytes}` })

const idOf = (instances: Instances, name: string) => instances.list().find((instance) => instance.name === name)?.id
const machineOf = (house: TestHouse, name: string) => house.host.running().find(({ spec }) => spec.id === idOf(house.instances, name))
