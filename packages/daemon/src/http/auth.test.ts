import assert from 'node:assert/strict'
import { chmodSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { type Route, routes } from '@dormouse/api/routes.ts'
import { generateKeyPair, SignJWT } from 'jose'
import { silentLogger } from '../log.ts'
import { Database } from '../store/database.ts'
import { TokenRows } from '../store/tokens.ts'
import { Authority, authorize, hostCaller, signToken } from './auth.ts'
import { fakeUses } from './fake-uses.ts'
import { loadOrCreateSecret } from './secret.ts'
import { HttpServer } from './server.ts'

const secret = Buffer.from('a secret that is long enough')
const tokens = new TokenRows(Database.open(':memory:'))
const authority = new Authority(secret, tokens)

async function tokenWith(
  claims: Record<string, unknown>,
  options: { expires?: string | number; alg?: string; key?: Uint8Array } = {},
): Promise<string> {
  const token = new SignJWT(claims).setProtectedHeader({ alg: options.alg ?? 'HS256' }).setIssuedAt()
  return `Bearer ${await token.setExpirationTime(options.expires ?? '1h').sign(options.key ?? secret)}`
}

test('a token that was made here holds, with its scopes', async () => {
  const beforeMs = Date.now()
  const { token, expires_at } = await authority.mint({ subject: 'ann', scopes: ['instance:read'], ttlMs: 60_000 })
  const caller = await authority.callerOf(`Bearer ${token}`)
  assert.equal(caller.subject, 'ann')
  assert.deepEqual([...(caller.scopes ?? [])], ['instance:read'])
  // Of whole seconds, and counted from a moment in between.
  const madeAtMs = Date.parse(expires_at) - 60_000
  assert.ok(madeAtMs > beforeMs - 1000 && madeAtMs < Date.now() + 1000, expires_at)
})

test('without permissions a token allows everything, with an empty list nothing', async () => {
  assert.equal((await authority.callerOf(await tokenWith({ sub: 'a' }))).scopes, undefined)
  assert.equal((await authority.callerOf(await tokenWith({ permissions: ['*'] }))).scopes, undefined)
  assert.equal((await authority.callerOf(await tokenWith({ permissions: [] }))).scopes?.size, 0)
})

test('the stronger hashes of the family are taken too', async () => {
  assert.equal((await authority.callerOf(await tokenWith({ sub: 'a' }, { alg: 'HS512', key: secret }))).subject, 'a')
})

test('tokens that prove nothing are refused', async () => {
  const unsigned = (header: object) =>
    [header, { sub: 'a', exp: 4e9 }].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.')
  const { privateKey } = await generateKeyPair('RS256')
  const good = await tokenWith({ sub: 'a' })
  const refused: Record<string, string | undefined> = {
    'no header': undefined,
    'an empty header': '',
    'another scheme': `Basic ${good.slice(7)}`,
    'no token': 'Bearer ',
    'a second token': `${good} ${good}`,
    garbage: 'Bearer a.b.c',
    'no signature': `Bearer ${unsigned({ alg: 'none' })}.`,
    'the algorithm none with a signature': `Bearer ${unsigned({ alg: 'none' })}.AAAA`,
    'another key': await tokenWith({ sub: 'a' }, { key: Buffer.from('another secret of good length') }),
    'a public-key algorithm': `Bearer ${await new SignJWT({}).setProtectedHeader({ alg: 'RS256' }).setExpirationTime('1h').sign(privateKey)}`,
    'a changed claim': good.replace(/\.[^.]+\./, `.${Buffer.from('{"sub":"root","exp":4000000000}').toString('base64url')}.`),
    'an expired one': await tokenWith({ sub: 'a' }, { expires: Math.floor(Date.now() / 1000) - 60 }),
    'one of a registry': await tokenWith({ repos: ['a'] }),
    'one of a builder': await tokenWith({ sub: 'builder-1' }),
    'permissions that are no list': await tokenWith({ permissions: 'instance:read' }),
    'permissions that are no texts': await tokenWith({ permissions: [{}] }),
    'one that never ends': `Bearer ${await new SignJWT({ sub: 'a' }).setProtectedHeader({ alg: 'HS256' }).sign(secret)}`,
    'one that is yet to begin': await tokenWith({ nbf: Math.floor(Date.now() / 1000) + 600 }),
    'an end that is no number': `Bearer ${await new SignJWT({ exp: 'never' } as never).setProtectedHeader({ alg: 'HS256' }).sign(secret)}`,
    'claims that are no object': `Bearer ${[{ alg: 'HS256' }, []].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.')}.AAAA`,
    'a header that asks for more': good.replace(
      /^Bearer [^.]+/,
      `Bearer ${Buffer.from('{"alg":"HS256","crit":["b64"],"b64":false}').toString('base64url')}`,
    ),
    'a token after a line break': `Bearer\n${good.slice(7)}`,
    'one of many kilobytes': `Bearer ${'a'.repeat(9000)}.b.c`,
  }
  for (const [name, header] of Object.entries(refused)) await assert.rejects(authority.callerOf(header), { code: 'unauthorized' }, name)
  // What is no token at all is told as that, and not as one that is missing.
  for (const header of ['Bearer nonsense', 'bearer a.b.c', `Bearer ${'a'.repeat(9000)}`]) {
    await assert.rejects(authority.callerOf(header), { code: 'unauthorized', message: 'The token is not valid' }, header)
  }
})

test('a token that was revoked is refused, also by a daemon that starts anew, and others go on', async () => {
  const { token, id } = await authority.mint({ subject: 'ann', ttlMs: 60_000 })
  const other = await authority.mint({ subject: 'ann', ttlMs: 60_000 })
  authority.revoke(id)
  authority.revoke(id)
  const revoked = { code: 'unauthorized', message: 'The token has been revoked' }
  await assert.rejects(authority.callerOf(`Bearer ${token}`), revoked)
  await assert.rejects(new Authority(secret, tokens).callerOf(`Bearer ${token}`), revoked)
  assert.equal((await authority.callerOf(`Bearer ${other.token}`)).token?.id, other.id)
  assert.throws(() => authority.revoke('nothing'), { code: 'not_found' })
})

test('tokens that were made elsewhere are revoked by their subject and when they were issued', async () => {
  const now = Math.floor(Date.now() / 1000)
  const old = `Bearer ${(await signToken(secret, { subject: 'bob', ttlMs: 3_600_000, nowMs: (now - 100) * 1000 })).token}`
  const unsaid = `Bearer ${await new SignJWT({ sub: 'bob' }).setProtectedHeader({ alg: 'HS256' }).setExpirationTime('1h').sign(secret)}`
  const elsewhere = await signToken(secret, { subject: 'bob', ttlMs: 60_000, nowMs: (now - 10) * 1000 })
  const ours = await authority.mint({ subject: 'bob', ttlMs: 60_000 })
  assert.equal(authority.revokeAllOf('bob', (now - 50) * 1000), 0)
  await assert.rejects(authority.callerOf(old), { message: 'The token has been revoked' })
  await assert.rejects(authority.callerOf(unsaid), { message: 'The token has been revoked' })
  await authority.callerOf(`Bearer ${elsewhere.token}`)
  await authority.callerOf(`Bearer ${ours.token}`)
  assert.equal(authority.revokeAllOf('bob', Date.now() + 1), 1)
  for (const header of [old, unsaid, `Bearer ${elsewhere.token}`, `Bearer ${ours.token}`]) {
    await assert.rejects(authority.callerOf(header), { message: 'The token has been revoked' })
  }
  // An earlier moment takes nothing back.
  authority.revokeAllOf('bob', 1)
  await assert.rejects(authority.callerOf(`Bearer ${elsewhere.token}`), { message: 'The token has been revoked' })
  assert.equal((await authority.callerOf(await tokenWith({ sub: 'eve' }))).subject, 'eve')
})

test('a token of the same second as a revocation of all holds when it was made after it', async () => {
  authority.revokeAllOf('zoe', Date.now())
  const { token } = await authority.mint({ subject: 'zoe', ttlMs: 60_000 })
  await authority.callerOf(`Bearer ${token}`)
})

test('a watch tells when a token is revoked, and when it expires', async () => {
  const { token, id } = await authority.mint({ subject: 'a', ttlMs: 60_000 })
  using revoked = authority.watch(await authority.callerOf(`Bearer ${token}`))
  using host = authority.watch(hostCaller)
  assert.equal(revoked.signal.aborted, false)
  authority.revoke(id)
  assert.deepEqual([revoked.signal.aborted, host.signal.aborted], [true, false])
  const expired = { subject: 'a', scopes: undefined, token: { id: undefined, issuedAtMs: Date.now(), expiresAtMs: Date.now() - 60_000 } }
  using over = authority.watch(expired)
  assert.equal(over.signal.aborted, true)
  // Within the tolerance that clocks have.
  using soon = authority.watch({ ...expired, token: { ...expired.token, expiresAtMs: Date.now() - 4_950 } })
  if (!soon.signal.aborted) await new Promise((resolve) => soon.signal.addEventListener('abort', resolve, { once: true }))
})

test('what is known of a token is who it is for, not the token', async () => {
  const { token, id } = await authority.mint({ subject: 'list', scopes: ['image:read'], ttlMs: 60_000 })
  const row = authority.listTokens().find((one) => one.id === id)
  assert.deepEqual([row?.subject, row?.scopes, row?.revokedAtMs], ['list', ['image:read'], undefined])
  assert.equal(JSON.stringify(authority.listTokens()).includes(token.split('.')[2] ?? ''), false)
})

test('tokens that have expired leave the list, and then the database', () => {
  const rows = new TokenRows(Database.open(':memory:'))
  const made = { subject: 'a', scopes: undefined }
  rows.insert({ ...made, id: 'old', createdAtMs: 1, expiresAtMs: 10 })
  rows.insert({ ...made, id: 'new', createdAtMs: 5, expiresAtMs: 1000 })
  assert.deepEqual(
    [rows.list(10), rows.list(11)].map((list) => list.map(({ id }) => id)),
    [['new', 'old'], ['new']],
  )
  rows.insert({ ...made, id: 'newer', createdAtMs: 20, expiresAtMs: 1000 })
  assert.equal(rows.find('old'), undefined)
})

test('a scope opens its own routes and no others, and the refusal names it', () => {
  const reader = { subject: 'a', scopes: new Set(['instance:read']), token: undefined }
  authorize(reader, routes.listInstances.scope)
  assert.throws(() => authorize(reader, routes.createInstance.scope), { code: 'forbidden', message: /instance:write/ })
  assert.throws(() => authorize(reader, routes.listImages.scope), { code: 'forbidden', message: /image:read/ })
  for (const route of Object.values(routes as Record<string, Route>)) authorize(hostCaller, route.scope)
})

test('tokens are made on the host alone, whatever a token allows', () => {
  assert.throws(() => authorize({ subject: 'a', scopes: undefined, token: undefined }, routes.createToken.scope), { code: 'forbidden' })
})

test('the secret is made once, for its owner alone', (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'dormouse-secret-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const path = join(dir, 'deep', 'secret')
  const made = loadOrCreateSecret(path, silentLogger)
  assert.ok(made.length >= 32)
  assert.equal(statSync(path).mode & 0o777, 0o600)
  assert.deepEqual(loadOrCreateSecret(path, silentLogger), made)
  chmodSync(path, 0o644)
  assert.deepEqual(loadOrCreateSecret(path, silentLogger), made)
  assert.equal(statSync(path).mode & 0o777, 0o600)
  writeFileSync(path, 'short')
  assert.throws(() => loadOrCreateSecret(path, silentLogger), { code: 'invalid_request' })
})

test('no token is made that the API would not take, or that would be taken for someone else', async () => {
  const server = new HttpServer(fakeUses())
  for (const subject of ['builder-1', 'host', 'system'])
    await assert.rejects(server.authority.mint({ subject, ttlMs: 60_000 }), { code: 'invalid_request', message: /subject/ })
  await server.close()
})
