import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type Server } from 'node:net'
import { test } from 'node:test'
import { canonicalAddress, type HostPort, overlaps, tryHostPort } from './host-ports.ts'

const ADDRESSES = ['127.0.0.1', '127.0.0.2', '0.0.0.0', '::1', '::']

/** Listens, or gives undefined when the host says that the port is taken. */
async function listen(host: string, port: number): Promise<Server | undefined> {
  const server = createServer()
  const opened = once(server, 'listening').then(
    () => server,
    (error) => (error.code === 'EADDRINUSE' ? undefined : Promise.reject(error)),
  )
  server.listen({ host, port, exclusive: true, ipv6Only: true })
  return opened
}

const tcp = (hostIp: string, hostPort: number): HostPort => ({ protocol: 'tcp', hostIp, hostPort })

for (const first of ADDRESSES) {
  test(`ports overlap with one of ${first} exactly when the host cannot open both`, async () => {
    const server = await listen(first, 0)
    assert.ok(server)
    const { port } = server.address() as { port: number }
    for (const second of ADDRESSES) {
      const other = await listen(second, port)
      assert.equal(overlaps(tcp(first, port), tcp(second, port)), other === undefined, `${first} and ${second}`)
      other?.close()
      const tried = await tryHostPort(tcp(second, port)).then(
        () => true,
        () => false,
      )
      assert.equal(tried, other !== undefined)
    }
    server.close()
  })
}

test('other ports and other protocols never overlap', () => {
  assert.equal(overlaps(tcp('0.0.0.0', 80), tcp('0.0.0.0', 81)), false)
  assert.equal(overlaps(tcp('0.0.0.0', 80), { ...tcp('0.0.0.0', 80), protocol: 'udp' }), false)
})

test('an address has one spelling', () => {
  assert.deepEqual(['0:0::0:1', '2001:DB8::0:1', '::0', '127.0.0.1'].map(canonicalAddress), ['::1', '2001:db8::1', '::', '127.0.0.1'])
})
