/**
 * A random walk over operations, guest exits, faults, and the daemon's deaths, on the fake driver. Beside it walks a model that knows
 * for each name what it may be, and what is in its memory; after each step the house is let come to rest and must be in order
 * (`assertInOrder`) and as modelled.
 * A failure prints the seed and the shortest walk that shows it; `DORMOUSE_TEST_SEED` and `DORMOUSE_TEST_RUNS` repeat and lengthen.
 */
import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import fc from 'fast-check'
import type { FaultPoint } from '../hypervisors/fake/fake.ts'
import type { InstanceId } from './instance.ts'
import type { Instances } from './instances.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from './test-house.ts'

type Rest = 'absent' | 'Running' | 'Stopped' | 'Standby' | 'Unknown'

/** What may be true of each name now. One possibility, unless something happened in the middle of an operation. */
type Model = Map<string, ReadonlySet<Rest>>

interface World {
  readonly house: TestHouse
  readonly model: Model
  /** A number that stands in memory alone, a new one after each step; of those that run or sleep, and of snapshots. */
  readonly memory: Map<string, number>
  readonly kept: Map<string, number>
  /** Those whose environment is of another time, or of another's, than their ports. */
  readonly mixed: Set<string>
}

/**
 * `publish` and `grow` are updates: of the ports in any state, of the disk while Stopped. `fork` makes the other name of it, `revive`
 * makes it of the newest snapshot, `go_back` takes it to its own newest one, `forget` deletes the newest of all.
 */
const VERBS = [
  ...(['create', 'start', 'stop', 'kill', 'delete', 'publish', 'grow'] as const),
  ...(['standby', 'restore', 'fork', 'snapshot', 'go_back', 'revive', 'forget'] as const),
]
type Verb = (typeof VERBS)[number]

type Move =
  | { readonly kind: 'do'; readonly verb: Verb; readonly name: string }
  /** Two at once, on one instance. */
  | { readonly kind: 'race'; readonly verbs: readonly [Verb, Verb]; readonly name: string }
  | { readonly kind: 'guest_exits'; readonly name: string; readonly code: number }
  /** From now on guests have written so much when they are captured. */
  | { readonly kind: 'guests_write'; readonly mib: number }
  | { readonly kind: 'vm_dies'; readonly name: string }
  /** The driver fails or hangs in the middle of it. */
  | { readonly kind: 'fault'; readonly at: FaultPoint; readonly verb: Verb; readonly name: string }
  | { readonly kind: 'restart' }
  | { readonly kind: 'vm_dies_meanwhile'; readonly name: string }
  /** The daemon dies at the n-th step that is reached while it does it. */
  | { readonly kind: 'crash'; readonly step: number; readonly verb: Verb; readonly name: string }

const FAULTS: readonly FaultPoint[] = [
  ...(['start', 'start_late', 'connect_guest', 'request_shutdown', 'kill', 'set_ports', 'sweep'] as const),
  ...(['restore', 'pause', 'resume', 'capture', 'store', 'prepare_pivot', 'commit_pivot', 'consolidate'] as const),
]
const name = fc.constantFrom('a', 'b')
const verb = fc.constantFrom(...VERBS)
const move: fc.Arbitrary<Move> = fc.oneof(
  { weight: 8, arbitrary: fc.record({ kind: fc.constant('do' as const), verb, name }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('race' as const), verbs: fc.tuple(verb, verb), name }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('guest_exits' as const), name, code: fc.integer({ min: 0, max: 255 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('guests_write' as const), mib: fc.constantFrom(0, 8, 32) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('vm_dies' as const), name }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('fault' as const), at: fc.constantFrom(...FAULTS), verb, name }) },
  { weight: 1, arbitrary: fc.constant({ kind: 'restart' as const }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('vm_dies_meanwhile' as const), name }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('crash' as const), step: fc.integer({ min: 0, max: 14 }), verb, name }) },
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
      const model: Model = new Map([...'ab'].map((it) => [it, new Set<Rest>(['absent'])]))
      const world: World = { house, model, memory: new Map(), kept: new Map(), mixed: new Set() }
      await house.begin()
      for (const it of 'ab') {
        await attempt(house, 'create', it)
        world.model.set(it, new Set(['Running']))
        world.memory.set(it, 0)
      }
      for (const one of moves) {
        // The next daemon finds out, one way or the other.
        if (restarts(one)) {
          for (const [it, known] of world.model)
            if (known.has('Unknown')) world.model.set(it, new Set([...known, 'Running', 'Stopped', 'Standby']))
        }
        // What the newest snapshots are is asked now, since some of it is done with them.
        const memories = memoriesOf(world, one)
        await take(world, one)
        await comparison(world, one, memories)
        steps++
      }
    }),
    options,
  )
  t.diagnostic(`${steps} steps, seed ${seed}`)
})

