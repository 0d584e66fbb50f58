/** What of the host's network is read: routes, resolvers, the link outwards. From files alone, so that a look costs nothing. */
import { existsSync, readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import type { Subnet4, Subnet6 } from '../lib/subnet.ts'

export interface HostRoutes {
  readonly ipv4: readonly (Subnet4 & { readonly device: string })[]
  readonly ipv6: readonly (Subnet6 & { readonly device: string })[]
}

export const hasIpv6 = (): boolean => existsSync('/proc/net/if_inet6')

export function readRoutes(): HostRoutes {
  return { ipv4: parseRoutes4(read('/proc/net/route')), ipv6: parseRoutes6(read('/proc/net/ipv6_route')) }
}

/** `/proc/net/route`: addresses are 32-bit numbers of the host's order in hex, which is the little end first here. Pure. */
export function parseRoutes4(text: string): HostRoutes['ipv4'] {
  return rowsOf(text).flatMap(([device = '', to = '', , , , , , mask = '']) => {
    if (!/^[0-9A-F]{8}$/.test(to) || !/^[0-9A-F]{8}$/.test(mask)) return []
    const bits = swapped(mask).toString(2).replaceAll('0', '').length
    return [{ device, base: swapped(to), prefix: bits }]
  })
}

/** `/proc/net/ipv6_route`. Pure. */
export function parseRoutes6(text: string): HostRoutes['ipv6'] {
  return rowsOf(text).flatMap((row) => {
    const [to = '', prefix = ''] = row
    const device = row.at(-1) ?? ''
    // Local and multicast routes are the kernel's own affair.
    if (!/^[0-9a-f]{32}$/.test(to) || device === 'lo' || to.startsWith('ff') || to.startsWith('fe8')) return []
    return [{ device, base: BigInt(`0x${to}`), prefix: Number.parseInt(prefix, 16) }]
  })
}

const rowsOf = (text: string): string[][] => text.split('\n').map((line) => line.trim().split(/\s+/))
const swapped = (hex: string): number => Buffer.from(hex, 'hex').reverse().readUInt32BE()

/** The device of the default route, when there is one. */
export const uplinkOf = ({ ipv4, ipv6 }: HostRoutes): string | undefined => [...ipv4, ...ipv6].find(({ prefix }) => prefix === 0)?.device

/** Bytes per second of a link; undefined when the driver does not say. */
export function readLinkSpeed(device: string): number | undefined {
  const megabits = Number(read(`/sys/class/net/${device}/speed`).trim() || Number.NaN)
  return Number.isFinite(megabits) && megabits > 0 ? (megabits * 1e6) / 8 : undefined
}

export function readMtu(device: string): number | undefined {
  const mtu = Number(read(`/sys/class/net/${device}/mtu`).trim() || Number.NaN)
  return Number.isInteger(mtu) && mtu > 0 ? mtu : undefined
}

/**
 * Whom the host asks for names; its first resolver of IPv4, else of IPv6. systemd's stub on the loopback answers no one else, so the
 * file of those behind it counts where there is one.
 */
export function readResolver(): string | undefined {
  const first = resolversIn(read('/etc/resolv.conf'))
  const all = first.includes('127.0.0.53') ? resolversIn(read('/run/systemd/resolve/resolv.conf')) : first
  return all.find((address) => isIP(address) === 4) ?? all.find((address) => isIP(address) === 6 && !address.startsWith('fe8'))
}

/** Pure. */
export const resolversIn = (text: string): string[] =>
  [...text.matchAll(/^\s*nameserver\s+(\S+)/gm)].map(([, address = '']) => address).filter((address) => isIP(address) !== 0)

function read(file: string): string {
  try {
    return readFileSync(file, 'latin1')
  } catch {
    return ''
  }
}
