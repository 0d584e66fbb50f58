/**
 * How instances reach the world, in one of two ways that look the same from above:
 *
 *   user      every guest sees the same small net, made by its VM's own helper. Nothing is set up on the host, so nothing can be left over
 *   bridged   a bridge of ours, a TAP and a leased address for each, rules in the kernel (bridged.ts)
 *
 * docs/networking.md draws both.
 */
import { createHash } from 'node:crypto'
import type { ListeningSocket, ProxyNetwork } from '../egress/egress.ts'
import type { Bandwidth, IgnoredConnections, Inbound, PortForward, Vm } from '../hypervisors/hypervisor.ts'
import type { NicSpec } from '../hypervisors/vm-spec.ts'
import type { Step } from '../lib/step.ts'
import { readLinkSpeed, readRoutes, uplinkOf } from './host-network.ts'

/** An instance's one interface, as far as its network is concerned. */
export interface Nic {
  readonly id: string
  readonly mac: string
  readonly ports: readonly PortForward[]
  readonly bandwidth: Bandwidth
  /** What it opens by TCP goes through its proxy, at that port of the host; absent: it goes by itself, or its driver sees to it. */
  readonly egress?: { readonly mode: 'all' | 'http_https_only'; readonly proxyPort?: number | undefined }
}

/** Bytes, from the guest's viewpoint. */
export interface GuestTraffic {
  readonly receivedBytes: number
  readonly sentBytes: number
}

export interface Network extends ProxyNetwork {
  readonly kind: 'user' | 'bridged'
  /** What `/capabilities` says of it. */
  readonly model: { readonly model: 'nat' | 'bridge'; readonly gateway?: string; readonly subnet?: string }

  /** An address for the instance, its own until its row goes. In the transaction that makes the row, behind it. The same when called again. */
  lease(id: string): string
  /** The address that the instance has now; undefined when it is given one with its next start. */
  addressOf(id: string): string | undefined
  /** What the guest is told about its interface. */
  guestNetworkOf(nic: Pick<Nic, 'id' | 'mac'>): GuestNetwork
  /** What a driver is told. */
  nicSpecOf(nic: Nic): NicSpec

  /** Where guests find their proxies, at PROXY_PORT: the same for all, so that a fork finds its own. */
  readonly proxyAddress: string

  /** Before its VM starts. Repeat is harmless; when it throws, nothing of it is left. */
  attach(nic: Nic, step: Step): Promise<void>
  /** When its VM is gone. Repeat is harmless. The address stays. */
  detach(id: string, step: Step): Promise<void>
  /** Makes the published ports of a VM that runs exactly the nic's. `port_in_use` changes nothing. Repeat is harmless. */
  publish(vm: Vm, nic: Nic, step: Step): Promise<void>
  /** How fast a VM that runs may be from now on. Repeat is harmless. */
  pace(vm: Vm, nic: Nic, step: Step): Promise<void>
  /** What has passed while it was attached; undefined where the driver counts. */
  traffic(id: string): GuestTraffic | undefined

  /** By which means connections are counted, in a word, and whether whoever counts knows what was before it was first asked. */
  readonly tracking: { readonly mode: string; readonly isRemembered: boolean }
  /** Those that others have opened to a VM that runs. Rejects when they cannot be counted. */
  inbound(vm: Vm, nic: Nic, ignored: IgnoredConnections, step: Step): Promise<Inbound>

  /** Mends what is there: those of `live` are as they should be, all others' are gone. Once, before the first attach. */
  recover(live: readonly Nic[], step: Step): Promise<void>
}

/** What the host's link outwards carries. */
export interface LinkCapacity {
  /** Each way; undefined where it is not known. */
  readonly bytesPerSecond: number | undefined
  readonly source: 'configured' | 'detected' | 'unknown'
}

/** As it was set, else as the link's driver says. */
export function readLinkCapacity({
  bandwidthBps,
  uplink,
}: {
  readonly bandwidthBps: number | undefined
  readonly uplink: string | undefined
}): LinkCapacity {
  if (bandwidthBps !== undefined) return { bytesPerSecond: bandwidthBps, source: 'configured' }
  const device = uplink ?? uplinkOf(readRoutes())
  const speed = device === undefined ? undefined : readLinkSpeed(device)
  return { bytesPerSecond: speed, source: speed === undefined ? 'unknown' : 'detected' }
}

/** The net that the helper speaks for. Its forwarder asks whatever resolver the host has, one on the host's loopback too. */
export const USER_NET = {
  ipv4: { address: '10.0.2.15', prefix: 24, gateway: '10.0.2.2' },
  ipv6: { address: 'fdd0:6d05:e000::15', prefix: 64, gateway: 'fdd0:6d05:e000::2' },
  dnsForwarder: '10.0.2.3',
  proxy: '10.0.2.4',
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

/** What the guest is told about its one interface in user mode. Without resolvers of its own it asks the helper's forwarder. */
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

/** Drivers do all of it. */
export class UserNetwork implements Network {
  readonly kind = 'user'
  readonly tracking = { mode: 'published_ports_tcp', isRemembered: true } as const
  readonly model = { model: 'nat' } as const
  readonly proxyAddress = USER_NET.proxy
  /** Each guest has a net of its own. */
  readonly guestSubnets = []
  readonly #dns: readonly string[]

  constructor({ dns }: { readonly dns: readonly string[] }) {
    this.#dns = dns
  }

  lease(): string {
    return USER_NET.ipv4.address
  }
  addressOf(): string {
    return USER_NET.ipv4.address
  }
  guestNetworkOf({ mac }: Pick<Nic, 'mac'>): GuestNetwork {
    return guestNetworkOf(mac, this.#dns)
  }
  nicSpecOf({ mac, ports, bandwidth }: Nic): NicSpec {
    return { mac, backend: 'user', ports, ...(Object.keys(bandwidth).length === 0 ? {} : { bandwidth }) }
  }
  async listenForProxy(): Promise<ListeningSocket | undefined> {
    return undefined
  }
  async leadToProxy(): Promise<void> {}
  async attach(): Promise<void> {}
  async detach(): Promise<void> {}
  publish(vm: Vm, { ports }: Nic, step: Step): Promise<void> {
    return vm.setPorts(ports, step)
  }
  pace(vm: Vm, { bandwidth }: Nic, step: Step): Promise<void> {
    return vm.setBandwidth(bandwidth, step)
  }
  traffic(): undefined {}
  inbound(vm: Vm, _nic: Nic, ignored: IgnoredConnections, step: Step): Promise<Inbound> {
    return vm.inbound(ignored, step)
  }
  async recover(): Promise<void> {}
}
