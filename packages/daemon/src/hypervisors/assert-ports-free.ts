import dgram from 'node:dgram'
import { once } from 'node:events'
import net from 'node:net'
import { AppError } from '@dormouse/api/errors.ts'
import type { PortForward } from './hypervisor.ts'

/**
 * Throws `port_in_use` for the first port that cannot be had now, before anything has been started for it. Someone may still take
 * it between this look and the real binding, which then says the same.
 */
export async function assertPortsFree(ports: readonly PortForward[]): Promise<void> {
  for (const port of ports) {
    try {
      await (port.protocol === 'tcp' ? tryTcp(port) : tryUdp(port))
    } catch (cause) {
      const code = (cause as NodeJS.ErrnoException).code
      const where = `Host port ${port.hostPort}/${port.protocol} on ${port.hostIp}`
      if (code === 'EADDRINUSE') throw new AppError('port_in_use', `${where} is taken`, { hint: 'Publish another host port', cause })
      if (code === 'EADDRNOTAVAIL')
        throw new AppError('invalid_request', `${where} cannot be published: the host has no such address`, { cause })
      if (code === 'EACCES')
        throw new AppError('invalid_request', `${where} is for root alone`, { hint: 'Publish a port from 1024 on', cause })
      throw cause
    }
  }
}

async function tryTcp({ hostIp, hostPort }: PortForward): Promise<void> {
  const server = net.createServer()
  // As the network helper opens it: an IPv6 address is never one for IPv4 too.
  server.listen({ host: hostIp, port: hostPort, exclusive: true, ipv6Only: true })
  await once(server, 'listening')
  server.close()
  await once(server, 'close')
}

async function tryUdp({ hostIp, hostPort }: PortForward): Promise<void> {
  const socket = dgram.createSocket(hostIp.includes(':') ? 'udp6' : 'udp4')
  socket.bind({ address: hostIp, port: hostPort, exclusive: true })
  await once(socket, 'listening')
  socket.close()
  await once(socket, 'close')
}
