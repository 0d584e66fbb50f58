import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

function house(t: TestContext) {
  const uses = fakeUses()
  const server = new HttpServer(uses)
  t.after(() => server.close())
  uses.instances.add({ name: 'web' })
  const ask = async (method: 'GET' | 'PUT' | 'DELETE', body?: unknown, name = 'web', token?: string) => {
    const answer = await (token === undefined ? server.host : server.tcp).inject({
      method,
      url: `/instances/${name}/snapshot-schedule`,
      ...(body !== undefined && { payload: body as object }),
      ...(token !== undefined && { headers: { authorization: `Bearer ${token}` } }),
    })
    return { status: answer.statusCode, headers: answer.headers, json: answer.body === '' ? undefined : JSON.parse(answer.body) }
  }
  return { ask, uses, server }
}

const good = { interval: '24h', retention: { max_count: 7 } }

test('a schedule is shown as it was set, normalised, with nulls where the contract has them', async (t) => {
  const { ask, uses } = house(t)
  const [web] = uses.instances.rows
  const set = await ask('PUT', { ...good, retention: { max_age: '168h' }, name_prefix: 'nightly', metadata: { team: 'a' } })
  assert.equal(set.status, 200)
  const { next_run_at, created_at, updated_at, ...rest } = set.json
  assert.deepEqual(rest, {
    instance_id: web?.id,
    interval: '24h0m0s',
    retention: { max_count: 0, max_age: '168h0m0s' },
    name_prefix: 'nightly',
    metadata: { team: 'a' },
    last_run_at: null,
    last_snapshot_id: null,
    last_error: null,
  })
  assert.equal(created_at, updated_at)
  const wait = Date.parse(next_run_at) - Date.parse(created_at)
  assert.ok(wait >= 24 * 3_600_000 && wait < 24 * 3_600_000 + 300_000)
  for (const name of ['web', web?.id, web?.id.slice(0, 6)]) assert.deepEqual((await ask('GET', undefined, name)).json, set.json)
  // What is printed can be sent back, and changes nothing but the time of the change.
  const { interval, retention, name_prefix, metadata } = set.json
  const again = await ask('PUT', { interval, retention, name_prefix, metadata })
  assert.deepEqual({ ...again.json, updated_at }, set.json)
  // What is left out is not kept.
  const plain = await ask('PUT', { ...good, name_prefix: null })
  assert.deepEqual([plain.json.name_prefix, plain.json.metadata, plain.json.retention], [null, {}, { max_count: 7 }])
  assert.equal(plain.json.next_run_at, next_run_at)
})

test('each mistake in a schedule is 400 `invalid_request` in words', async (t) => {
  const { ask } = house(t)
  const tags = Object.fromEntries(Array.from({ length: 51 }, (_, n) => [`k${n}`, 'v']))
  for (const [change, words] of [
    [{ interval: 'daily' }, /`interval` is "daily", but must be a duration/],
    [{ interval: '' }, /`interval`/],
    [{ interval: '-1h' }, /`interval`/],
    [{ interval: '59s' }, /`interval` is "59s", but must be a duration of at least 1m/],
    [{ interval: undefined }, /`interval` is missing/],
    [{ interval: '99999999999h' }, /`interval`/],
    [{ interval: 3600 }, /`interval` must be a text/],
    [{ retention: undefined }, /`retention` is missing/],
    [{ retention: {} }, /keeps everything for ever/],
    [{ retention: { max_count: 0, max_age: '0s' } }, /keeps everything for ever/],
    [{ retention: { max_count: -1 } }, /`retention.max_count` must be at least 0/],
    [{ retention: { max_count: 1e300 } }, /`retention.max_count` must be at most/],
    [{ retention: { max_count: 1.5 } }, /`retention.max_count` must be a whole number/],
    [{ retention: { max_count: 1, max_age: '-1ns' } }, /`retention.max_age` is "-1ns", but must be a duration/],
    [{ retention: { max_count: 1, max_age: '7d' } }, /`retention.max_age`/],
    [{ name_prefix: 'Nightly' }, /`name_prefix`/],
    [{ name_prefix: 'nightly-' }, /`name_prefix`/],
    [{ name_prefix: 'p'.repeat(48) }, /`name_prefix`/],
    [{ metadata: { ä: 'v' } }, /`metadata/],
    [{ metadata: { k: 'v\n' } }, /`metadata/],
    [{ metadata: tags }, /`metadata` must hold at most 50 entries/],
    [{ colour: 'red' }, /has no field `colour`/],
  ] as const) {
    const told = await ask('PUT', { ...good, ...change })
    assert.deepEqual(
      [told.status, told.json.code, told.headers['x-should-retry']],
      [400, 'invalid_request', 'false'],
      JSON.stringify(change),
    )
    assert.match(told.json.message, words)
  }
  assert.equal((await ask('GET')).status, 404)
})

test('an instance without a schedule, and what is no instance, are not found', async (t) => {
  const { ask, uses } = house(t)
  for (const method of ['GET', 'DELETE'] as const) {
    const told = await ask(method)
    assert.deepEqual([told.status, told.json.code], [404, 'not_found'])
    assert.match(told.json.message, /The instance web has no snapshot schedule/)
    assert.match(told.json.hint, /dormouse schedule set web/)
  }
  assert.equal((await ask('PUT', good, 'nothing')).status, 404)
  await ask('PUT', good)
  assert.equal((await ask('DELETE')).status, 204)
  assert.equal((await ask('DELETE')).status, 404)
  // It outlives its instance, and is no longer to be seen.
  await ask('PUT', good)
  uses.instances.rows.pop()
  assert.equal((await ask('GET')).status, 404)
})

test('a token reads, sets and removes a schedule with the scopes of snapshots', async (t) => {
  const { ask, server } = house(t)
  const token = async (scope: string) => (await server.authority.mint({ subject: 'test', scopes: [scope], ttlMs: 60_000 })).token
  const [read, write, remove] = [await token('snapshot:read'), await token('snapshot:write'), await token('snapshot:delete')]
  const other = await token('instance:write')
  const statuses = async (body: unknown, method: 'GET' | 'PUT' | 'DELETE') =>
    Promise.all([read, write, remove, other].map(async (one) => (await ask(method, body, 'web', one)).status))
  assert.deepEqual(await statuses(good, 'PUT'), [403, 200, 403, 403])
  assert.deepEqual(await statuses(undefined, 'GET'), [200, 403, 403, 403])
  assert.deepEqual(await statuses(undefined, 'DELETE'), [403, 403, 204, 403])
})
