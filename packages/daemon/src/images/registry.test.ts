import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import { configOf } from '../config/config.ts'
import { classifyAddress } from './addresses.ts'
import { type Credentials, credentialsFrom, credentialsFromFile } from './keychain.ts'
import { parseChallenges } from './registry-auth.ts'
import { parseRetryAfter, RegistryClient } from './registry-client.ts'
import { type Lookup, type NetworkPolicy, RegistryNetwork } from './registry-network.ts'
import { sha256 } from './tar-fixtures.ts'

type Handler = (request: IncomingMessage, response: ServerResponse) => void
const CLOSED: NetworkPolicy = { allowPrivateRegistries: false, insecureRegistries: [] }
const signal = AbortSignal.timeout(600_000)

/** A server on loopback; gives its `host:port`. */
async function serve(t: TestContext, handler: Handler): Promise<string> {
  const server = createServer(handler)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  return `127.0.0.1:${(server.address() as AddressInfo).port}`
}

function clientFor(
  t: TestContext,
  host: string,
  options: { credentials?: Credentials; policy?: NetworkPolicy; lookup?: Lookup } = {},
): RegistryClient {
  const client = new RegistryClient({
    registry: host,
    host,
    repository: 'lib/x',
    policy: CLOSED,
    maxDocumentBytes: 1 << 16,
    credentials: undefined,
    ...options,
  })
  t.after(() => client[Symbol.asyncDispose]())
  return client
}

const refused = (code: ErrorCode, says: RegExp) => (error: unknown) =>
  error instanceof AppError && error.code === code && says.test(error.message)

test('addresses are told apart, whatever they are dressed in', () => {
  for (const [address, kind] of [
    ['8.8.8.8', 'public'],
    ['2606:4700::1111', 'public'],
    ['127.0.0.1', 'loopback'],
    ['127.255.0.3', 'loopback'],
    ['::1', 'loopback'],
    ['::ffff:127.0.0.1', 'loopback'],
    ['::ffff:7f00:1', 'loopback'],
    ['0:0:0:0:0:ffff:7f00:0001', 'loopback'],
    ['10.1.2.3', 'private'],
    ['172.31.0.1', 'private'],
    ['172.32.0.1', 'public'],
    ['192.168.1.1', 'private'],
    ['100.64.0.1', 'private'],
    ['fd00::1', 'private'],
    ['::ffff:10.0.0.1', 'private'],
    ['64:ff9b::a00:1', 'private'],
    ['2002:a00:1::', 'private'],
    ['169.254.169.254', 'link-local'],
    ['::ffff:169.254.169.254', 'link-local'],
    ['fe80::1%eth0', 'link-local'],
    ['0.0.0.0', 'other'],
    ['::', 'other'],
    ['224.0.0.1', 'other'],
    ['255.255.255.255', 'other'],
    ['ff02::1', 'other'],
    ['example.com', 'other'],
  ] as const) {
    assert.equal(classifyAddress(address), kind, address)
  }
})

test('challenges are read as registries write them', () => {
  const [bearer] = parseChallenges('Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push"')
  assert.equal(bearer?.scheme, 'bearer')
  assert.deepEqual(Object.fromEntries(bearer?.parameters ?? []), {
    realm: 'https://auth.example/token',
    service: 'reg',
    scope: 'repository:a/b:pull,push',
  })
  assert.deepEqual(
    parseChallenges(['Basic realm="a \\"b\\""', 'Bearer realm=x']).map(({ scheme, parameters }) => [scheme, parameters.get('realm')]),
    [
      ['basic', 'a "b"'],
      ['bearer', 'x'],
    ],
  )
  for (const bad of [undefined, '', '"', '=', 'x'.repeat(100_000), 'Bearer realm="']) assert.ok(Array.isArray(parseChallenges(bad)))
})

test('Retry-After is seconds or a date', () => {
  assert.equal(parseRetryAfter('120'), 120)
  assert.equal(parseRetryAfter('Wed, 01 Jan 2025 00:01:00 GMT', Date.parse('2025-01-01T00:00:00Z')), 60)
  assert.equal(parseRetryAfter('99999999'), 86_400)
  assert.equal(parseRetryAfter('soon'), undefined)
  assert.equal(parseRetryAfter(undefined), undefined)
})

