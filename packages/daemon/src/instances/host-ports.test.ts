import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { type TestContext, test } from 'node:test'
import type { PortForward } from '../hypervisors/hypervisor.ts'
import { probeHostPort } from './host-ports.ts'

const port = (hostIp: string, hostPort: number, protocol: PortForward['protocol'] = 'tcp'): PortForward => ({
  protocol,
  hostIp,
  hostPort,
  guestPort: 80,
})

async function takenPort(t: TestContext, host: string): Promise<number> {
  const server = createServer().listen({ host, port: 0, ipv6Only: true })
  await once(server, 'listening')
  t.after(() => server.close())
  const address = server.address()
  assert.ok(typeof address === 'object' && address !== null)
  return address.port
}

for (const hostIp of ['127.0.0.1', '::1']) {
  test(`a free TCP port of ${hostIp} is chosen where none was asked for, and one that another program has is told`, async (t) => {
    const { hostPort } = await probeHostPort(port(hostIp, 0))
    assert.ok(hostPort > 0)
    assert.equal((await probeHostPort(port(hostIp, hostPort))).hostPort, hostPort)
    await assert.rejects(probeHostPort(port(hostIp, await takenPort(t, hostIp))), { code: 'port_in_use' })
  })
}

test('a TCP port of all IPv6 addresses is free though a program has it for IPv4', async (t) => {
  const taken = await takenPort(t, '0.0.0.0')
  assert.equal((await probeHostPort(port('::', taken))).hostPort, taken)
})

test('a UDP port is published on IPv4 and IPv6 addresses, and one that a program has is told of', async () => {
  for (const hostIp of ['127.0.0.1', '::1']) {
    const { hostPort } = await probeHostPort(port(hostIp, 0, 'udp'))
    assert.ok(hostPort > 0)
    const socket = createSocket(hostIp === '::1' ? 'udp6' : 'udp4')
    socket.bind(0, hostIp)
    await once(socket, 'listening')
    const taken = probeHostPort(port(hostIp, socket.address().port, 'udp'))
    await assert.rejects(taken, { code: 'port_in_use' }).finally(() => socket.close())
  }
})

test('an address that the host does not have is refused', async () => {
  await assert.rejects(probeHostPort(port('192.0.2.1', 0)), { code: 'invalid_request', message: '192.0.2.1 is no address of this host' })
})

test('a free port is none that an instance has been given, though nothing listens on it', async () => {
  const chosen: number[] = []
  const { hostPort } = await probeHostPort(port('127.0.0.1', 0), ({ hostPort }) => chosen.push(hostPort) < 3)
  assert.deepEqual([chosen.length, chosen[2]], [3, hostPort])
  await assert.rejects(
    probeHostPort(port('127.0.0.1', 0), () => true),
    { code: 'port_in_use', message: /^No free host port was found on 127.0.0.1/ },
  )
})
