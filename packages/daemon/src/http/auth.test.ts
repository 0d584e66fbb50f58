import assert from 'node:assert/strict'
import { chmodSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { type Route, routes } from '@dormouse/api/routes.ts'
import { generateKeyPair, SignJWT } from 'jose'
import { silentLogger } from '../log.ts'
import { Authority, authorize, hostCaller } from './auth.ts'
import { loadOrCreateSecret } from './secret.ts'

const secret = Buffer.from('a secret that is long enough')
const authority = new Authority(secret)

async function tokenWith(
  claims: Record<string, unknown>,
  options: { expires?: string | number; alg?: string; key?: Uint8Array } = {},
): Promise<string> {
  const token = new SignJWT(claims).setProtectedHeader({ alg: options.alg ?? 'HS256' }).setIssuedAt()
  return `Bearer ${await token.setExpirationTime(options.expires ?? '1h').sign(options.key ?? secret)}`
}

test('a token that was made here holds, with its scopes', async () => {
  const { token, expires_at } = await authority.mint({ subject: 'ann', scopes: ['instance:read'], ttlMs: 60_000 })
  const caller = await authority.callerOf(`Bearer ${token}`)
  assert.equal(caller.subject, 'ann')
  assert.deepEqual([...(caller.scopes ?? [])], ['instance:read'])
  assert.ok(Math.abs(Date.parse(expires_at) - Date.now() - 60_000) < 2000)
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
    'one of many kilobytes': `Bearer ${'a'.repeat(9000)}.b.c`,
  }
  for (const [name, header] of Object.entries(refused)) await assert.rejects(authority.callerOf(header), { code: 'unauthorized' }, name)
})

test('a scope opens its own routes and no others, and the refusal names it', () => {
  const reader = { subject: 'a', scopes: new Set(['instance:read']) }
  authorize(reader, routes.listInstances)
  assert.throws(() => authorize(reader, routes.createInstance), { code: 'forbidden', message: /instance:write/ })
  assert.throws(() => authorize(reader, routes.listImages), { code: 'forbidden', message: /image:read/ })
  for (const route of Object.values(routes as Record<string, Route>)) authorize(hostCaller, route)
})

test('tokens are made on the host alone, whatever a token allows', () => {
  assert.throws(() => authorize({ subject: 'a', scopes: undefined }, routes.createToken), { code: 'forbidden' })
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
