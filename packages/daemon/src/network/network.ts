/**
 * The rootless network as a plan: every guest sees the same small net, made by its VM's own network helper, and only the host's side
 * of it differs. Nothing has to be set up on the host, so nothing can be left over.
 */
import { createHash } from 'node:crypto'

/** The net that the helper speaks for. Its forwarder asks whatever resolver the host has, one on the host's loopback too. */
export const USER_NET = {
  ipv4: { address: '10.0.2.15', prefix: 24, gateway: '10.0.2.2' },
  ipv6: { address: 'fdd0:6d05:e000::15', prefix: 64, gateway: 'fdd0:6d05:e000::2' },
  dnsForwarder: '10.0.2.3',
  // The helper takes each frame through memory, not over a wire: large ones are what makes it fast.
  mtu: 65_520,
} as const

export interface GuestNetwork {
  readonly mac: string
  readonly ipv4: { readonly address: string; readonly prefix: number; readonly gateway: string }
  readonly ipv6: { readonly address: string; readonly prefix: number; readonly gateway: string }
  readonly dns: readonly string[]
  readonly mtu: number
}

/** What the guest is told about its one interface. Without resolvers of its own it asks the helper's forwarder. */
export const guestNetworkOf = (mac: string, dns: readonly string[]): GuestNetwork => ({
  mac,
  ipv4: USER_NET.ipv4,
  ipv6: USER_NET.ipv6,
  dns: dns.length > 0 ? dns : [USER_NET.dnsForwarder],
  mtu: USER_NET.mtu,
})

/** The MAC of an instance: the same for one id for ever, locally administered, unicast. */
export const macOf = (id: string): string =>
  ['02', ...[...createHash('sha256').update(id).digest().subarray(0, 5)].map((byte) => byte.toString(16).padStart(2, '0'))].join(':')
