import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import type { AuditEntry } from '@dormouse/api/audit.ts'
import { AppError } from '@dormouse/api/errors.ts'
import type { InjectOptions } from 'fastify'
import { type FakeUses, fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

const DIGEST = `sha256:${'a'.repeat(64)}`

function house(t: TestContext, registry: Partial<FakeUses['registry']> = {}) {
  const fakes = fakeUses()
  const uses = { ...fakes, registry: { ...fakes.registry, ...registry } }
  const server = new HttpServer(uses)
  t.after(() => server.close())
  const list = async (query = ''): Promise<AuditEntry[]> => (await server.host.inject(`/audit${query}`)).json()
  const ask = (authorization: string | undefined, method: InjectOptions['method'], url: string, remoteAddress = '192.0.2.1') =>
    server.tcp.inject({ method: method ?? 'GET', url, remoteAddress, headers: authorization === undefined ? {} : { authorization } })
  return { uses, server, list, ask }
}

/** As programs send what was given to `docker login`. */
const basic = (token: string): string => `Basic ${Buffer.from(`any:${token}`).toString('base64')}`

test('a token that was revoked is none at the registry either, as a password too', async (t) => {
  const { server, ask } = house(t)
  const { token, id } = await server.authority.mint({ subject: 'ann', ttlMs: 60_000 })
  const statuses = async () =>
    Promise.all([basic(token), `Bearer ${token}`].map(async (authorization) => (await ask(authorization, 'GET', '/v2/')).statusCode))
  assert.deepEqual(await statuses(), [200, 200])
  server.authority.revoke(id)
  assert.deepEqual(await statuses(), [401, 401])
})

test('a token for the registry alone may push or pull, everywhere or in one repository, and nothing else', async (t) => {
  const { server, ask } = house(t)
  const mint = async (...scopes: string[]) => {
    const made = (await server.host.inject({ method: 'POST', url: '/tokens', payload: { scopes } })).json()
    return basic(made.token)
  }
  // What may not be done is 403; what may be done finds that nothing is there, or is not built here.
  const can = async (token: string, repository = 'team/app'): Promise<string> => {
    const asked = [
      ['GET', `/v2/${repository}/manifests/1`],
      ['POST', `/v2/${repository}/blobs/uploads/`],
      ['DELETE', `/v2/${repository}/manifests/1`],
    ] as const
    const statuses = await Promise.all(asked.map(async ([method, url]) => (await ask(token, method, url)).statusCode))
    return statuses.map((status) => (status === 403 ? 'no' : 'yes')).join(' ')
  }
  assert.equal(await can(await mint('registry:pull')), 'yes no no')
  assert.equal(await can(await mint('registry:push')), 'yes yes no')
  const one = await mint('registry:push:team/app', 'registry:pull:base')
  assert.equal(await can(one), 'yes yes no')
  // As images are called, so are repositories.
  assert.equal(await can(one, 'docker.io/team/app'), 'yes yes no')
  assert.equal(await can(one, 'base'), 'yes no no')
  assert.equal(await can(one, 'team/app2'), 'no no no')
  assert.equal(await can(await mint('registry:push:team/app', 'image:delete'), 'team/other'), 'no no yes')
  const { token } = (await server.host.inject({ method: 'POST', url: '/tokens', payload: { scopes: ['registry:push'] } })).json()
  assert.equal((await ask(`Bearer ${token}`, 'GET', '/images')).statusCode, 403)
  for (const wrong of ['registry:delete', 'registry:push:', 'registry:push:Team', 'registry:push:a//b', 'registry:push:a:1', 'registry']) {
    const refused = await server.host.inject({ method: 'POST', url: '/tokens', payload: { scopes: [wrong] } })
    assert.equal(refused.statusCode, 400, wrong)
  }
})

test('what is changed at the registry is in the audit log, and who was refused', async (t) => {
  const { server, ask, list } = house(t)
  const { token, id } = await server.authority.mint({ subject: 'ann', scopes: ['image:delete'], ttlMs: 60_000 })
  await ask(basic(token), 'GET', '/v2/')
  await ask(basic(token), 'DELETE', `/v2/team/app/manifests/${DIGEST}`)
  await ask(basic(token), 'PUT', '/v2/team/app/manifests/1')
  const told = (await list()).map(({ caller, token_id, operation, target, result, status }) => [
    ...[caller, token_id, operation, Object.values(target).join(' '), result, status],
  ])
  assert.deepEqual(told, [
    ['ann', id, 'pushManifest', 'team/app 1', 'refused', 403],
    ['ann', id, 'deleteManifest', `team/app ${DIGEST}`, 'failed', 404],
  ])
})

test('a change at the registry is in the audit log from when it is let in', async (t) => {
  const [begun, release] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
  const { server, ask, list } = house(t, {
    deleteManifest: async () => {
      begun.resolve()
      await release.promise
    },
  })
  const { token } = await server.authority.mint({ subject: 'ann', ttlMs: 60_000 })
  const answer = ask(basic(token), 'DELETE', `/v2/team/app/manifests/${DIGEST}`)
  await begun.promise
  assert.deepEqual(
    (await list()).map(({ result }) => result),
    ['under_way'],
  )
  release.resolve()
  assert.equal((await answer).statusCode, 202)
  assert.deepEqual(
    (await list()).map(({ result, status }) => [result, status]),
    [['done', 202]],
  )
})

test('what is in use is no refusal of who asked: the audit log has what it was', async (t) => {
  const codes = ['in_use', 'conflict', 'insufficient_resources'] as const
  const asked = codes.values()
  const { server, ask, list } = house(t, {
    deleteManifest: async () => {
      throw new AppError(asked.next().value ?? 'internal_error', 'It is needed')
    },
  })
  const { token } = await server.authority.mint({ subject: 'ann', ttlMs: 60_000 })
  for (const _ of codes) {
    const answer = await ask(basic(token), 'DELETE', `/v2/team/app/manifests/${DIGEST}`)
    assert.deepEqual([answer.statusCode, answer.json().errors[0].code], [409, 'DENIED'])
  }
  const told = (await list()).map(({ result, status, code }) => [result, status, code])
  assert.deepEqual(told, [
    ['failed', 409, 'insufficient_resources'],
    ['failed', 409, 'conflict'],
    ['failed', 409, 'in_use'],
  ])
})

test('a blob that a repository has from one request on is in the audit log; where one is only asked for is not', async (t) => {
  const { server, ask, list } = house(t, { mount: async (_repository, digest) => digest === DIGEST })
  const { token } = await server.authority.mint({ subject: 'ann', ttlMs: 60_000 })
  const mount = (digest: string) => ask(basic(token), 'POST', `/v2/team/app/blobs/uploads/?mount=${digest}&from=team/base`)
  assert.equal((await mount(DIGEST)).statusCode, 201)
  await mount(`sha256:${'b'.repeat(64)}`)
  assert.deepEqual(
    (await list()).map(({ operation, result, status }) => [operation, result, status]),
    [['pushBlob', 'done', 201]],
  )
})

test('bad tokens at the registry are told apart from none, and are answered 429 when there are too many', async (t) => {
  const { server, ask, list } = house(t)
  // As every client begins.
  for (let n = 0; n < 40; n++) assert.equal((await ask(undefined, 'GET', '/v2/')).statusCode, 401)
  assert.deepEqual(await list(), [])
  const statuses = new Set<number>()
  for (let n = 0; n < 40; n++) statuses.add((await ask(basic('a.b.c'), 'PUT', '/v2/team/app/manifests/1')).statusCode)
  assert.deepEqual(statuses, new Set([401, 429]))
  const late = await ask(basic('a.b.c'), 'GET', '/v2/')
  assert.deepEqual([late.json().errors[0].code, Number(late.headers['retry-after']) > 0], ['TOOMANYREQUESTS', true])
  // The API has the same patience, and whoever has a good token goes on.
  assert.equal((await ask('Bearer a.b.c', 'GET', '/instances')).statusCode, 429)
  const { token } = await server.authority.mint({ subject: 'ann', ttlMs: 60_000 })
  assert.equal((await ask(basic(token), 'GET', '/v2/')).statusCode, 200)
  const rows = await list('?result=refused')
  assert.ok(rows.length >= 20 && rows.length < 30, String(rows.length))
  assert.deepEqual(await list('?result=failed'), [])
})

test('a page of elsewhere is refused at the registry once, not twice', async (t) => {
  const { server, list } = house(t)
  const { token } = await server.authority.mint({ subject: 'ann', ttlMs: 60_000 })
  const headers = { origin: 'https://elsewhere.example', authorization: basic(token) }
  assert.equal((await server.tcp.inject({ method: 'PUT', url: '/v2/team/app/manifests/1', headers })).statusCode, 403)
  assert.deepEqual((await list()).length, 1)
})
