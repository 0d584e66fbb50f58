import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import type { AuditEntry } from '@dormouse/api/audit.ts'
import type { InjectOptions } from 'fastify'
import WebSocket from 'ws'
import { signToken } from './auth.ts'
import { fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

function house(t: TestContext) {
  const uses = fakeUses()
  const server = new HttpServer(uses)
  t.after(() => server.close())
  const list = async (query = ''): Promise<AuditEntry[]> => (await server.host.inject(`/audit${query}`)).json()
  return {
    ...{ uses, server, list },
    host: (method: InjectOptions['method'], url: string, payload?: object) =>
      server.host.inject({ method: method ?? 'GET', url, ...(payload && { payload }) }),
    as: async (scopes: string[], method: InjectOptions['method'], url: string, address = '192.0.2.1') => {
      const { token } = await server.authority.mint({ subject: 'ann', scopes, ttlMs: 60_000 })
      const headers = { authorization: `Bearer ${token}`, 'x-request-id': 'mine-1' }
      return server.tcp.inject({ method: method ?? 'GET', url, remoteAddress: address, headers })
    },
  }
}

test('who changed what, on which, how it went, from where', async (t) => {
  const { host, as, list, uses } = house(t)
  await host('POST', '/instances', { name: 'web', image: 'alpine', env: { PASSWORD: 'hush' } })
  await as(['instance:write'], 'POST', '/instances/web/stop')
  await as(['instance:write'], 'POST', '/instances/none/stop')
  await host('GET', '/instances')
  const [missing, stopped, created, ...rest] = await list()
  assert.deepEqual(rest, [])
  const id = uses.instances.rows[0]?.id
  const { at: _, id: __, duration_ms: ___, request_id: ____, ...made } = created as AuditEntry
  assert.deepEqual(made, {
    ...{ caller: 'host', token_id: null, address: null, operation: 'createInstance', target: {}, subject_id: null, resource_id: id },
    ...{ result: 'done', status: 201, code: null, skipped: 0 },
  })
  assert.deepEqual(
    [stopped?.caller, stopped?.address, stopped?.target, stopped?.resource_id, stopped?.result, stopped?.status, stopped?.request_id],
    ['ann', '192.0.2.1', { id: 'web' }, id, 'done', 200, 'mine-1'],
  )
  assert.match(stopped?.token_id ?? '', /^[a-z0-9]{24}$/)
  assert.deepEqual([missing?.result, missing?.status, missing?.code], ['failed', 404, 'not_found'])
})

test('what was deleted is found by its id, whatever it was called by', async (t) => {
  const { host, list, uses } = house(t)
  const { id } = uses.instances.add({ name: 'web', state: 'Stopped' })
  await host('DELETE', '/instances/web')
  await host('DELETE', '/instances/web')
  const rows = await list(`?target=${id}`)
  assert.deepEqual(
    rows.map(({ operation, target, resource_id, result }) => [operation, target, resource_id, result]),
    [['deleteInstance', { id: 'web' }, id, 'done']],
  )
  uses.images.add('alpine:3')
  await host('DELETE', '/images/alpine:3')
  assert.equal((await list('?operation=deleteImage'))[0]?.resource_id, 'alpine:3')
})

test('what a fork or a snapshot was made of is found by its id, also when it was called by its name', async (t) => {
  const { host, list, uses } = house(t)
  const { id } = uses.instances.add({ name: 'web', state: 'Stopped' })
  const made = [
    (await host('POST', '/instances/web/fork', { name: 'twin' })).json().id,
    (await host('POST', '/instances/web/snapshots', { kind: 'Stopped' })).json().id,
  ]
  assert.deepEqual(
    (await list(`?target=${id}`)).map(({ operation, target, subject_id, resource_id }) => [operation, target, subject_id, resource_id]),
    [
      ['createSnapshot', { id: 'web' }, id, made[1]],
      ['forkInstance', { id: 'web' }, id, made[0]],
    ],
  )
})

test('no token passes for the host or the daemon', async (t) => {
  const { host, server, list, uses } = house(t)
  for (const subject of ['host', 'system']) {
    const refused = await host('POST', '/tokens', { subject })
    assert.deepEqual([refused.statusCode, refused.json().code], [400, 'invalid_request'])
    const { token } = await signToken(uses.secret, { subject, ttlMs: 60_000 })
    await server.tcp.inject({ method: 'DELETE', url: '/instances/none', headers: { authorization: `Bearer ${token}` } })
    assert.equal((await list('?operation=deleteInstance'))[0]?.caller, `token:${subject}`)
  }
})

test('a failure has the status that was answered, also where the route has another than the table', async (t) => {
  const { host, list, uses } = house(t)
  uses.images.rows.set('slow:1', { ...uses.images.add('slow:1'), status: 'pulling' })
  const { statusCode } = await host('POST', '/pushes', { image: 'slow:1', target: 'registry.example.com/a:1' })
  const [row] = await list()
  assert.deepEqual([row?.operation, row?.status, row?.code], ['createPush', statusCode, 'image_not_ready'])
})

test('no secret is in it: not of a body, not a token that was made', async (t) => {
  const { host, list, server } = house(t)
  const { token } = (await host('POST', '/tokens', { subject: 'bob' })).json()
  await host('POST', '/images', { name: 'a/b', credentials: { username: 'u', password: 'hush' } })
  await server.tcp.inject({ url: '/instances', headers: { authorization: `Bearer ${token}x` } })
  const text = JSON.stringify(await list())
  assert.doesNotMatch(text, /hush/)
  assert.equal(text.includes(token.split('.')[2]), false)
})

test('who was refused is there, reads too, and is bounded', async (t) => {
  const { as, list, server } = house(t)
  await as(['instance:read'], 'DELETE', '/instances/web')
  await as(['instance:read'], 'GET', '/images')
  for (let n = 0; n < 60; n++) await server.tcp.inject({ method: 'POST', url: '/instances', remoteAddress: '198.51.100.9' })
  await server.tcp.inject({ method: 'POST', url: '/instances', remoteAddress: '198.51.100.10' })
  const rows = await list('?result=refused')
  const [latest] = rows
  assert.ok(rows.length >= 23 && rows.length < 30, String(rows.length))
  assert.deepEqual([latest?.caller, latest?.address, latest?.status, latest?.code], [null, '198.51.100.10', 401, 'unauthorized'])
  // Together with what was written, all of them.
  assert.equal(rows.length + rows.reduce((sum, { skipped }) => sum + skipped, 0), 63)
  assert.deepEqual(
    rows.slice(-2).map(({ operation, code, caller }) => [operation, code, caller]),
    [
      ['listImages', 'forbidden', 'ann'],
      ['deleteInstance', 'forbidden', 'ann'],
    ],
  )
})

test('it is read in pages, by caller, operation, target, result and time, with a scope of its own', async (t) => {
  const { host, as, list } = house(t)
  for (let n = 0; n < 5; n++) await host('POST', '/images', { name: `i${n}` })
  await as(['image:delete'], 'DELETE', '/images/i3')
  const first = await host('GET', '/audit?limit=4')
  const second = await host('GET', `/audit?limit=4&cursor=${first.headers['x-next-cursor']}`)
  const ids = [...first.json(), ...second.json()].map(({ id }) => id)
  assert.deepEqual([ids.length, ids.toSorted((a, b) => b - a), second.headers['x-next-cursor']], [6, ids, undefined])
  const found = async (query: string) => (await list(query)).map(({ operation }) => operation)
  assert.deepEqual(await found('?caller=ann'), ['deleteImage'])
  assert.deepEqual(await found('?operation=deleteImage'), ['deleteImage'])
  assert.deepEqual(await found('?target=i3'), ['deleteImage', 'pullImage'])
  assert.deepEqual(await found('?result=failed'), [])
  assert.deepEqual(await found('?since=9999-01-01T00:00:00Z'), [])
  assert.deepEqual(await found('?until=2001-01-01T00:00:00Z'), [])
  assert.equal((await as(['audit:read'], 'GET', '/audit')).statusCode, 200)
  assert.equal((await as(['instance:read', 'resource:read'], 'GET', '/audit')).statusCode, 403)
  for (const wrong of ['cursor=x', 'cursor=-1', 'since=yesterday', 'limit=0', 'limit=1001', 'result=nice']) {
    assert.equal((await host('GET', `/audit?${wrong}`)).statusCode, 400, wrong)
  }
})

test('a command in a guest is there, from its beginning to its end', async (t) => {
  const { server, uses, list } = house(t)
  uses.instances.add({ name: 'web' })
  uses.instances.oneGuest.run = () => undefined
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  await server.listen({ socket: { path: join(dir, 's'), mode: 0o600 } })
  const socket = new WebSocket(`ws+unix:${join(dir, 's')}:/instances/web/exec`)
  await new Promise((resolve) => socket.on('open', resolve))
  socket.send(JSON.stringify({ command: ['secret-thing'] }))
  assert.deepEqual(
    (await list()).map(({ operation, target, result }) => [operation, target, result]),
    [['execInstance', { id: 'web' }, 'under_way']],
  )
  socket.terminate()
  while ((await list())[0]?.result === 'under_way') await new Promise((resolve) => setImmediate(resolve))
  const [row] = await list()
  assert.deepEqual([row?.result, row?.status], ['done', 101])
  assert.doesNotMatch(JSON.stringify(row), /secret-thing/)
})

test('what was begun is told as it ended, also when its caller has hung up', async (t) => {
  const { uses, list, server } = house(t)
  const { id } = uses.instances.add({ name: 'web' })
  const [begun, release] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
  const stop = uses.instances.stop.bind(uses.instances)
  uses.instances.stop = async (which) => {
    begun.resolve()
    await release.promise
    return stop(which)
  }
  const gone = new AbortController()
  const answer = server.host.inject({ method: 'POST', url: '/instances/web/stop', signal: gone.signal }).catch(() => undefined)
  await begun.promise
  gone.abort()
  await answer
  release.resolve()
  while ((await list())[0]?.result === 'under_way') await new Promise((resolve) => setImmediate(resolve))
  const [row] = await list()
  assert.deepEqual([row?.result, row?.resource_id], ['done', id])
})
