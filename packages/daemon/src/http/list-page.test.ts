import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type PlaceOf, pageOf } from './list-page.ts'

interface Item {
  readonly key: string
  readonly created_at: string
}
const item = (n: number): Item => ({ key: `k${n}`, created_at: new Date(1e12 + n * 1000).toISOString() })
const newestFirst = (count: number): Item[] => Array.from({ length: count }, (_, n) => item(count - n))
const place: PlaceOf<Item> = { key: ({ key }) => key, createdAt: ({ created_at }) => created_at }

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

test('pages put together are the list', () => {
  fc.assert(
    fc.property(fc.nat(40), fc.integer({ min: 1, max: 12 }), (count, limit) => {
      assert.deepEqual(
        walk(limit, () => newestFirst(count)),
        newestFirst(count).map(place.key),
      )
    }),
  )
})

test('without a limit it is all there, and there is no next page', () => {
  assert.deepEqual(pageOf(newestFirst(3), place, {}), { items: newestFirst(3), nextCursor: undefined })
})

test('what is made meanwhile shifts nothing, and what is deleted loses nothing else', () => {
  const first = newestFirst(6)
  const later = [item(7), ...first.filter(({ key }) => key !== 'k5')]
  assert.deepEqual(
    walk(2, (page) => (page === 0 ? first : later)),
    ['k6', 'k5', 'k4', 'k3', 'k2', 'k1'],
  )
})

test('a cursor that no list has given is refused', () => {
  for (const cursor of ['', 'x', '%%%', Buffer.from('{}').toString('base64url'), Buffer.from('[1,2]').toString('base64url')]) {
    assert.throws(() => pageOf(newestFirst(3), place, { cursor }), { code: 'invalid_request' }, cursor)
  }
})
