import assert from 'node:assert/strict'
import { test } from 'node:test'
import { endpoint } from '@dormouse/api/endpoints.ts'
import { ROUTE_IDS, type Route, routes } from '@dormouse/api/routes.ts'
import fc from 'fast-check'
import { fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

// Those that stay open are for other tests.
const ids = ROUTE_IDS.filter((id) => (routes[id] as Route).stream === undefined && id !== 'waitForInstance')

const word = fc.oneof(
  fc.string({ unit: 'grapheme', maxLength: 12 }).filter((text) => text.isWellFormed()),
  fc.constantFrom(
    'web',
    '..',
    '.',
    '%00',
    '\0',
    '__proto__',
    'constructor',
    'a/b',
    '{}',
    '-1',
    '1e999',
    'NaN',
    '\r\nx: y',
    '{{7*7}}',
    "'; DROP TABLE instances; --",
  ),
)
const value: fc.Arbitrary<unknown> = fc.oneof(
  word,
  fc.anything({ maxDepth: 3 }).filter((any) => jsonOf(any) !== undefined),
  fc.constantFrom('512MB', '0s', '2030-01-01T00:00:00Z', 'alpine', true, 0, -1, 1e308, Number.MAX_SAFE_INTEGER, 1e-7),
  fc.constantFrom('99999999999h', '1ns', '-1h', '9007199254740993', '8191PB', '0.0000001B', '+275760-09-13T00:00:00Z', '9'.repeat(32)),
)
const NAMES = [
  'name',
  'image',
  'size',
  'vcpus',
  'env',
  'tags',
  'network',
  'ports',
  'ttl',
  'expires_at',
  'overlay_size',
  'hotplug_size',
  'disk_io_bps',
  'snapshot_policy',
  'auto_standby',
  'cmd',
  'volumes',
  'platform',
  'target',
  'credentials',
  'timeout',
  'force',
  'scopes',
  'subject',
]
const body = fc.oneof(
  fc.dictionary(fc.oneof(fc.constantFrom(...NAMES), word), value, { maxKeys: 6 }).map((fields) => jsonOf(fields) ?? ''),
  fc.constantFrom(
    '',
    'null',
    '[]',
    '{',
    '"',
    '{"name":"web","image":"a"}',
    '{"__proto__":{"name":"x"}}',
    '{"name":"a","name":"b","image":"c"}',
    '{"name":"d","image":"c","ttl":"99999999999h"}',
    '{"name":"e","image":"c","expires_at":"9999-12-31T23:59:59.999Z"}',
    '{"ttl":"2562047h"}',
  ),
  word,
)

function jsonOf(any: unknown): string | undefined {
  try {
    return JSON.stringify(any)
  } catch {
    return undefined
  }
}

test('nothing that a caller sends is a fault of ours', { timeout: 120_000 }, async (t) => {
  const uses = fakeUses()
  const server = new HttpServer(uses)
  t.after(() => server.close())
  uses.instances.add({ name: 'web' })
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...ids),
      fc.array(word, { minLength: 2, maxLength: 2 }),
      fc.dictionary(fc.oneof(fc.constantFrom('limit', 'cursor', 'state', 'tags[a]', 'tags', 'wait', 'path', 'name', 'tail'), word), word, {
        maxKeys: 3,
      }),
      body,
      fc.constantFrom('application/json', 'application/x-tar', 'text/plain', 'application/json; charset=utf-16', 'multipart/form-data'),
      async (id, params, query, payload, type) => {
        const { method, path } = endpoint(id)
        let next = 0
        const url = path.replace(/\{\w+\}/g, () => encodeURIComponent(params[next++] ?? 'x'))
        const search = new URLSearchParams(query as Record<string, string>).toString()
        const hasBody = method !== 'GET' && method !== 'DELETE'
        const answer = await server.host.inject({
          method,
          url: search === '' ? url : `${url}?${search}`,
          ...(hasBody && { payload, headers: { 'content-type': type } }),
        })
        const isLater = (routes[id] as Route).later !== undefined
        assert.ok(
          answer.statusCode < 500 || (isLater && answer.statusCode === 501),
          `${method} ${url}?${search} ${payload}: ${answer.body}`,
        )
        if (answer.statusCode >= 400) {
          const problem = answer.json()
          assert.ok(problem.code !== undefined && problem.message.length > 0, answer.body)
        }
      },
    ),
    { numRuns: 1500 },
  )
})
