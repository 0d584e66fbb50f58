/** `-p` as Docker writes it: `[[ip:]host:]guest[/tcp|udp]`, single ports or ranges of the same length. Without a host port the daemon picks a free one. */
import type { PortMapping } from '@dormouse/api/instances.ts'
import { usageFailure } from '../failure.ts'

const SPEC = /^(?:(?:\[([0-9a-fA-F:.]+)\]|(\d{1,3}(?:\.\d{1,3}){3})):)?(?:(\d*)(?:-(\d+))?:)?(\d+)(?:-(\d+))?(?:\/(tcp|udp))?$/
const RANGE_MAX = 64
const ANY = 0

export function parsePorts(spec: string): PortMapping[] {
  const match = SPEC.exec(spec)
  if (!match) throw portFailure(spec, 'it is not HOST:GUEST')
  const [, ipv6, ipv4, hostFrom, hostTo, guestFrom, guestTo, protocol] = match
  if (ipv4?.split('.').some((part) => Number(part) > 255)) throw portFailure(spec, `${ipv4} is not an address`)
  const guest = range(spec, guestFrom, guestTo)
  const host = hostFrom === undefined || hostFrom === '' || hostFrom === '0' ? guest.map(() => ANY) : range(spec, hostFrom, hostTo)
  if (host.length !== guest.length) throw portFailure(spec, `${host.length} host ports cannot stand for ${guest.length} guest ports`)
  const hostIp = ipv6 ?? ipv4
  return host.map((hostPort, index) => ({
    host_port: hostPort,
    guest_port: guest[index] ?? 0,
    protocol: protocol === 'udp' ? 'udp' : 'tcp',
    ...(hostIp === undefined ? {} : { host_ip: hostIp }),
  }))
}

/** The mapping as `ps` shows it: `127.0.0.1:8080->80/tcp`. */
export function formatPort(mapping: PortMapping): string {
  const ip = mapping.host_ip === undefined ? '' : mapping.host_ip.includes(':') ? `[${mapping.host_ip}]:` : `${mapping.host_ip}:`
  return `${ip}${mapping.host_port}->${mapping.guest_port}/${mapping.protocol ?? 'tcp'}`
}

function range(spec: string, from: string | undefined, to: string | undefined): number[] {
  const first = port(spec, from ?? '')
  const last = to === undefined ? first : port(spec, to)
  if (last < first) throw portFailure(spec, `${first}-${last} runs backwards`)
  if (last - first >= RANGE_MAX) throw portFailure(spec, `a range holds at most ${RANGE_MAX} ports`)
  return Array.from({ length: last - first + 1 }, (_, index) => first + index)
}

function port(spec: string, digits: string): number {
  const value = Number(digits)
  if (!(value >= 1 && value <= 65_535)) throw portFailure(spec, `${digits} is not a port`)
  return value
}

const portFailure = (spec: string, why: string) =>
  usageFailure(`Cannot publish ${JSON.stringify(spec)}: ${why}`, 'Write it as 8080:80, 8080:80/udp, 127.0.0.1:8080:80 or [::1]:8080:80')
