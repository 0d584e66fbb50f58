import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { isTight } from '../../host/host-facts.ts'
import { silentLogger } from '../../log.ts'
import { compare, type Kind, Pool, type PoolUses, type Waiting, wantedOf } from './pool.ts'

const GIB = 2 ** 30
const CALM = { availableBytes: 8 * GIB, totalBytes: 16 * GIB, stalledPercent: 0 }

class Machine implements Waiting {
  readonly kind: string
  readonly #ended = Promise.withResolvers<void>()
  readonly ended = this.#ended.promise
  isEnded = false

  constructor(kind: string) {
    this.kind = kind
  }

  /** As a VM that dies by itself. */
  die(): void {
    this.#ended.resolve()
  }

  async end(): Promise<void> {
    this.isEnded = true
  }
}

function house(t: TestContext, changes: Partial<PoolUses> = {}) {
  t.mock.timers.enable({ apis: ['setTimeout', 'Date'] })
  const made: Machine[] = []
  const fails = new Set<string>()
  const pool = new Pool<Machine>({ size: 2, roomBytes: () => 64 * GIB, log: silentLogger, pressure: () => CALM, ...changes })
  const kind = (key: string, memoryBytes = GIB): Kind<Machine> => ({
    key,
    base: key,
    memoryBytes,
    async make() {
      if (fails.has(key)) throw new Error('it hung')
      const machine = new Machine(key)
      made.push(machine)
      return machine
    },
  })
  /** Lets `ms` pass, and whatever is then begun come to its end. */
  const pass = async (ms: number): Promise<void> => {
    for (let left = ms; left > 0; left -= 500) {
      t.mock.timers.tick(Math.min(left, 500))
      for (let turn = 0; turn < 20; turn++) await Promise.resolve()
    }
  }
  const start = (one: Kind<Machine> | undefined): Machine | undefined => {
    using _ = pool.start()
    return pool.take(one)
  }
  t.after(() => pool[Symbol.asyncDispose]())
  return { pool, kind, made, fails, pass, start }
}

const MINUTE = 60_000

test('the first start of a kind finds none waiting, the next ones do', async (t) => {
  const { pool, kind, pass, start } = house(t)
  assert.equal(start(kind('a')), undefined)
  await pass(MINUTE)
  assert.equal(pool.count(), 1)
  const first = start(kind('a'))
  assert.equal(first?.kind, 'a')
  await pass(MINUTE)
  assert.equal(pool.count(), 2)
  const [second, third] = [start(kind('a')), start(kind('a'))]
  assert.equal(new Set([first, second, third]).size, 3, 'no two starts are given the same one')
  assert.equal(start(kind('a')), undefined)
})

test('as many of a kind wait as there were among the last starts', async (t) => {
  const { pool, kind, pass, start, made } = house(t)
  start(kind('a'))
  start(kind('a'))
  await pass(MINUTE)
  assert.equal(
    pool.count(({ kind }) => kind === 'a'),
    2,
  )
  start(kind('b'))
  await pass(MINUTE)
  assert.deepEqual([pool.count(({ kind }) => kind === 'a'), pool.count(({ kind }) => kind === 'b')], [1, 1])
  assert.equal(made.filter(({ isEnded }) => isEnded).length, 1)
})

test('none is made while a start is under way, nor just after it', async (t) => {
  const { pool, kind, pass, start, made } = house(t)
  start(kind('a'))
  const underWay = pool.start()
  await pass(MINUTE)
  assert.equal(made.length, 0)
  underWay[Symbol.dispose]()
  await pass(500)
  assert.equal(made.length, 0)
  await pass(1000)
  assert.equal(made.length, 1)
})

test('those that wait give way to what is admitted, and are not made where there is no room', async (t) => {
  let room = 2 * GIB
  const { pool, kind, pass, start } = house(t, { roomBytes: () => room })
  start(kind('a'))
  start(kind('a'))
  await pass(MINUTE)
  assert.equal(pool.count(), 2)
  room = GIB
  start(undefined)
  assert.equal(pool.count(), 1)
  // The one that is taken needs no room of its own: what it becomes has been admitted.
  room = 0
  assert.ok(start(kind('a')))
  await pass(MINUTE)
  assert.equal(pool.count(), 0)
  room = GIB
  await pass(MINUTE)
  assert.equal(pool.count(), 1)
})

test('all go when the host is short of memory, and come back when it is not', async (t) => {
  let pressure = CALM
  const { pool, kind, pass, start, made } = house(t, { pressure: () => pressure })
  start(kind('a'))
  await pass(MINUTE)
  pressure = { ...CALM, availableBytes: GIB }
  await pass(MINUTE)
  assert.deepEqual([pool.count(), made.every(({ isEnded }) => isEnded)], [0, true])
  pressure = CALM
  // What was given back to the host looks like plenty a moment later.
  await pass(30_000)
  assert.equal(pool.count(), 0)
  await pass(MINUTE)
  assert.equal(pool.count(), 1)
})

