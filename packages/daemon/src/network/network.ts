/**
 * The rootless network as a plan: every guest sees the same small net, made by its VMM's user-mode backend (passt or QEMU's own),
 * and only the host's side of it differs. Nothing has to be set up on the host, so nothing can be left over.
 */
import { createHash } from 'node:crypto'
import { isIPv4 } from 'node:net'

/** The addresses that the user-mode backends give out; the same under each of them. */
export const USER_NET = { address: '10.0.2.15', prefix: 24, gateway: '10.0.2.2', dnsForwarder: '10.0.2.3' } as const

export interface GuestNetwork {
  readonly mac: string
  readonly ipv4: { readonly address: string; readonly prefix: number; readonly gateway: string }
  readonly dns: readonly string[]
}

/** What the guest is told about its one interface. */
export const guestNetworkOf = (mac: string, dns: readonly string[]): GuestNetwork => ({
  mac,
  ipv4: { address: USER_NET.address, prefix: USER_NET.prefix, gateway: USER_NET.gateway },
  dns: dns.length > 0 ? dns : [USER_NET.dnsForwarder],
})

/** The MAC of an instance: the same for one id for ever, locally administered, unicast. */
export const macOf = (id: string): string =>
  ['02', ...[...createHash('sha256').update(id).digest().subarray(0, 5)].map((byte) => byte.toString(16).padStart(2, '0'))].join(':')

// resolv.conf(5): the resolver reads no more.
const MAX_RESOLVERS = 3

/**
 * The resolvers of a resolv.conf that a guest can use as they are. One on the host's loopback (systemd-resolved, dnsmasq) means
 * nothing inside a guest and is left out; when none is left, guests are given the backend's own forwarder.
 */
export function resolversOf(resolvConf: string): string[] {
  return resolvConf
    .split('\n')
    .map((line) => /^\s*nameserver\s+(\S+)/.exec(line)?.[1] ?? '')
    .filter((address) => isIPv4(address) && !address.startsWith('127.') && address !== '0.0.0.0')
    .slice(0, MAX_RESOLVERS)
}
