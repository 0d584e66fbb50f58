import assert from 'node:assert/strict'
import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, connect as connectTcp } from 'node:net'
import { test } from 'node:test'
import { connect, createServer } from 'node:tls'
import fc from 'fast-check'
import { type Authority, Issuer, makeAuthority } from './certificates.ts'
import { integer, oid, sequence, time } from './der.ts'

const NOW = Date.now()
const hosts = ['api.example.com', '*.example.org']

/** What a client that trusts nothing but `authority` says against a server with a certificate of it for `issued`, asked for `asked`. */
async function handshake(authority: Authority, issued: string, asked = issued): Promise<string | undefined> {
  const issuer = new Issuer(authority)
  const server = createServer({ key: issuer.key, cert: issuer.issue(issued, NOW) })
  server.on('tlsClientError', () => undefined).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const socket = connectTcp((server.address() as AddressInfo).port, '127.0.0.1')
  const client = connect({ socket, servername: asked, ca: authority.certificate })
  try {
    await once(client, 'secureConnect')
    return undefined
  } catch (error) {
    return String(error)
  } finally {
    client.destroy()
    server.close()
  }
}

test('what an authority issues is believed by who trusts it, for that host and no other', async () => {
  const authority = makeAuthority('web', hosts, NOW)
  assert.equal(await handshake(authority, 'api.example.com'), undefined)
  assert.equal(await handshake(authority, 'b.a.example.org'), undefined)
  assert.match(`${await handshake(authority, 'api.example.com', 'b.example.org')}`, /does not match certificate's altnames/)
  assert.notEqual(
    await handshake({ ...authority, certificate: makeAuthority('web', hosts, NOW).certificate }, 'api.example.com'),
    undefined,
  )
})

test('an authority with hosts is good for no other host, whoever has its key', async () => {
  const authority = makeAuthority('web', hosts, NOW)
  for (const host of ['evil.com', 'example.com', 'xample.org', 'badexample.org', 'example.org.evil.com']) {
    assert.match(`${await handshake(authority, host)}`, /permitted subtree violation/, host)
  }
  assert.equal(await handshake(makeAuthority('web', undefined, NOW), 'evil.com'), undefined)
  assert.match(`${await handshake(makeAuthority('web', [], NOW), 'evil.com')}`, /permitted subtree violation/)
})

test('certificates say what they are, and two authorities have nothing in common', () => {
  const authority = makeAuthority('x'.repeat(100), hosts, NOW)
  const ca = new X509Certificate(authority.certificate)
  const issuer = new Issuer(authority)
  const leaf = new X509Certificate(issuer.issue(`${'a'.repeat(63)}.${'b'.repeat(63)}.example.org`, NOW))
  assert.ok(ca.ca && !leaf.ca)
  assert.ok(ca.verify(ca.publicKey) && leaf.verify(ca.publicKey) && leaf.checkIssued(ca))
  assert.equal(ca.subject, `CN=${'x'.repeat(64)}`)
  assert.ok(Date.parse(leaf.validFrom) < NOW && Date.parse(leaf.validTo) > NOW && Date.parse(ca.validTo) > Date.parse(leaf.validTo))
  assert.ok(!authority.certificate.includes('PRIVATE') && !leaf.toString().includes('PRIVATE'))
  const other = makeAuthority('x'.repeat(100), hosts, NOW)
  assert.ok(other.key !== authority.key && new X509Certificate(other.certificate).serialNumber !== ca.serialNumber)
  assert.ok(!leaf.verify(new X509Certificate(other.certificate).publicKey))
})

test('numbers, lengths, names and times are written as X.690 has them', () => {
  assert.deepEqual([...oid('1.2.840.10045.4.3.2')], [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2])
  assert.deepEqual([...integer(Buffer.of(0, 0, 0x80))], [2, 2, 0, 0x80])
  assert.deepEqual([...integer(Buffer.of(0))], [2, 1, 0])
  assert.equal(
    time(Date.UTC(2049, 11, 31, 23, 59, 59))
      .toString('latin1')
      .slice(2),
    '491231235959Z',
  )
  assert.equal(
    time(Date.UTC(2050, 0, 1))
      .toString('latin1')
      .slice(2),
    '20500101000000Z',
  )
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 70_000 }), (length) => {
      const der = sequence(Buffer.alloc(length))
      const first = der[1] ?? 0
      const head = first < 0x80 ? 2 : 2 + (first & 0x7f)
      assert.equal(der.length, head + length)
      assert.equal(first < 0x80 ? first : der.readUIntBE(2, first & 0x7f), length)
    }),
  )
})