test('none is made that would make the host short of memory', async (t) => {
  let pressure = { ...CALM, availableBytes: 2 * GIB }
  const { pool, kind, pass, start } = house(t, { pressure: () => pressure })
  start(kind('a'))
  await pass(MINUTE)
  assert.equal(pool.count(), 0)
  pressure = CALM
  await pass(MINUTE)
  assert.equal(pool.count(), 1)
})

test('what stands on something that cannot be used is ended and forgotten, until a start asks for its like', async (t) => {
  const { pool, kind, pass, start, made } = house(t)
  start(kind('a'))
  start(kind('b'))
  await pass(MINUTE)
  await pool.forget(({ base }) => base === 'a')
  assert.deepEqual([pool.count(), made.find(({ kind }) => kind === 'a')?.isEnded], [1, true])
  await pass(2 * MINUTE)
  assert.equal(
    pool.count(({ kind }) => kind === 'a'),
    0,
  )
  start(kind('a'))
  await pass(MINUTE)
  assert.equal(
    pool.count(({ kind }) => kind === 'a'),
    1,
  )
})

test('a host on which nothing is started any more keeps none', async (t) => {
  const { pool, kind, pass, start } = house(t)
  start(kind('a'))
  await pass(MINUTE)
  assert.equal(pool.count(), 1)
  await pass(61 * MINUTE)
  assert.equal(pool.count(), 0)
})

test('one that ends by itself is cleared away and made anew; what cannot be made is not tried at every turn', async (t) => {
  const { pool, kind, pass, start, made, fails } = house(t)
  start(kind('a'))
  await pass(MINUTE)
  made[0]?.die()
  await pass(2 * MINUTE)
  assert.deepEqual([pool.count(), made.length, made[0]?.isEnded], [1, 2, true])
  fails.add('b')
  start(kind('b'))
  start(kind('b'))
  await pass(30_000)
  fails.delete('b')
  await pass(20_000)
  assert.equal(
    pool.count(({ kind }) => kind === 'b'),
    0,
  )
  await pass(MINUTE)
  assert.equal(
    pool.count(({ kind }) => kind === 'b'),
    2,
  )
})

test('one for an owner is made as soon as it is expected, taken once, and gone when it is not expected any more', async (t) => {
  const { pool, kind, pass, start, made } = house(t)
  const of = (owner: string, key = owner): Kind<Machine> => ({ ...kind(key), owner })
  start(kind('a'))
  pool.expect(of('sleeper', 'first'))
  // It was changed before it was taken: the older one is of no use.
  await pass(MINUTE)
  pool.expect(of('sleeper', 'second'))
  await pass(MINUTE)
  assert.deepEqual([pool.count(), made.find(({ kind }) => kind === 'first')?.isEnded], [2, true])
  assert.equal(start(of('sleeper', 'second'))?.kind, 'second')
  await pass(MINUTE)
  assert.deepEqual([pool.count(), start(of('sleeper', 'second'))], [1, undefined], 'one that woke is not expected to wake once more')
  pool.expect(of('other'))
  await pass(MINUTE)
  await pool.forget(({ owner }) => owner === 'other')
  assert.deepEqual([pool.count(), pool.count(({ kind }) => kind === 'a')], [1, 1])
})

test('at the end all are ended, also one that is being made', async (t) => {
  const { pool, kind, pass, start, made } = house(t)
  const { promise: mayFinish, resolve: finish } = Promise.withResolvers<void>()
  const slow = kind('a')
  start({
    ...slow,
    make: async (step) => {
      await mayFinish
      return slow.make(step)
    },
  })
  await pass(2000)
  const disposing = pool[Symbol.asyncDispose]()
  finish()
  await disposing
  assert.deepEqual([made.length, made[0]?.isEnded, pool.count()], [1, true, 0])
})

test('what is wanted is what fits, in the order of the last starts', () => {
  const small = { key: 'small', memoryBytes: GIB }
  const large = { key: 'large', memoryBytes: 4 * GIB }
  assert.deepEqual(wantedOf([large, small], 2 * GIB), [small])
  assert.deepEqual(wantedOf([small, large, small], 5 * GIB), [small, large])
  const waiting = [{ kind: small }, { kind: small }]
  assert.deepEqual(compare(waiting, [small, large]), { surplus: [waiting[1]], missing: [large] })
})

test('a host is short of memory by what is left, or by what waits for it', () => {
  assert.equal(isTight(CALM), false)
  assert.equal(isTight({ ...CALM, availableBytes: GIB }), true)
  assert.equal(isTight({ ...CALM, stalledPercent: 20 }), true)
})
