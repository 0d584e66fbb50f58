import assert from 'node:assert/strict'
import { test } from 'node:test'
import { fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

test('a token with scopes leads the daemon to no registry on the host’s loopback; who may do everything does', async (t) => {
  const uses = fakeUses()
  const server = new HttpServer(uses)
  t.after(() => server.close())
  const asks = [
    ['/images', { name: 'localhost:9/a' }],
    ['/instances', { name: 'web', image: 'localhost:9/b' }],
    ['/pushes', { image: 'mine:1', target: 'localhost:9/a:1' }],
  ] as const
  uses.images.add('mine:1')
  const { token } = await server.authority.mint({
    ...{ subject: 'ann', ttlMs: 60_000 },
    scopes: ['image:write', 'instance:write'],
  })
  for (const [url, payload] of asks) {
    const answer = await server.tcp.inject({ method: 'POST', url, payload, headers: { authorization: `Bearer ${token}` } })
    assert.deepEqual([answer.statusCode, answer.json().code], [403, 'registry_refused'], url)
  }
  // Nothing is asked of a registry for what is here.
  uses.images.add('localhost:9/here')
  const made = await server.tcp.inject({
    ...{ method: 'POST', url: '/instances', payload: { name: 'here', image: 'localhost:9/here' } },
    headers: { authorization: `Bearer ${token}` },
  })
  assert.equal(made.statusCode, 201)
  const { token: whole } = await server.authority.mint({ subject: 'operator', ttlMs: 60_000 })
  for (const [url, payload] of asks) {
    assert.ok((await server.host.inject({ method: 'POST', url, payload })).statusCode < 300, url)
    const answer = await server.tcp.inject({
      ...{ method: 'POST', url, payload: url === '/instances' ? { ...payload, name: 'web2' } : payload },
      headers: { authorization: `Bearer ${whole}` },
    })
    assert.ok(answer.statusCode < 300, url)
  }
})
