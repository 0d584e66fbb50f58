import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import WebSocket from 'ws'
import type { InstanceId } from '../instances/instance.ts'
import { fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

const autoStandby = { enabled: true, idleTimeoutMs: 90_000, ignoreSources: ['10.0.0.0/8'], ignorePorts: [22] }

function house(t: TestContext) {
  const uses = fakeUses()
  const server = new HttpServer(uses)
  t.after(() => server.close())
  const web = uses.instances.add({ name: 'web', autoStandby })
  const ask = async (method: 'GET' | 'POST', path: string, token?: string) => {
    const answer = await (token === undefined ? server.host : server.tcp).inject({
      method,
      url: `/instances/${path}`,
      ...(token !== undefined && { headers: { authorization: `Bearer ${token}` } }),
    })
    return { status: answer.statusCode, headers: answer.headers, json: answer.json() }
  }
  return { ask, uses, server, web }
}

test('a status is told in the words of the contract, with nulls for what does not apply', async (t) => {
  const { ask, uses, web } = house(t)
  uses.autoStandby.told = { ...uses.autoStandby.told, policy: undefined }
  const none = { idle_timeout: null, idle_since: null, last_inbound_activity_at: null, next_standby_at: null, hold_until: null }
  assert.deepEqual((await ask('GET', 'web/auto-standby/status')).json, {
    ...{ supported: true, configured: false, enabled: false, eligible: false, status: 'disabled', reason: 'policy_missing' },
    ...{ active_inbound_connections: 0, tracking_mode: 'made up', countdown_remaining: null, last_error: null },
    ...none,
  })
  const atMs = Date.parse('2026-03-01T00:00:00.000Z')
  uses.autoStandby.told = {
    ...{ isSupported: true, policy: autoStandby, isEligible: true, status: 'idle_countdown', reason: 'idle_timeout_not_elapsed' },
    ...{ active: 0, trackingMode: 'made up', idleSinceMs: atMs, lastActivityMs: atMs - 1, napAtMs: atMs + 90_000, remainingMs: 1500 },
    ...{ holdUntilMs: atMs + 60_000, lastError: 'none, really' },
  }
  const held = await ask('POST', `${web.id.slice(0, 8)}/auto-standby/hold`)
  assert.deepEqual(
    [held.status, held.json],
    [
      200,
      {
        ...{
          supported: true,
          configured: true,
          enabled: true,
          eligible: true,
          status: 'idle_countdown',
          reason: 'idle_timeout_not_elapsed',
        },
        ...{ active_inbound_connections: 0, tracking_mode: 'made up', countdown_remaining: '1.5s', last_error: 'none, really' },
        ...{ idle_timeout: '1m30s', idle_since: '2026-03-01T00:00:00.000Z', last_inbound_activity_at: '2026-02-28T23:59:59.999Z' },
        ...{ next_standby_at: '2026-03-01T00:01:30.000Z', hold_until: '2026-03-01T00:01:00.000Z' },
      },
    ],
  )
  assert.deepEqual(uses.autoStandby.asked, [`status ${web.id}`, `hold ${web.id}`])
})

test('a hold of what sleeps is 409, which clients need not repeat', async (t) => {
  const { ask, uses } = house(t)
  uses.autoStandby.hold = async () => {
    throw new AppError('instance_in_standby', 'The instance web is in standby')
  }
  const { status, json, headers } = await ask('POST', 'web/auto-standby/hold')
  assert.deepEqual([status, json.code, headers['x-should-retry']], [409, 'instance_in_standby', 'false'])
  assert.equal((await ask('POST', 'absent/auto-standby/hold')).status, 404)
  assert.equal((await ask('GET', 'absent/auto-standby/status')).status, 404)
})

test('a token reads with the one scope and holds with the other', async (t) => {
  const { ask, server } = house(t)
  const token = async (scopes: string[]): Promise<string> => {
    const { body } = await server.host.inject({ method: 'POST', url: '/tokens', payload: { scopes } })
    return JSON.parse(body).token
  }
  const [reader, writer] = [await token(['instance:read']), await token(['instance:write'])]
  assert.equal((await ask('GET', 'web/auto-standby/status', reader)).status, 200)
  assert.equal((await ask('POST', 'web/auto-standby/hold', reader)).status, 403)
  assert.equal((await ask('POST', 'web/auto-standby/hold', writer)).status, 200)
  assert.equal((await ask('GET', 'web/auto-standby/status', writer)).status, 403)
})

test('an instance shows its policy, with what was left out', async (t) => {
  const { uses, server } = house(t)
  const shown = async (name: string) => (await server.host.inject({ url: `/instances/${name}` })).json().auto_standby
  const ignored = { ignore_source_cidrs: ['10.0.0.0/8'], ignore_destination_ports: [22] }
  assert.deepEqual(await shown('web'), { enabled: true, idle_timeout: '1m30s', ...ignored })
  uses.instances.add({ name: 'off', autoStandby: { enabled: false, ignoreSources: [], ignorePorts: [] } })
  assert.deepEqual(await shown('off'), { enabled: false, ignore_source_cidrs: [], ignore_destination_ports: [] })
  uses.instances.add({ name: 'none' })
  assert.equal(await shown('none'), undefined)
})

test('a command that runs, and a copy, are sessions for as long as they are open', async (t) => {
  const { uses, server, web } = house(t)
  const open = (id: InstanceId): number => uses.autoStandby.sessions.get(id) ?? 0
  let runs = Promise.withResolvers<void>()
  uses.instances.oneGuest.run = (exec) => {
    assert.equal(open(web.id), 1)
    exec.end(0)
    runs.resolve()
  }
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  await server.listen({ socket: { path: join(dir, 's'), mode: 0o600 } })
  const socket = new WebSocket(`ws+unix:${join(dir, 's')}:/instances/${web.id}/exec`)
  const closed = new Promise((resolve) => socket.once('close', resolve))
  await new Promise((resolve) => socket.once('open', resolve))
  socket.send(JSON.stringify({ command: ['true'] }))
  await runs.promise
  await closed
  runs = Promise.withResolvers()
  while (open(web.id) > 0) await new Promise((resolve) => setImmediate(resolve))
  assert.equal(open(web.id), 0)
})

test('who asks for a command keeps an instance awake from the request on, and no longer than they stay', async (t) => {
  const { uses, server, web } = house(t)
  const open = (): number => uses.autoStandby.sessions.get(web.id) ?? 0
  const over = async (): Promise<void> => {
    while (open() > 0) await new Promise((resolve) => setImmediate(resolve))
  }
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  await server.listen({ socket: { path: join(dir, 's'), mode: 0o600 } })
  // Each is looked at while it is on its way to the guest: before any upgrade.
  let [arrived, answer] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
  const guest = uses.instances.guest.bind(uses.instances)
  uses.instances.guest = async (id) => {
    assert.equal(open(), 1)
    arrived.resolve()
    await answer.promise
    return await guest(id)
  }
  const ask = async () => {
    ;[arrived, answer] = [Promise.withResolvers(), Promise.withResolvers()]
    const socket = new WebSocket(`ws+unix:${join(dir, 's')}:/instances/${web.id}/exec`)
    const ended = new Promise((resolve) => socket.once('error', resolve).once('close', resolve))
    await arrived.promise
    return { socket, ended }
  }
  const refused = await ask()
  answer.reject(new AppError('guest_unavailable', 'It does not answer'))
  await refused.ended
  await over()
  // Its caller leaves before it is known whether he may.
  const gone = await ask()
  gone.socket.terminate()
  await gone.ended
  answer.resolve()
  await over()
  const served = await ask()
  answer.resolve()
  await new Promise((resolve) => served.socket.once('open', resolve))
  assert.equal(open(), 1)
  served.socket.terminate()
  await over()
})
