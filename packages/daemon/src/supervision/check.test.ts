import assert from 'node:assert/strict'
import { createServer, type RequestListener } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import { type Duplex, duplexPair } from 'node:stream'
import { test } from 'node:test'
import { FakeGuest, type FakeService } from '../guest/fake-guest.ts'
import { GuestClient } from '../guest/guest-client.ts'
import type { HealthProbe } from '../instances/instance.ts'
import { silentLogger as log } from '../log.ts'
import { perform } from './check.ts'

const step = () => ({ signal: AbortSignal.timeout(20_000), log })

async function guestWith(services: Readonly<Record<number, FakeService>> = {}) {
  const fake = new FakeGuest({ services: new Map(Object.entries(services).map(([port, service]) => [Number(port), service])) })
  const [ours, theirs] = duplexPair()
  fake.attach(theirs)
  const guest = await GuestClient.connect(ours, step())
  await guest.go(
    {
      hostname: 'box',
      machineId: '0123456789abcdef0123456789abcdef',
      workload: { kind: 'exec', argv: ['/bin/serve'], env: {}, cwd: '/', user: '', stopSignal: 'SIGTERM' },
      disks: { overlay: true, modules: true, volumes: [] },
    },
    step(),
  )
  const check = (probe: HealthProbe, timeoutMs = 10_000) =>
    perform(
      { probe, timeoutMs, intervalMs: 1, startPeriodMs: 0, failureThreshold: 1, successThreshold: 1 },
      { guest, address: '10.0.2.15', step: step() },
    )
  return { fake, guest, check }
}

const web = (listener: RequestListener): FakeService => {
  const server = createServer(listener)
  return (connection) => void server.emit('connection', connection)
}
const says =
  (bytes: string | Buffer): FakeService =>
  (connection: Duplex) =>
    void connection.end(bytes)
const http = (more: object = {}): HealthProbe => ({ kind: 'http', scheme: 'http', port: 80, path: '/', expectedStatus: 200, ...more })

test('tcp: a connection is enough, and none is a failure', async () => {
  const { check } = await guestWith({ 5432: () => undefined })
  assert.deepEqual(await check({ kind: 'tcp', port: 5432 }), { kind: 'success' })
  const refused = await check({ kind: 'tcp', port: 5433 })
  assert.equal(refused.kind, 'failure')
  assert.match(JSON.stringify(refused), /Connection refused/)
})

test('http: the status has to be the very one, a redirect is not followed', async () => {
  const paths: (string | undefined)[] = []
  const { check } = await guestWith({
    80: web((asked, response) => {
      paths.push(`${asked.method} ${asked.url} ${asked.headers.host}`)
      if (asked.url === '/moved') response.writeHead(302, { location: '/' })
      response.end('a body')
    }),
  })
  assert.deepEqual(await check(http({ path: '/ready?x=1' })), { kind: 'success' })
  assert.deepEqual(await check(http({ path: '/moved' })), { kind: 'failure', error: 'it answered 302, not 200' })
  assert.deepEqual(await check(http({ path: '/moved', expectedStatus: 302 })), { kind: 'success' })
  assert.deepEqual(paths, ['GET /ready?x=1 10.0.2.15:80', 'GET /moved 10.0.2.15:80', 'GET /moved 10.0.2.15:80'])
})

test('http: what is no answer is a failure in words, of bounded length', async () => {
  const { check } = await guestWith({
    80: says('\u001b[31mnonsense\r\n\r\n'),
    81: says(''),
    82: says(`HTTP/1.1 200 OK\r\nx: ${'y'.repeat(1 << 20)}\r\n\r\n`),
    83: says('HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n'),
  })
  for (const port of [80, 81, 82]) {
    const result = await check(http({ port }))
    assert.equal(result.kind, 'failure', String(port))
    // biome-ignore lint/suspicious/noControlCharactersInRegex: none may be in it
    assert.match('error' in result ? result.error : '', /^[^\u0000-\u001f]{1,500}$/)
  }
  assert.deepEqual(await check(http({ port: 83 })), { kind: 'success' })
})

