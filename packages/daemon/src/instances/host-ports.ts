import { createSocket } from 'node:dgram'
import { createServer, isIPv6 } from 'node:net'
import { AppError } from '@dormouse/api/errors.ts'
import type { PortForward } from '../hypervisors/hypervisor.ts'

/**
 * The port with its host side chosen where 0 was asked for. Tries the port by opening it for a moment: a program that has it is
 * told of before anything is made. The VMM opens it for good, and says so again should someone have come first.
 */
export async function probeHostPort(port: PortForward): Promise<PortForward> {
  const isSix = isIPv6(port.hostIp)
  const name = `${isSix ? `[${port.hostIp}]` : port.hostIp}:${port.hostPort}/${port.protocol}`
  if (isSix && port.protocol === 'udp') {
    throw new AppError('invalid_request', `The host port ${name} cannot be published: UDP is published on IPv4 addresses only`, {
      hint: 'Publish it on 127.0.0.1, or on 0.0.0.0 for other hosts',
    })
  }
  try {
    const hostPort = port.protocol === 'tcp' ? await tryTcp(port.hostIp, port.hostPort) : await tryUdp(port.hostIp, port.hostPort)
    return { ...port, hostPort }
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (code === 'EADDRINUSE') throw new AppError('port_in_use', `The host port ${name} is used by another program`, { cause })
    if (code === 'EADDRNOTAVAIL') throw new AppError('invalid_request', `${port.hostIp} is no address of this host`, { cause })
    if (code === 'EACCES') throw new AppError('invalid_request', `The host port ${name} may not be opened by this user`, { cause })
    throw new AppError('invalid_request', `The host port ${name} cannot be opened`, { cause })
  }
}

function tryTcp(host: string, port: number): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  const server = createServer()
  server.once('error', reject)
  // As the network helper opens it: an IPv6 address is never one for IPv4 too.
  server.listen({ host, port, exclusive: true, ipv6Only: true }, () => {
    const address = server.address()
    server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : port))
  })
  return promise
}

function tryUdp(host: string, port: number): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  const socket = createSocket('udp4')
  socket.once('error', reject)
  socket.bind({ address: host, port, exclusive: true }, () => {
    const chosen = socket.address().port
    socket.close(() => resolve(chosen))
  })
  return promise
}
