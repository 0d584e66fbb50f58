import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Database } from '../store/database.ts'
import { Events } from './events.ts'

function house(config: { keep?: number; liveBuffer?: number } = {}) {
  const db = Database.open(':memory:')
  const events = new Events({ db, config })
  const record = (n: number) => db.transaction(() => events.record({ kind: 'instance.changed', subject: 'x', data: { n } }))
  return { db, events, record, [Symbol.dispose]: () => db.close() }
}

/** Reads until `count` events have come. */
async function take(events: Events, count: number, after?: number): Promise<number[]> {
  const seen: number[] = []
  for await (const batch of events.subscribe(after === undefined ? {} : { after })) {
    seen.push(...batch.map(({ data }) => data.n as number))
    if (seen.length >= count) break
  }
  return seen
}

test('a subscriber without an id hears what comes from then on', async () => {
  using at = house()
  at.record(1)
  const reading = take(at.events, 2)
  await new Promise((resolve) => setImmediate(resolve))
  at.record(2)
  at.record(3)
  assert.deepEqual(await reading, [2, 3])
})

test('a subscriber with the id it last saw misses nothing and hears nothing twice', async () => {
  using at = house()
  for (let n = 1; n <= 500; n++) at.record(n)
  const reading = take(at.events, 510, 7)
  for (let n = 501; n <= 517; n++) {
    await new Promise((resolve) => setImmediate(resolve))
    at.record(n)
  }
  assert.deepEqual(
    await reading,
    Array.from({ length: 510 }, (_, index) => index + 8),
  )
})

test('however records and reads interleave, each event comes once and in order', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 0, max: 5 }), { minLength: 1, maxLength: 30 }),
      fc.integer({ min: 0, max: 10 }),
      async (bursts, before) => {
        using at = house({ liveBuffer: 3 })
        let n = 0
        for (; n < before; ) at.record(++n)
        const total = before + bursts.reduce((sum, burst) => sum + burst, 0)
        if (total === 0) return
        const reading = take(at.events, total, 0)
        for (const burst of bursts) {
          for (let i = 0; i < burst; i++) at.record(++n)
          await new Promise((resolve) => setImmediate(resolve))
        }
        assert.deepEqual(
          await reading,
          Array.from({ length: total }, (_, index) => index + 1),
        )
      },
    ),
    { numRuns: 50 },
  )
})

test('a slow reader loses its place in the buffer, not its events', async () => {
  using at = house({ liveBuffer: 2 })
  const seen: number[] = []
  const end = new AbortController()
  const reading = (async () => {
    for await (const batch of at.events.subscribe({ signal: end.signal })) {
      seen.push(...batch.map(({ data }) => data.n as number))
      if (seen.length === 1) for (let n = 2; n <= 50; n++) at.record(n)
      if (seen.length === 50) end.abort()
    }
  })()
  await new Promise((resolve) => setImmediate(resolve))
  at.record(1)
  await reading
  assert.equal(seen.length, 50)
})

test('an event of a change that was rolled back is never told', async () => {
  using at = house()
  const reading = take(at.events, 1)
  await new Promise((resolve) => setImmediate(resolve))
  assert.throws(() =>
    at.db.transaction(() => {
      at.events.record({ kind: 'instance.changed', subject: 'x', data: { n: 1 } })
      throw new Error('no')
    }),
  )
  at.record(2)
  assert.deepEqual(await reading, [2])
})

test('a subscriber who leaves is forgotten, also while it waits', async () => {
  using at = house()
  const end = new AbortController()
  const reading = Array.fromAsync(at.events.subscribe({ signal: end.signal }))
  await new Promise((resolve) => setImmediate(resolve))
  end.abort()
  assert.deepEqual((await reading).flat(), [])
})

test('an id of the future, from another database, gives what comes from now on', async () => {
  using at = house()
  at.record(1)
  const reading = take(at.events, 1, 1_000_000)
  await new Promise((resolve) => setImmediate(resolve))
  at.record(2)
  assert.deepEqual(await reading, [2])
})

test('old events are pruned, and ids go on', () => {
  using at = house({ keep: 100 })
  for (let n = 1; n <= 2500; n++) at.record(n)
  const count = Number(at.db.prepare('SELECT count(*) AS n FROM events').get()?.n)
  assert.ok(count >= 100 && count < 1200, `${count}`)
  assert.equal(at.events.latestId(), 2500)
})

test('of events that were asked for and are gone one is told first, and then of what there is', async () => {
  using at = house({ keep: 10 })
  for (let n = 1; n <= 1000; n++) at.record(n)
  const first = async (after: number) => {
    for await (const batch of at.events.subscribe({ after })) if (batch.length > 0) return batch
    return []
  }
  const [lost, ...others] = await first(7)
  assert.deepEqual([lost?.id, lost?.kind, lost?.data, others], [990, 'events.lost', { after: 7, oldest: 991 }, []])
  assert.deepEqual((await first(0))[0]?.data, { after: 0, oldest: 991 })
  // Whoever goes on after it has missed nothing more.
  for (const after of [990, 999]) assert.equal((await first(after))[0]?.id, after + 1)
})

test('a reader so slow that rows go before it has read them is told of the gap, too', async () => {
  using at = house({ keep: 5, liveBuffer: 2 })
  const reading = at.events.subscribe({})
  await reading.next()
  for (let n = 1; n <= 1000; n++) at.record(n)
  const kinds = async () => (await reading.next()).value?.map(({ id, kind }) => [id, kind])
  assert.deepEqual(await kinds(), [[995, 'events.lost']])
  assert.equal((await kinds())?.length, 5)
  await reading.return()
})