test('https: a certificate that no one has signed is enough, and the status counts', async () => {
  const server = createTlsServer(SELF_SIGNED, (asked, response) => response.writeHead(asked.url === '/' ? 200 : 500).end())
  const { check } = await guestWith({ 443: (connection) => void server.emit('connection', connection) })
  assert.deepEqual(await check(http({ scheme: 'https', port: 443 })), { kind: 'success' })
  const wrong = await check(http({ scheme: 'https', port: 443, path: '/x' }))
  assert.deepEqual(wrong, { kind: 'failure', error: 'it answered 500, not 200' })
})

test('https: what speaks no TLS is a failure', async () => {
  const { check } = await guestWith({ 443: web((_, response) => response.end()) })
  assert.equal((await check(http({ scheme: 'https', port: 443 }))).kind, 'failure')
})

test('a check that takes longer than it may is a failure that says so, whatever it waits for', async () => {
  const { check } = await guestWith({ 80: () => undefined })
  const late = { kind: 'failure', error: 'it took longer than 50ms' }
  assert.deepEqual(await check(http(), 50), late)
  assert.deepEqual(await check(http({ scheme: 'https' }), 50), late)
  assert.deepEqual(await check({ kind: 'exec', command: ['sleep', '60'] }, 50), late)
})

test('exec: an end with 0 is good; any other is told with what was written', async () => {
  const { check } = await guestWith()
  assert.deepEqual(await check({ kind: 'exec', command: ['true'] }), { kind: 'success' })
  assert.deepEqual(await check({ kind: 'exec', command: ['exit', '7'] }), { kind: 'failure', error: 'exited with code 7' })
  const missing = await check({ kind: 'exec', command: ['curl'], workingDir: '/srv' })
  assert.deepEqual(missing, { kind: 'failure', error: 'command not found: curl' })
})

test('a workload that is frozen has not failed, nor has a guest that does not know the question', async () => {
  const { check, guest, fake } = await guestWith({ 80: () => undefined })
  await guest.freeze({}, step())
  assert.equal((await check({ kind: 'tcp', port: 80 })).kind, 'inconclusive')
  assert.equal((await check({ kind: 'exec', command: ['true'] })).kind, 'inconclusive')
  await guest.thaw(step())
  assert.equal((await check({ kind: 'tcp', port: 80 })).kind, 'success')
  fake.crash()
  assert.equal((await check({ kind: 'tcp', port: 80 })).kind, 'failure')
})

/** Of no use to anyone: `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=test`. */
const SELF_SIGNED = {
  key: `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgh2jZkqoBz+mFot2g
032uLQlKX9e0u9KM9NiddFJTYe+hRANCAARPh19x6nSRoU0tcm61icPpwMSjjwMA
ztfLc+LNOlx1+thylxVCeiKPe8YnRJBrJXzp2wtLEpa9r9aXNAFBXcrV
-----END PRIVATE KEY-----`,
  cert: `-----BEGIN CERTIFICATE-----
MIIBdjCCARugAwIBAgIUagYyVURZyEEf1DTo8yNXyK8Kd1EwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjUyMjU5MTZaGA8yMTI2MTEwMTIyNTkx
NlowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABE+H
X3HqdJGhTS1ybrWJw+nAxKOPAwDO18tz4s06XHX62HKXFUJ6Io97xidEkGslfOnb
C0sSlr2v1pc0AUFdytWjUzBRMB0GA1UdDgQWBBS/Vhuj8P6lSV4iK8pGj0T2aQ1I
PzAfBgNVHSMEGDAWgBS/Vhuj8P6lSV4iK8pGj0T2aQ1IPzAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0kAMEYCIQCgiVWm3liJDRf/AQNa/81tS96zT7Cn6V5O
E1mLpEoDkAIhAJh6VdLLAUWsfbRtwToB8it6KbOpixfpVTOoAHTsDtjj
-----END CERTIFICATE-----`,
}
