import assert from 'node:assert/strict'
import { test } from 'node:test'
import { endpoint } from './endpoints.ts'
import { openApiDocument } from './openapi.ts'
import { ROUTE_IDS, type Route, routes } from './routes.ts'

const table = ROUTE_IDS.map((id) => ({ id, ...endpoint(id), route: routes[id] as Route }))
const keys = (schema: unknown): string[] => Object.keys((schema as { properties?: object } | undefined)?.properties ?? {})

test('no two routes share method and path', () => {
  assert.equal(new Set(table.map(({ method, path }) => `${method} ${path}`)).size, table.length)
})

test('the parameters of a path are those of its schema', () => {
  for (const { id, path, route } of table) {
    assert.deepEqual([...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]).sort(), keys(route.params).sort(), id)
  }
})

test('requests refuse unknown fields, answers leave room for new ones', () => {
  for (const { id, route } of table) {
    for (const schema of [route.query, route.body]) {
      if (schema) assert.equal((schema as { additionalProperties?: unknown }).additionalProperties, false, id)
    }
    assert.notEqual((route.answer as { additionalProperties?: unknown } | undefined)?.additionalProperties, false, id)
  }
})

test('every list comes in pages', () => {
  for (const { id, method, route } of table) {
    if (method !== 'GET' || (route.answer as { type?: string } | undefined)?.type !== 'array') continue
    assert.deepEqual([keys(route.query).includes('limit'), keys(route.query).includes('cursor')], [true, true], id)
  }
})

test('every operation of the contract is here: 63 of it and our own', () => {
  const ours = [
    'execInstance',
    'copyInstanceFiles',
    'importImage',
    'updateVolume',
    'pruneImages',
    'getImageProgress',
    'followEvents',
    'createToken',
    'getMetrics',
    'listTokens',
    'revokeToken',
    'revokeTokens',
    'createTicket',
    'listAudit',
    'getDiskUsage',
    'prune',
  ]
  assert.equal(table.filter(({ id }) => !ours.includes(id)).length, 63)
})

test('the OpenAPI document refers to nothing that it does not hold', () => {
  const document = openApiDocument({ version: '1' })
  const text = JSON.stringify(document)
  const names = Object.keys((document.components as { schemas: object }).schemas)
  for (const [, name] of text.matchAll(/"#\/components\/schemas\/(\w+)"/g)) assert.ok(names.includes(name ?? ''), name)
  const responses = Object.keys((document.components as { responses: object }).responses)
  for (const [, name] of text.matchAll(/"#\/components\/responses\/(\w+)"/g)) assert.ok(responses.includes(name ?? ''), name)
  assert.ok(!text.includes('"$id"'))
  for (const { id } of table) assert.ok(text.includes(`"operationId":"${id}"`), id)
})

test('the OpenAPI document tells of each stream what an event of it is, that null is no body, and what is answered to no request', () => {
  interface Operation {
    readonly responses: Readonly<Record<string, { content?: Record<string, { schema: { required?: string[] } }> }>>
    readonly requestBody?: { readonly content: Readonly<Record<string, { schema: unknown }>> }
  }
  const { paths } = openApiDocument({ version: '1' }) as { paths: Record<string, Record<string, Operation>> }
  const nothing = { anyOf: [{ type: 'object', additionalProperties: false, properties: {} }, { type: 'null' }] }
  for (const { id, method, path, route } of table) {
    const { responses, requestBody } = paths[path]?.[method.toLowerCase()] ?? { responses: {} }
    if (route.stream === 'sse') assert.deepEqual(responses[route.status]?.content?.['text/event-stream']?.schema.required, ['data'], id)
    if (id === 'restoreInstance') assert.partialDeepStrictEqual(requestBody?.content['application/json']?.schema, nothing)
    const broken = Object.keys(responses).filter((status) => ['408', '413', '415', '431'].includes(status))
    assert.deepEqual(broken, method === 'GET' ? ['408', '431'] : ['408', '413', '415', '431'], id)
  }
})

test('the OpenAPI document tells where it holds, and which headers an answer has', () => {
  interface Told {
    readonly servers: readonly { readonly url: string }[]
    readonly paths: Record<string, Record<string, { responses: Record<string, { headers?: object }> }>>
  }
  const { servers, paths } = openApiDocument({ version: '1' }) as unknown as Told
  assert.deepEqual(
    servers.map(({ url }) => url),
    ['/'],
  )
  const headersAt = (path: string, method: string, status: number) => Object.keys(paths[path]?.[method]?.responses[status]?.headers ?? {})
  assert.deepEqual(headersAt('/instances', 'get', 200), ['x-next-cursor'])
  assert.deepEqual(headersAt('/pushes', 'get', 200), ['x-next-cursor'])
  assert.deepEqual(headersAt('/pushes', 'post', 202), ['location', 'retry-after'])
  assert.deepEqual(headersAt('/instances', 'post', 201), [])
})

test('one name is one schema in the OpenAPI document', () => {
  const seen = new Map<string, string>()
  const walk = (value: unknown): void => {
    if (typeof value !== 'object' || value === null) return
    const { $id, ...rest } = value as { $id?: string }
    if ($id !== undefined) {
      const text = JSON.stringify(rest)
      assert.equal(seen.get($id) ?? text, text, $id)
      seen.set($id, text)
    }
    for (const inner of Object.values(value)) walk(inner)
  }
  for (const { route } of table) walk([route.params, route.query, route.body, route.answer])
  assert.ok(seen.size > 30)
})
