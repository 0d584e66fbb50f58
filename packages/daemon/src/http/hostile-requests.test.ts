import assert from 'node:assert/strict'
import { test } from 'node:test'
import { endpoint } from '@dormouse/api/endpoints.ts'
import { ROUTE_IDS, type Route, routes } from '@dormouse/api/routes.ts'
import fc from 'fast-check'
import { createLogger } from '../log.ts'
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

/** A log that hears of refusals that the route table does not tell of. */
function listeningLog() {
  const lines = new Set<string>()
  const write = (line: string): void => {
    const { msg, route, code } = JSON.parse(line) as { msg?: string; route?: string; code?: string }
    if (msg === 'error is not listed by its route') lines.add(`${route} ${code}`)
  }
  return { log: createLogger({ level: 'warn', destination: { write } }), unlisted: () => [...lines] }
}

function jsonOf(any: unknown): string | undefined {
  try {
    return JSON.stringify(any)
  } catch {
    return undefined
  }
}

test('each text that is no size, rate, duration or time is refused with a code that the route lists', async (t) => {
  const uses = fakeUses()
  const { log, unlisted } = listeningLog()
  const server = new HttpServer({ ...uses, log })
  t.after(() => server.close())
  uses.instances.add({ name: 'web' })
  uses.images.add('a')
  const wrong = {
    ...{ size: 'x', hotplug_size: 'x', overlay_size: 'x', disk_io_bps: 'x', ttl: 'x', expires_at: '2000-01-01T00:00:00Z', platform: 'a/b' },
    ...{ auto_standby: { idle_timeout: 'x' }, health_check: { type: 'http' }, restart_policy: { backoff: 'x' } },
    ...{ snapshot_policy: { standby_compression_delay: 'x' }, network: { bandwidth_download: 'x' } },
  }
  const said = new Set<string>()
  const ask = async (method: 'POST' | 'PATCH', url: string, payload: object): Promise<void> => {
    const answer = await server.host.inject({ method, url, payload })
    assert.equal(answer.statusCode, 400, `${method} ${url} ${JSON.stringify(payload)}: ${answer.body}`)
    said.add(answer.json().code)
  }
  for (const [field, value] of [...Object.entries(wrong), ['network', { bandwidth_upload: 'x' }] as const]) {
    await ask('POST', '/instances', { name: 'b', image: 'a', [field]: value })
    await ask('PATCH', '/instances/web', { [field]: value })
  }
  for (const verb of ['start', 'restore', 'fork'])
    await ask('POST', `/instances/web/${verb}?timeout=x`, verb === 'fork' ? { name: 'c' } : {})
  await ask('POST', '/instances/web/stop', { timeout: 'x' })
  await ask('POST', '/instances/web/fork', { name: 'c', network: { bandwidth_upload: 'x' } })
  await ask('POST', '/instances/web/standby', { compression_delay: 'x' })
  await ask('POST', '/instances/web/standby', { compression: { enabled: true, level: 99 } })
  await ask('POST', '/tokens', { ttl: 'x' })
  assert.deepEqual(unlisted(), [])
  assert.ok(said.size >= 16, [...said].join())
})

test('nothing that a caller sends is a fault of ours, and each refusal is one that its route lists', { timeout: 120_000 }, async (t) => {
  const uses = fakeUses()
  const { log, unlisted } = listeningLog()
  const server = new HttpServer({ ...uses, log })
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
  assert.deepEqual(unlisted(), [])
})