test('the keychain finds credentials as docker writes them, and says so when a helper has them', () => {
  const file = (config: unknown) => JSON.stringify(config)
  const auth = Buffer.from('me:pass:word').toString('base64')
  assert.deepEqual(credentialsFrom(file({ auths: { 'https://index.docker.io/v1/': { auth } } }), 'f', 'docker.io'), {
    username: 'me',
    password: 'pass:word',
  })
  assert.deepEqual(credentialsFrom(file({ auths: { 'reg.example:5000': { username: 'a', password: 'b' } } }), 'f', 'reg.example:5000'), {
    username: 'a',
    password: 'b',
  })
  assert.deepEqual(credentialsFrom(file({ auths: { 'reg.example': { identitytoken: 'tok' } } }), 'f', 'reg.example'), {
    identityToken: 'tok',
  })
  assert.equal(credentialsFrom(file({ auths: { 'reg.example': { auth } } }), 'f', 'other.example'), undefined)
  assert.throws(
    () => credentialsFrom(file({ credHelpers: { 'reg.example': 'osxkeychain' } }), 'f', 'reg.example'),
    refused('not_supported', /helper/),
  )
  assert.throws(() => credentialsFrom('{', 'f', 'reg.example'), refused('invalid_request', /could not be read/))
})

test('Docker’s own file is used where nobody named another; what the daemon cannot use of it stands in no pull’s way', async (t) => {
  const { images } = configOf(new Map())
  assert.deepEqual(images.keychain, { file: join(process.env.DOCKER_CONFIG ?? join(homedir(), '.docker'), 'config.json'), isNamed: false })
  assert.deepEqual(configOf(new Map([['REGISTRY_CREDENTIALS_FILE', '/x']])).images.keychain, { file: '/x', isNamed: true })
  assert.equal(configOf(new Map([['REGISTRY_CREDENTIALS_FILE', 'off']])).images.keychain, undefined)

  const dir = mkdtempSync(join(tmpdir(), 'dm-keychain-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const file = join(dir, 'config.json')
  const found = (isNamed: boolean) => credentialsFromFile({ file, isNamed }, 'reg.example')
  assert.equal(await found(false), undefined, 'no file')
  writeFileSync(file, JSON.stringify({ auths: { 'reg.example': { username: 'a', password: 'b' } } }))
  assert.deepEqual(await found(false), { username: 'a', password: 'b' })
  for (const content of ['{', JSON.stringify({ credHelpers: { 'reg.example': 'pass' } })]) {
    writeFileSync(file, content)
    assert.equal(await found(false), undefined, content)
    await assert.rejects(found(true), AppError, content)
  }
})

test('every status of a registry has its own code', async (t) => {
  for (const [status, code] of [
    [401, 'registry_unauthorized'],
    [403, 'registry_refused'],
    [404, 'not_found'],
    [429, 'rate_limited'],
    [500, 'registry_unavailable'],
    [503, 'registry_unavailable'],
  ] as const) {
    const host = await serve(t, (_, response) => response.writeHead(status, { 'retry-after': '17' }).end('{}'))
    await assert.rejects(clientFor(t, host).manifest('v1', signal), (error) => {
      assert.ok(error instanceof AppError)
      assert.equal(error.code, code)
      if (status === 429) assert.equal(error.retryAfterSeconds, 17)
      return true
    })
  }
})

test('a registry that is not there is registry_unavailable', async (t) => {
  await assert.rejects(clientFor(t, '127.0.0.1:1').manifest('v1', signal), refused('registry_unavailable', /could not be reached/))
})

test('a manifest asked for by digest must be that one, and one that says another digest of itself is refused', async (t) => {
  const body = '{"schemaVersion":2}'
  const host = await serve(t, (request, response) => {
    response.writeHead(200, request.url?.endsWith('lying') ? { 'docker-content-digest': sha256(Buffer.from('x')) } : {}).end(body)
  })
  const client = clientFor(t, host)
  assert.equal((await client.manifest('v1', signal)).digest, sha256(Buffer.from(body)))
  await assert.rejects(client.manifest(sha256(Buffer.from('other')), signal), refused('invalid_image', /digest/))
  await assert.rejects(client.manifest('lying', signal), refused('invalid_image', /digest/))
})

test('a manifest without end is cut off', async (t) => {
  const host = await serve(t, (_, response) => {
    response.on('error', () => undefined)
    const more = (): void => {
      if (!response.destroyed) response.write(Buffer.alloc(1 << 16), () => setImmediate(more))
    }
    response.writeHead(200)
    more()
  })
  await assert.rejects(clientFor(t, host).manifest('v1', signal), refused('invalid_image', /more than 65536 bytes/))
})

test('a token is fetched from the realm with the credentials, used, and asked for once', async (t) => {
  const seen: string[] = []
  const realm = await serve(t, (request, response) => {
    seen.push(`${request.url} ${request.headers.authorization ?? '-'}`)
    response.end('{"access_token":"abc","expires_in":300}')
  })
  const host = await serve(t, (request, response) => {
    if (request.headers.authorization === 'Bearer abc') response.end('{}')
    else response.writeHead(401, { 'www-authenticate': `Bearer realm="http://${realm}/token",service="reg"` }).end()
  })
  const client = clientFor(t, host, { credentials: { username: 'me', password: 'secret' } })
  await client.manifest('v1', signal)
  await client.manifest('v2', signal)
  assert.deepEqual(seen, [`/token?service=reg&scope=repository%3Alib%2Fx%3Apull Basic ${Buffer.from('me:secret').toString('base64')}`])
})

test('an identity token is exchanged for an access token', async (t) => {
  let form = ''
  const realm = await serve(t, (request, response) => {
    request.on('data', (chunk) => {
      form += chunk
    })
    request.on('end', () => response.end('{"token":"abc"}'))
  })
  const host = await serve(t, (request, response) => {
    if (request.headers.authorization === 'Bearer abc') response.end('{}')
    else response.writeHead(401, { 'www-authenticate': `Bearer realm="http://${realm}/token"` }).end()
  })
  await clientFor(t, host, { credentials: { identityToken: 'refresh' } }).manifest('v1', signal)
  assert.match(form, /grant_type=refresh_token/)
  assert.match(form, /refresh_token=refresh/)
})

test('Basic is sent when the registry asks for it, and wrong credentials end the asking', async (t) => {
  let asked = 0
  const host = await serve(t, (request, response) => {
    asked++
    if (request.headers.authorization === `Basic ${Buffer.from('me:right').toString('base64')}`) response.end('{}')
    else response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
  })
  await clientFor(t, host, { credentials: { username: 'me', password: 'right' } }).manifest('v1', signal)
  asked = 0
  await assert.rejects(
    clientFor(t, host, { credentials: { username: 'me', password: 'wrong' } }).manifest('v1', signal),
    refused('registry_unauthorized', /other credentials/),
  )
  assert.ok(asked <= 3)
})

test('a redirect is followed without the credentials, and only so many times', async (t) => {
  const seen: (string | undefined)[] = []
  const elsewhere = await serve(t, (request, response) => {
    seen.push(request.headers.authorization)
    response.end('{}')
  })
  const host = await serve(t, (request, response) => {
    if (request.url?.endsWith('/loop')) response.writeHead(307, { location: request.url }).end()
    else if (request.headers.authorization === undefined) response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
    else response.writeHead(307, { location: `http://${elsewhere}/blob` }).end()
  })
  const client = clientFor(t, host, { credentials: { username: 'me', password: 'secret' } })
  await client.manifest('v1', signal)
  assert.deepEqual(seen, [undefined])
  await assert.rejects(client.manifest('loop', signal), refused('registry_refused', /more than 5 times/))
})

test('a redirect or a realm at a private or link-local address is refused, and so is one that is no http', async (t) => {
  for (const target of [
    'http://169.254.169.254/latest/meta-data',
    'https://169.254.169.254/',
    'https://10.0.0.1/',
    'https://[fd00::1]/',
    'https://[::ffff:10.0.0.1]/',
    'https://0x0a000001/',
    'https://0.0.0.0/',
    'http://example.com/',
    'file:///etc/passwd',
    'ftp://example.com/',
    'https://user:pass@example.com/',
  ]) {
    const redirecting = await serve(t, (_, response) => response.writeHead(307, { location: target }).end())
    await assert.rejects(
      clientFor(t, redirecting).manifest('v1', signal),
      refused('registry_refused', /not allowed/),
      `redirect to ${target}`,
    )
    const challenging = await serve(t, (_, response) => response.writeHead(401, { 'www-authenticate': `Bearer realm="${target}"` }).end())
    await assert.rejects(
      clientFor(t, challenging, { credentials: { username: 'u', password: 'p' } }).manifest('v1', signal),
      refused('registry_refused', /not allowed/),
      `realm ${target}`,
    )
  }
})

test('a name is judged by the address that it resolves to when it is connected to, also the registry’s own', async (t) => {
  const lookup: Lookup = (_hostname, _options, callback) => callback(null, [{ address: '169.254.169.254', family: 4 }])
  const redirecting = await serve(t, (_, response) => response.writeHead(307, { location: 'https://cdn.example/blob' }).end())
  await assert.rejects(
    clientFor(t, redirecting, { lookup }).manifest('v1', signal),
    refused('registry_refused', /leads to a link-local address \(169.254.169.254\)/),
  )
  await assert.rejects(
    clientFor(t, 'registry.example', { lookup }).manifest('v1', signal),
    refused('registry_refused', /is at a link-local address/),
  )
  // One bad address among good ones is enough: which of them is connected to is not ours to choose.
  const mixed: Lookup = (_hostname, _options, callback) =>
    callback(null, [
      { address: '8.8.8.8', family: 4 },
      { address: '127.0.0.1', family: 4 },
    ])
  await assert.rejects(clientFor(t, 'registry.example', { lookup: mixed }).manifest('v1', signal), refused('registry_refused', /loopback/))
})

test('a registry in a private network is refused unless the configuration allows it', async (t) => {
  await assert.rejects(clientFor(t, '10.255.255.1').manifest('v1', signal), refused('registry_refused', /private address/))
  await assert.rejects(clientFor(t, '169.254.169.254').manifest('v1', signal), refused('registry_refused', /link-local/))
})

test('plain http is spoken where it is asked for, and a registry may be no more places for it', async () => {
  await using plain = new RegistryNetwork('registry.example.com', { ...CLOSED, isPlain: true })
  assert.equal(plain.origin, 'http://registry.example.com')
  await using usual = new RegistryNetwork('registry.example.com', CLOSED)
  assert.equal(usual.origin, 'https://registry.example.com')
  await using inside = new RegistryNetwork('10.0.0.1', { ...CLOSED, isPlain: true })
  const request = inside.request(new URL('http://10.0.0.1/v2/'), { signal })
  await assert.rejects(request, { code: 'registry_refused' })
})

test('what is sent follows no redirect', async (t) => {
  const host = await serve(t, (request, response) => {
    request.resume()
    request.on('end', () => response.writeHead(307, { location: 'http://127.0.0.1:1/elsewhere' }).end())
  })
  await using network = new RegistryNetwork(host, CLOSED)
  const put = network.request(new URL(`http://${host}/v2/x/blobs/uploads/1`), { method: 'PUT', body: 'x', signal })
  await assert.rejects(put, { code: 'registry_refused', message: /redirects an upload/ })
})

test('of what answers a refusal only a registry’s own words are told', async (t) => {
  const answers = ['<html>admin of a service of the host</html>', JSON.stringify({ errors: [{ code: 'DENIED', message: 'not for you' }] })]
  for (const [body, said] of [
    [answers[0], undefined],
    [answers[1], 'DENIED: not for you'],
  ] as const) {
    const host = await serve(t, (_, response) => response.writeHead(403).end(body))
    await assert.rejects(clientFor(t, host).manifest('1', signal), (error) => {
      assert.ok(error instanceof AppError)
      assert.deepEqual(error.detail, { status: 403, ...(said !== undefined && { said }) })
      return true
    })
  }
})
