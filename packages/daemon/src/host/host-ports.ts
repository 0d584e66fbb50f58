import { createSocket } from 'node:dgram'
import { createServer, isIPv6, SocketAddress } from 'node:net'

/** A port of this host that something listens on, or is to. `hostIp` as `canonicalAddress` spells it. */
export interface HostPort {
  readonly protocol: 'tcp' | 'udp'
  readonly hostIp: string
  readonly hostPort: number
}

/** True when only one of the two can be open. One for all addresses of a family overlaps with each of them, never with the other family. */
export function overlaps(a: HostPort, b: HostPort): boolean {
  if (a.protocol !== b.protocol || a.hostPort !== b.hostPort || isIPv6(a.hostIp) !== isIPv6(b.hostIp)) return false
  return a.hostIp === b.hostIp || isEvery(a.hostIp) || isEvery(b.hostIp)
}

const isEvery = (address: string): boolean => address === '0.0.0.0' || address === '::'

/** One spelling for one address: an IPv6 address has many. */
export const canonicalAddress = (address: string): string =>
  isIPv6(address) ? new SocketAddress({ address, family: 'ipv6' }).address : address

/** Opens the port for a moment, as a network helper will for good, and gives its number, chosen where it was 0. Rejects with the system's code. */
export function tryHostPort({ protocol, hostIp, hostPort }: HostPort): Promise<number> {
  return protocol === 'tcp' ? tryTcp(hostIp, hostPort) : tryUdp(hostIp, hostPort)
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
  const socket = createSocket({ type: isIPv6(host) ? 'udp6' : 'udp4', ipv6Only: isIPv6(host) })
  socket.once('error', reject)
  socket.bind({ address: host, port, exclusive: true }, () => {
    const chosen = socket.address().port
    socket.close(() => resolve(chosen))
  })
  return promise
}
