import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createId } from './create-id.ts'

test('ids look like those of CUID2 and are all different, their first twelve too', () => {
  const ids = Array.from({ length: 20_000 }, createId)
  for (const id of ids) assert.match(id, /^[a-z][a-z0-9]{23}$/)
  assert.equal(new Set(ids.map((id) => id.slice(0, 12))).size, ids.length)
})

test('no character is likelier than another', () => {
  const counts = new Map<string, number>()
  for (let n = 0; n < 20_000; n += 1) for (const character of createId().slice(1)) counts.set(character, (counts.get(character) ?? 0) + 1)
  const expected = (20_000 * 23) / 36
  assert.equal(counts.size, 36)
  // Eight standard deviations.
  for (const [character, count] of counts) assert.ok(Math.abs(count - expected) < 8 * Math.sqrt(expected), `${character}: ${count}`)
})