async function take(world: World, one: Move): Promise<void> {
  const { house, model } = world
  const before = (it: string): ReadonlySet<Rest> => model.get(it) ?? new Set()
  for (const verb of verbsOf(one)) if ('name' in one) mayMakeTheOther(world, verb, one.name)
  switch (one.kind) {
    case 'do': {
      const known = before(one.name)
      const { other, own, any } = expectations(house, one.name)
      const error = await attempt(house, one.verb, one.name)
      model.set(one.name, new Set([...known].flatMap((state) => after(state, one.verb))))
      for (const state of known) {
        if (known.size === 1) assert.equal(errorCodeOf(error), refusal(state, one.verb, { other, own, any }), `${one.verb} of ${state}`)
      }
      return
    }
    case 'guests_write':
      house.host.deltaBytes = one.mib << 20
      return
    case 'race': {
      const known = before(one.name)
      await Promise.all(one.verbs.map((it) => attempt(house, it, one.name)))
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
        .wait(idOf(house.instances, one.name) ?? ('' as never), { state: 'Stopped', timeoutMs: 60_000 })
        .catch(() => undefined)
      if (machine && one.kind === 'guest_exits' && before(one.name).has('Running')) {
        assert.equal(house.instances.resolve(one.name).exitCode, one.code)
      }
      return
    }
    case 'fault': {
      const known = before(one.name)
      house.host.injectFault(one.at)
      await attempt(house, one.verb, one.name)
      await settled(house.instances)
      await house.instances.consolidated()
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
        await attempt(house, one.verb, one.name)
        await settled(instances)
        await instances.consolidated()
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

async function comparison(world: World, one: Move, memories: ReadonlyMap<string, ReadonlySet<number>>): Promise<void> {
  const { house, model, mixed } = world
  await settled(house.instances)
  await assertInOrder(house)
  compareMemory(world, one, memories)
  for (const [it, possible] of model) {
    const instance = house.instances.list().find(({ name }) => name === it)
    const state = instance?.state ?? 'absent'
    // All of a patch or nothing: each takes along in the environment, which is merged, what it sets.
    if (instance) {
      assert.equal(instance.env.OVERLAY, diskEnv(instance.overlayBytes).OVERLAY)
      if (!mixed.has(it)) assert.equal(instance.env.GUEST_PORT, portEnv(instance.network.ports[0]?.guestPort).GUEST_PORT)
    } else mixed.delete(it)
    assert.ok(possible.has(state as Rest), `after ${JSON.stringify(one)} ${it} is ${state}, not ${[...possible].join(' or ')}`)
    // What was seen is what is; a VM that was adopted in doubt ends the doubt as soon as its guest answers.
    model.set(it, new Set(state === 'Unknown' && machineOf(house, it) ? ['Unknown', 'Running'] : [state as Rest]))
  }
}

const verbsOf = (one: Move): readonly Verb[] => ('verbs' in one ? one.verbs : 'verb' in one ? [one.verb] : [])
const theOther = (name: string): string => (name === 'a' ? 'b' : 'a')

/** A fork comes to be, or does not. */
function mayMakeTheOther({ model, mixed }: World, verb: Verb, name: string): void {
  if (verb === 'go_back' || verb === 'revive') mixed.add(name)
  if (verb !== 'fork') return
  const other = theOther(name)
  mixed.add(other)
  const reached = [...(model.get(name) ?? [])].filter((state) => state !== 'absent' && state !== 'Unknown')
  // Of two verbs that race the first may lead it somewhere.
  if (model.get(other)?.has('absent')) model.set(other, new Set([...(model.get(other) ?? []), ...reached, 'Running', 'Standby', 'Stopped']))
}

/** What may stand in the memory of each name after a move, if it runs or sleeps: what stood there, unless something else was asked for. */
function memoriesOf({ house, memory, kept }: World, one: Move): Map<string, ReadonlySet<number>> {
  const snapshots = house.snapshots.list()
  return new Map(
    [...'ab'].map((it) => {
      const may = new Set(memory.has(it) ? [memory.get(it) ?? 0] : [])
      const verbs = verbsOf(one)
      const [name] = 'name' in one ? [one.name] : []
      const add = (numbers: readonly (number | undefined)[]): void => {
        for (const number of [0, ...numbers]) may.add(number ?? 0)
      }
      if (name === it && verbs.some((verb) => verb === 'create' || verb === 'start')) add([])
      if (name === it && verbs.includes('revive')) add(snapshots.map(({ id }) => kept.get(id)))
      if (name === it && verbs.includes('go_back')) {
        add(snapshots.filter(({ instance }) => instance.id === idOf(house.instances, it)).map(({ id }) => kept.get(id)))
        // Of two that race the first may be a snapshot.
        if (verbs.includes('snapshot')) add([memory.get(it)])
      }
      if (name !== undefined && name !== it && verbs.includes('fork')) add([memory.get(name)])
      return [it, may]
    }),
  )
}

/** Nothing that was in memory is lost, but by a stop or an end; nothing that sleeps is another's, or of another time. */
function compareMemory({ house, memory, kept }: World, one: Move, memories: ReadonlyMap<string, ReadonlySet<number>>): void {
  const said = `after ${JSON.stringify(one)}`
  const asleep = (dir: string): number => JSON.parse(readFileSync(join(dir, 'state'), 'utf8')).counter
  const snapshots = house.snapshots.list()
  for (const id of kept.keys()) if (!snapshots.some((it) => it.id === id)) kept.delete(id)
  for (const { id, base, generation, instance } of snapshots) {
    if (base === undefined) continue
    const counter = asleep(house.paths.snapshotDir(id, generation))
    const may = kept.has(id) ? [kept.get(id)] : [...(memories.get(instance.name) ?? [])]
    assert.ok(may.includes(counter), `${said} the snapshot ${id} has ${counter} in its memory, not ${may.join(' or ')}`)
    kept.set(id, counter)
  }
  for (const [it, may] of memories) {
    const instance = house.instances.list().find(({ name }) => name === it)
    if (instance?.state === 'Unknown') continue
    const guest = instance?.state === 'Running' ? machineOf(house, it)?.guest : undefined
    const counter = instance?.sleep ? asleep(house.paths.instanceSleep(instance.id, instance.sleep.generation)) : guest?.counter
    if (counter === undefined) {
      memory.delete(it)
      continue
    }
    assert.ok(may.has(counter), `${said} ${it} has ${counter} in its memory, not ${[...may].join(' or ')}`)
    if (guest) guest.counter = ++lastNumber
    memory.set(it, guest?.counter ?? counter)
  }
}

let lastNumber = 0

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
    case 'standby':
      return [state === 'Running' ? 'Standby' : state]
    case 'restore':
      return [state === 'Standby' ? 'Running' : state]
    case 'go_back':
      // It depends on the kind of the snapshot, and on whether there is one.
      return state === 'Standby' || state === 'Stopped' ? [state, 'Running', 'Stopped'] : [state]
    case 'revive':
      return state === 'absent' ? ['absent', 'Running', 'Stopped'] : [state]
    case 'fork':
    case 'snapshot':
    case 'forget':
    case 'publish':
    case 'grow':
      return [state]
  }
}

/** Where the end of its VM leads. One that is Unknown may have none. */
const afterExit = (state: Rest): Rest[] => (state === 'Running' ? ['Stopped'] : state === 'Unknown' ? ['Unknown', 'Stopped'] : [state])

const possible = (state: Rest, verb: Verb): Rest[] =>
  state === 'absent' ? ['absent', ...after(state, verb)] : [state, ...after(state, verb), 'Unknown', 'Stopped']

/** What is there besides: the other name, a snapshot of its own, any snapshot. */
interface Besides {
  readonly other: boolean
  readonly own: boolean
  readonly any: boolean
}

const expectations = (house: TestHouse, name: string): Besides => ({
  other: idOf(house.instances, theOther(name)) !== undefined,
  own: newestOf(house, idOf(house.instances, name)) !== undefined,
  any: house.snapshots.list().length > 0,
})

function refusal(state: Rest, verb: Verb, { other, own, any }: Besides): string | undefined {
  if (verb === 'create') return state === 'absent' ? undefined : 'name_conflict'
  if (verb === 'forget') return any ? undefined : 'not_found'
  if (verb === 'revive') return any ? (state === 'absent' ? undefined : 'name_conflict') : 'not_found'
  if (state === 'absent') return 'not_found'
  if (state === 'Unknown' && (verb === 'standby' || verb === 'restore' || verb === 'fork' || verb === 'start')) return 'invalid_state'
  switch (verb) {
    case 'grow':
      return state === 'Stopped' ? undefined : 'invalid_state'
    case 'start':
      return state === 'Standby' ? 'invalid_state' : undefined
    case 'standby':
    case 'restore':
      return state === 'Stopped' ? 'invalid_state' : undefined
    case 'fork':
      return other ? 'name_conflict' : undefined
    case 'snapshot':
      return state === 'Unknown' ? 'conflict' : undefined
    case 'go_back':
      return own ? (state === 'Standby' || state === 'Stopped' ? undefined : 'invalid_state') : 'not_found'
    case 'stop':
    case 'kill':
    case 'delete':
    case 'publish':
      return undefined
  }
}

/** Does it and gives what it threw. */
async function attempt(house: TestHouse, verb: Verb, name: string): Promise<unknown> {
  const { instances, snapshots } = house
  try {
    if (verb === 'create') {
      const { id } = await instances.create({
        name,
        image: 'test',
        overlayBytes: TEST_OVERLAY,
        network: { ports: [{ hostPort: 0, guestPort: 80 }] },
        env: { ...portEnv(80), ...diskEnv(TEST_OVERLAY), [SECRET]: 'first' },
        // One goes out by a proxy, and so do its forks.
        ...(name === 'a' && { egress: EGRESS }),
      })
      await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
      return undefined
    }
    if (verb === 'forget') return void (await snapshots.delete(newestOf(house)?.id ?? ''))
    if (verb === 'revive') {
      using held = snapshots.hold(newestOf(house)?.id ?? '')
      return void (await instances.forkSnapshot(held.snapshot, { name }))
    }
    const { id, state, overlayBytes, network } = instances.resolve(name)
    const guestPort = network.ports[0]?.guestPort ?? 0
    if (verb === 'publish')
      await instances.update(id, {
        network: { ports: [{ hostPort: 0, guestPort: guestPort + 1 }] },
        env: { ...portEnv(guestPort + 1), [SECRET]: `with ${guestPort + 1}` },
      })
    if (verb === 'grow') await instances.update(id, { overlayBytes: overlayBytes + GROWTH, env: diskEnv(overlayBytes + GROWTH) })
    if (verb === 'start') await instances.start(id).then(() => instances.wait(id, { state: 'Running', timeoutMs: 60_000 }))
    if (verb === 'stop') await instances.stop(id)
    if (verb === 'kill') await instances.stop(id, { force: true })
    if (verb === 'delete') await instances.delete(id)
    if (verb === 'standby') await instances.standby(id)
    if (verb === 'restore') await instances.restore(id)
    if (verb === 'fork') await instances.fork(id, { name: theOther(name), fromRunning: true })
    if (verb === 'snapshot')
      await instances.snapshot(id, { kind: state === 'Stopped' ? 'Stopped' : 'Standby', tags: {}, isScheduled: false })
    if (verb === 'go_back') {
      using held = snapshots.hold(newestOf(house, id)?.id ?? '')
      await instances.restoreSnapshot(id, held.snapshot, undefined)
    }
    return undefined
  } catch (error) {
    if (!(error instanceof AppError)) throw error
    return error
  }
}

const SECRET = 'REAL_KEY'
const EGRESS = {
  mode: 'all',
  credentials: { KEY: { source: SECRET, inject: [{ header: 'authorization', format: `\${value}` }] } },
} as const
const GROWTH = 8 * 2 ** 20
const portEnv = (guestPort: number | undefined) => ({ GUEST_PORT: `${guestPort}` })
const diskEnv = (overlayBytes: number) => ({ OVERLAY: `${overlayBytes}` })

const newestOf = (house: TestHouse, id?: InstanceId) => house.snapshots.list(id === undefined ? {} : { sourceId: id })[0]
const idOf = (instances: Instances, name: string) => instances.list().find((instance) => instance.name === name)?.id
const machineOf = (house: TestHouse, name: string) => house.host.running().find(({ spec }) => spec.id === idOf(house.instances, name))
