import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Compile } from 'typebox/compile'
import { isName, matchesTags, NAME_MAX, Name, TAGS_MAX, Tags } from './names.ts'
import { decodeQuery, encodeQuery } from './query.ts'

const nameSchema = Compile(Name)
const tagsSchema = Compile(Tags)

const letters = fc.constantFrom(...'abz019-', 'A', '_', '.', ' ', '\n', '\0', 'é', '٣', '🐁')
const nearlyName = fc.string({ unit: letters, maxLength: NAME_MAX + 2 })
const tagText = (maxLength: number, minLength: number) => fc.string({ unit: fc.constantFrom(...'aZ09 _.:/=+@-'), minLength, maxLength })
const tags = fc.dictionary(tagText(128, 1), tagText(256, 0), { maxKeys: TAGS_MAX, noNullPrototype: false })

test('a name for one is a name for all: the schema, the check and what may follow it', () => {
  fc.assert(
    fc.property(fc.oneof(nearlyName, fc.string({ unit: 'binary' })), (text) => {
      assert.equal(isName(text), nameSchema.Check(text))
      // It becomes a part of host names and of paths.
      if (isName(text)) assert.match(text, /^(?!-)[a-z0-9-]{1,63}(?<!-)$/)
    }),
    { numRuns: 2000 },
  )
  assert.ok(isName('a'.repeat(NAME_MAX)) && !isName('a'.repeat(NAME_MAX + 1)) && !isName('a\n'))
})

test('tags that may be given can be asked for: they come through a query as they were', () => {
  fc.assert(
    fc.property(tags, (given) => {
      assert.ok(tagsSchema.Check(given))
      const { tags: got } = decodeQuery(encodeQuery({ tags: given })) as { tags?: Record<string, string> }
      assert.deepEqual({ ...got }, { ...given })
    }),
  )
})

test('a tag with another letter, too long or one too many is refused', () => {
  const text = fc.string({ unit: 'binary', minLength: 1, maxLength: 8 })
  fc.assert(
    fc.property(text, (key) => {
      const isPlain = /^[A-Za-z0-9 _.:/=+@-]+$/.test(key) && !key.includes('\n')
      assert.equal(tagsSchema.Check(Object.fromEntries([[key, 'x']])), isPlain)
      assert.equal(tagsSchema.Check({ x: key }), isPlain)
    }),
  )
  assert.ok(!tagsSchema.Check({ ['a'.repeat(129)]: '' }) && !tagsSchema.Check({ a: 'a'.repeat(257) }) && !tagsSchema.Check({ '': 'a' }))
  assert.ok(!tagsSchema.Check(Object.fromEntries(Array.from({ length: TAGS_MAX + 1 }, (_, n) => [`k${n}`, '']))))
})

test('whoever has all that is asked for is found, whoever lacks one of it is not', () => {
  fc.assert(
    fc.property(tags, fc.nat(), tagText(8, 1), (own, at, other) => {
      const entries = Object.entries(own)
      const some = Object.fromEntries(entries.slice(0, at % (entries.length + 1)))
      assert.ok(matchesTags(own, own) && matchesTags(own, some) && matchesTags(own, {}))
      assert.ok(!matchesTags(own, { ...some, [`${other}+${own[other] ?? ''}`.padEnd(129, 'x')]: '' }))
      const [key, value] = entries[0] ?? []
      if (key !== undefined) assert.ok(!matchesTags(own, { [key]: `${value}x` }))
    }),
  )
  for (const key of ['__proto__', 'constructor', 'toString']) assert.ok(!matchesTags({}, JSON.parse(`{"${key}":"x"}`)), key)
})
