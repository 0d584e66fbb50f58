import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { nameFilter } from './name-filter.ts'

test('a star stands for any text, everything else for itself', () => {
  const fits = (pattern: string, name: string) => nameFilter([pattern])(name)
  for (const [pattern, name] of [
    ['*', ''],
    ['*', 'a'],
    ['docker.io/*', 'docker.io/library/alpine:3'],
    ['*/alpine:*', 'docker.io/library/alpine:3'],
    ['a*b*c', 'a-b-b-c'],
    ['a**b', 'ab'],
    ['.', '.'],
  ] as const)
    assert.ok(fits(pattern, name), `${pattern} ${name}`)
  for (const [pattern, name] of [
    ['', 'a'],
    ['docker.io/*', 'other/docker.io/a'],
    ['a*a', 'a'],
    ['a*b*c', 'a-c'],
    ['.', 'a'],
    ['*b*b', 'ab'],
  ] as const)
    assert.ok(!fits(pattern, name), `${pattern} ${name}`)
  assert.ok(!nameFilter([])('a'))
})

test('it judges as a regular expression would', () => {
  const letters = fc.constantFrom('a', 'b', '*')
  fc.assert(
    fc.property(
      fc.string({ unit: letters, maxLength: 6 }),
      fc.string({ unit: fc.constantFrom('a', 'b'), maxLength: 8 }),
      (pattern, name) => {
        assert.equal(nameFilter([pattern])(name), new RegExp(`^${pattern.replaceAll('*', '.*')}$`).test(name))
      },
    ),
  )
})
