/** Every route of the table × every kind of caller. A route that is added without a scope, or beside the table, does not get past here. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { endpoint, type RouteId } from '@dormouse/api/endpoints.ts'
import { ROUTE_IDS, type Route, routes } from '@dormouse/api/routes.ts'
import { SCOPES } from '@dormouse/api/tokens.ts'
import { createApp } from './app.ts'
import { signToken } from './auth.ts'
import { fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

const uses = fakeUses()
const server = new HttpServer(uses)

const urlOf = (id: RouteId): string => endpoint(id).path.replace(/\{\w+\}/g, 'x')
const table = ROUTE_IDS.map((id) => ({ id, route: routes[id] as Route, method: endpoint(id).method, url: urlOf(id) }))

const tokenFor = async (scopes: readonly string[] | undefined): Promise<string> =>
  (await server.authority.mint({ subject: 'a', ttlMs: 60_000, ...(scopes && { scopes }) })).token

let asked = 0

async function ask({ method, url }: Pick<(typeof table)[number], 'method' | 'url'>, token?: string) {
  const headers = token === undefined ? {} : { authorization: `Bearer ${token}` }
  // Each from an address of its own: none is refused too often.
  const remoteAddress = `192.0.${asked >> 8}.${asked++ & 255}`
  const answer = await server.tcp.inject({ method, url, headers, remoteAddress, payloadAsStream: true })
  const body = answer.stream()
  if (!String(answer.headers['content-type']).includes('json')) {
    // A stream that stays open is left.
    body.destroy()
    return { status: answer.statusCode, code: undefined }
  }
  let text = ''
  for await (const chunk of body) text += chunk
  return { status: answer.statusCode, code: (JSON.parse(text) as { code?: string }).code }
}

test.after(() => server.close())

test('every route of the table says who may: a scope that exists, or one of three words', () => {
  for (const { id, route } of table)
    assert.ok([...SCOPES, 'any', 'open', 'host'].includes(route.scope), `${id} has the scope ${route.scope}`)
  // Whoever opens another one to everyone has to say so here.
  assert.deepEqual(
    table.filter(({ route }) => route.scope === 'open').map(({ id }) => id),
    ['getHealth'],
  )
})

test('what writes needs a scope to write, what deletes one to delete', () => {
  for (const { id, route, method } of table) {
    if (!route.scope.includes(':')) continue
    if (method !== 'GET') assert.doesNotMatch(route.scope, /:read$/, id)
    if (method === 'DELETE' && id !== 'detachVolume') assert.match(route.scope, /:delete$/, id)
  }
})

for (const { id, route, method, url } of table) {
  test(`${id}: no token, a wrong scope, the right one, one that has expired, one that was revoked`, async () => {
    const at = { method, url }
    const isOpen = route.scope === 'open'
    assert.equal((await ask(at)).status, isOpen ? 200 : 401)
    if (isOpen) return

    const others = SCOPES.filter((scope) => scope !== route.scope)
    const wrong = await ask(at, await tokenFor(route.scope === 'any' ? [] : others))
    if (route.scope === 'any') assert.notEqual(wrong.code, 'forbidden')
    else assert.deepEqual([wrong.status, wrong.code], [403, 'forbidden'])

    for (const scopes of [[route.scope], ['*'], undefined]) {
      const right = await ask(at, await tokenFor(scopes))
      if (route.scope === 'host') assert.deepEqual([right.status, right.code], [403, 'forbidden'])
      else assert.ok(right.status !== 401 && right.code !== 'forbidden', `${right.status} ${right.code}`)
    }

    const expired = await signToken(uses.secret, { subject: 'a', ttlMs: 1000, nowMs: Date.now() - 3_600_000 })
    assert.equal((await ask(at, expired.token)).status, 401)

    const revoked = await server.authority.mint({ subject: 'b', ttlMs: 60_000 })
    server.authority.revoke(revoked.id)
    assert.equal((await ask(at, revoked.token)).status, 401)
  })
}

test('a route beside the table that does not say who may cannot be registered', async () => {
  const app = createApp({ log: uses.log, headersMs: 1000 } as never)
  assert.throws(() => app.get('/back-door', async () => 'hello'), /GET \/back-door does not say who may/)
  assert.throws(() => app.route({ method: 'GET', url: '/v9/*', handler: async () => 'hello' }), /does not say who may/)
})

test('where nothing is, nothing is told, and no token is asked for', async () => {
  assert.equal((await server.tcp.inject('/back-door')).statusCode, 404)
  assert.equal((await server.tcp.inject({ method: 'PUT', url: '/instances' })).statusCode, 405)
})

test('a route that asks by itself, as a registry does, is told of in the audit log all the same', async (t) => {
  const own = new HttpServer(uses)
  t.after(() => own.close())
  own.tcp.route({
    method: ['GET', 'PUT'],
    url: '/v9/*',
    config: { access: 'itself' },
    handler: async (request, reply) => {
      const { authorization } = request.headers
      if (authorization === undefined) return reply.code(401).send()
      request.caller = { subject: 'pusher', scopes: undefined, token: undefined }
      return reply.code(authorization === 'Basic good' ? 201 : 403).send()
    },
  })
  const ask = async (method: 'GET' | 'PUT', authorization?: string): Promise<number> =>
    (await own.tcp.inject({ method, url: '/v9/a/b', headers: authorization === undefined ? {} : { authorization } })).statusCode
  assert.deepEqual(
    [await ask('PUT'), await ask('GET', 'Basic good'), await ask('PUT', 'Basic good'), await ask('GET', 'Basic bad')],
    [401, 201, 201, 403],
  )
  const rows = (await own.host.inject('/audit?caller=pusher')).json() as {
    operation: string
    target: object
    result: string
    status: number
  }[]
  assert.deepEqual(
    rows.map(({ operation, target, result, status }) => [operation, target, result, status]),
    [
      ['GET /v9/*', { '*': 'a/b' }, 'refused', 403],
      ['PUT /v9/*', { '*': 'a/b' }, 'done', 201],
    ],
  )
})
