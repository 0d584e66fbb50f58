import assert from 'node:assert/strict'
import { test } from 'node:test'
import { routes } from '@dormouse/api/routes.ts'
import fc from 'fast-check'
import { type PlaceOf, pageOf } from './list-page.ts'

interface Item {
  readonly key: string
  readonly atMs: number
}
const place: PlaceOf<Item> = { key: ({ key }) => key, createdAt: ({ atMs }) => new Date(atMs).toISOString() }
const item = (n: number): Item => ({ key: `k${n}`, atMs: 1e12 + n * 1000 })
const newestFirst = (count: number): Item[] => Array.from({ length: count }, (_, n) => item(count - n))
const inOrder = (items: Iterable<Item>): Item[] => [...items].sort((a, b) => b.atMs - a.atMs || (a.key < b.key ? 1 : -1))

/** Keys of all pages. `listOf` is asked for the list before each page. */
function walk(limit: number, listOf: (page: number) => readonly Item[]): string[] {
  const keys: string[] = []
  let cursor: string | undefined
  for (let page = 0; page === 0 || cursor !== undefined; page++) {
    const shown = pageOf(listOf(page), place, { limit, cursor })
    keys.push(...shown.items.map(place.key))
    cursor = shown.nextCursor
  }
  return keys
}

/** Many of one moment, as forks are. */
const anyKey = fc.string({ unit: fc.constantFrom('a', 'b', ':', '\n', '/'), minLength: 1, maxLength: 4 })
const anyItems = fc
  .uniqueArray(fc.record({ key: anyKey, atMs: fc.nat(3).map((n) => 1e12 + n) }), { selector: ({ key }) => key, maxLength: 24 })
  .map(inOrder)

test('pages put together are the list', () => {
  fc.assert(
    fc.property(anyItems, fc.integer({ min: 1, max: 12 }), (items, limit) => {
      assert.deepEqual(
        walk(limit, () => items),
        items.map(place.key),
      )
    }),
  )
})

test('without a limit it is all there, and there is no next page', () => {
  assert.deepEqual(pageOf(newestFirst(3), place, {}), { items: newestFirst(3), nextCursor: undefined })
})

test('whatever is made and deleted between pages, each page goes on where the one before ended: nothing twice, nothing that stayed is missed', () => {
  const anyDeed = fc.record({ makes: fc.nat(3), deletes: fc.array(fc.nat(1000), { maxLength: 4 }) })
  fc.assert(
    fc.property(anyItems, fc.integer({ min: 1, max: 5 }), fc.array(anyDeed, { maxLength: 12 }), (items, limit, deeds) => {
      const stayed = new Map(items.map((one) => [one.key, one]))
      let list = [...items]
      let made = 0
      const keys = walk(limit, (page) => {
        const { makes, deletes } = deeds[page] ?? { makes: 0, deletes: [] }
        for (const n of deletes) {
          const [gone] = list.splice(n % Math.max(1, list.length), 1)
          if (gone) stayed.delete(gone.key)
        }
        for (let n = 0; n < makes; n++) list.push({ key: `new ${made++}`, atMs: 2e12 + made })
        list = inOrder(list)
        return list
      })
      assert.equal(new Set(keys).size, keys.length)
      for (const { key } of stayed.values()) assert.ok(keys.includes(key), key)
    }),
  )
})

test('those of one moment are not skipped when the one that ended a page is deleted', () => {
  const all = inOrder(['a', 'b', 'c', 'd'].map((key) => ({ key, atMs: 1e12 })))
  assert.deepEqual(
    walk(2, (page) => (page === 0 ? all : all.filter(({ key }) => key !== 'c'))),
    ['d', 'c', 'b', 'a'],
  )
})

test('a cursor that no list has given is refused', () => {
  const written = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url')
  const time = new Date(1e12).toISOString()
  const hostile = [
    ...['', 'x', '%%%', written({}), written([1, 2]), written(null), written([time]), written(['2001', 'k']), written(['zzzz', 'k'])],
    ...[written([time, 'k', 1]), `${written([time, 'k'])}=`, ` ${written([time, 'k'])}`, written([`${time}\n`, 'k'])],
  ]
  for (const cursor of hostile) assert.throws(() => pageOf(newestFirst(3), place, { cursor }), { code: 'invalid_request' }, cursor)
})

test('no text makes it fail in another way, or give what is not in the list', () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.base64String(),
        fc.json().map((text) => Buffer.from(text).toString('base64url')),
      ),
      (cursor) => {
        try {
          const { items } = pageOf(newestFirst(5), place, { cursor, limit: 3 })
          assert.ok(items.length <= 3)
        } catch (error) {
          assert.equal((error as { code?: unknown }).code, 'invalid_request')
        }
      },
    ),
  )
})

test('the cursor of the longest name there can be is one that a list takes', () => {
  const long = [1, 2].map((n) => ({ key: `${'x'.repeat(640)}\nlinux/arm64/v8${n}`, atMs: 1e12 }))
  const { nextCursor = '' } = pageOf(inOrder(long), place, { limit: 1 })
  const { cursor } = routes.listImages.query.properties as unknown as { cursor: { maxLength: number } }
  assert.ok(nextCursor.length <= cursor.maxLength, `${nextCursor.length} characters`)
})
