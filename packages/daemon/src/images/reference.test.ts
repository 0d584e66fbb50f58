import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import fc from 'fast-check'
import { formatReference, normaliseReference, parseReference } from './reference.ts'

const SHA = `sha256:${'a'.repeat(64)}`

test('a short name gets the default registry, the library and the tag latest', () => {
  for (const [given, full] of [
    ['alpine', 'docker.io/library/alpine:latest'],
    ['alpine:3.20', 'docker.io/library/alpine:3.20'],
    ['grafana/grafana', 'docker.io/grafana/grafana:latest'],
    ['docker.io/alpine', 'docker.io/library/alpine:latest'],
    ['index.docker.io/library/alpine', 'docker.io/library/alpine:latest'],
    ['ghcr.io/a/b/c:v1', 'ghcr.io/a/b/c:v1'],
    ['localhost/x', 'localhost/x:latest'],
    ['localhost:5000/x:y', 'localhost:5000/x:y'],
    ['127.0.0.1:5000/a/b', '127.0.0.1:5000/a/b:latest'],
    ['[::1]:5000/a', '[::1]:5000/a:latest'],
    ['Registry.Example.COM/a', 'registry.example.com/a:latest'],
    [`alpine@${SHA}`, `docker.io/library/alpine@${SHA}`],
    [`alpine:3@${SHA}`, `docker.io/library/alpine@${SHA}`],
    ['a__b/c-.d'.replace('-.', '-'), 'docker.io/a__b/c-d:latest'],
  ] as const) {
    assert.equal(normaliseReference(given), full)
  }
})

test('what is no reference is refused as invalid_name, with the reason', () => {
  for (const bad of [
    '',
    ' ',
    'UPPER',
    'a:',
    'a:b:c',
    'a/../b',
    '../etc',
    '/abs',
    'a//b',
    'a/',
    'host.example:99999/a',
    'host.example:0/a',
    'x@sha256:abc',
    `x@${SHA.toUpperCase()}`,
    'https://ghcr.io/a',
    'a b',
    'a\n',
    `a:${'x'.repeat(129)}`,
    `${'a/'.repeat(200)}a`,
    '-a.example/x',
    'a.example:5x/y',
    'x'.repeat(5000),
    'a:.x',
    'é',
  ]) {
    assert.throws(
      () => parseReference(bad),
      (error) => error instanceof AppError && error.code === 'invalid_name',
      JSON.stringify(bad),
    )
  }
})

test('the full form parses to itself, and nothing else than invalid_name is ever thrown', () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.stringMatching(/^[a-zA-Z0-9./:@_[\]-]{1,40}$/)), (text) => {
      let full: string
      try {
        full = normaliseReference(text)
      } catch (error) {
        assert.ok(error instanceof AppError && error.code === 'invalid_name')
        return
      }
      assert.equal(formatReference(parseReference(full)), full)
    }),
    { numRuns: 1000 },
  )
})
