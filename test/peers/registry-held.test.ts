/** What moves at /v2 ends with the token that let it in. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type ClientRequest, type IncomingMessage, request } from 'node:http'
import { test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { sha256 } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { filesOf } from './images-room.ts'
import { type ServedRegistry, serveRegistry } from './served-registry.ts'

const limit = { timeout: 60_000 }
/** More than two sockets hold for a reader who has stopped. */
const LARGE = Buffer.alloc(64 * 2 ** 20)

function begin(served: ServedRegistry, method: string, path: string, token: string): ClientRequest {
  const [host, port] = served.host.split(':')
  return request({ host, port, method, path, headers: { authorization: `Bearer ${token}` } })
}

test('an upload ends with its token, in words, and nothing of it is left', limit, async (t) => {
  const served = await serveRegistry(t)
  const { token, id } = await served.server.authority.mint({ subject: 'ann', scopes: ['image:write'], ttlMs: 3_600_000 })
  const place = (await served.ask('POST', 'team/app/blobs/uploads/', { token })).headers.get('location') ?? ''
  const patch = begin(served, 'PATCH', place, token)
  const answered = once(patch, 'response') as Promise<[IncomingMessage]>
  patch.write(Buffer.alloc(100_000))
  const size = async () => (await served.ask('GET', place.replace('/v2/', ''))).headers.get('range')
  await pollUntil('the first bytes to be there', async () => (await size()) === '0-99999', { signal: AbortSignal.timeout(30_000) })
  served.server.authority.revoke(id)
  const [answer] = await answered
  const text = Buffer.concat(await Array.fromAsync(answer as AsyncIterable<Buffer>)).toString()
  patch.destroy()
  assert.equal(answer.statusCode, 401)
  assert.match(text, /"code":"UNAUTHORIZED","message":"The token has been revoked/)
  assert.equal((await served.ask('GET', place.replace('/v2/', ''))).status, 404)
  assert.deepEqual(await filesOf(served.room), { drafts: [], layers: [], rootfs: [] })
  const refused = async () => (await served.server.host.inject('/audit?result=refused')).json()
  // Once the answer is out: who was answered may be quicker.
  await pollUntil('it to be written down', async () => (await refused()).length > 0, { signal: AbortSignal.timeout(30_000) })
  const told = await refused()
  assert.deepEqual(
    told.map(({ caller, operation, status, code }: Record<string, unknown>) => [caller, operation, status, code]),
    [['ann', 'pushBlobPart', 401, 'unauthorized']],
  )
})

test('a download breaks off with its token', limit, async (t) => {
  const served = await serveRegistry(t)
  const digest = sha256(LARGE)
  assert.equal((await served.ask('POST', `team/app/blobs/uploads/?digest=${digest}`, { body: LARGE })).status, 201)
  const { token, id } = await served.server.authority.mint({ subject: 'ann', scopes: ['image:read'], ttlMs: 3_600_000 })
  const get = begin(served, 'GET', `/v2/team/app/blobs/${digest}`, token).end()
  const [answer] = (await once(get, 'response')) as [IncomingMessage]
  assert.equal(answer.statusCode, 200)
  assert.equal(answer.headers['content-length'], String(LARGE.length))
  served.server.authority.revoke(id)
  let bytes = 0
  await assert.rejects(async () => {
    for await (const chunk of answer as AsyncIterable<Buffer>) bytes += chunk.length
  }, /aborted/)
  assert.ok(bytes < LARGE.length)
})
