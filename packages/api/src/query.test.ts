import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Type } from 'typebox'
import { decodeQuery, encodeQuery, typedQuery } from './query.ts'

const plain = (value: unknown) => JSON.parse(JSON.stringify(value))

test('objects travel with their keys in brackets', () => {
  assert.equal(
    encodeQuery({ state: 'Running', tags: { 'a b': 'x&y' }, limit: 3, none: undefined }),
    '?state=Running&tags%5Ba%20b%5D=x%26y&limit=3',
  )
  assert.deepEqual(plain(decodeQuery('state=Running&tags[a%20b]=x%26y')), { state: 'Running', tags: { 'a b': 'x&y' } })
})

test('what is encoded decodes as the same texts', () => {
  const key = fc.string({ minLength: 1, unit: 'grapheme' }).filter((text) => !/[[\]]/.test(text) && text.isWellFormed())
  const value = fc.string({ unit: 'grapheme' }).filter((text) => text.isWellFormed())
  fc.assert(
    fc.property(
      fc.dictionary(key, value, { noNullPrototype: false }),
      fc.dictionary(key, value, { minKeys: 1, noNullPrototype: false }),
      (flat, tags) => {
        fc.pre(!Object.hasOwn(flat, 'tags'))
        assert.deepEqual(plain(decodeQuery(encodeQuery({ ...flat, tags }))), plain({ ...flat, tags }))
      },
    ),
  )
})

test('keys that would reach into prototypes are keys like any other', () => {
  const decoded = decodeQuery('__proto__=1&tags[__proto__]=2&constructor[prototype]=3')
  assert.equal(({} as Record<string, unknown>).prototype, undefined)
  assert.deepEqual(Object.keys(decoded).sort(), ['__proto__', 'constructor', 'tags'])
})

test('a key that comes twice is told apart from one that comes once', () => {
  assert.deepEqual(plain(decodeQuery('a=1&a=2')), { a: ['1', '2'] })
})

test('texts take the types of the schema, and what does not fit stays text', () => {
  const schema = Type.Object({ n: Type.Integer(), b: Type.Boolean(), s: Type.String({ default: 'x' }) })
  assert.deepEqual(typedQuery({ n: '12', b: 'true' }, schema), { n: 12, b: true, s: 'x' })
  assert.deepEqual(typedQuery({ n: '12x', b: 'yes', s: '1' }, schema), { n: '12x', b: 'yes', s: '1' })
  assert.equal(typedQuery({ n: '99999999999999999999' }, schema).n, '99999999999999999999')
})
