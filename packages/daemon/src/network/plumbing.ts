/** Lines for `ip -batch -` and `tc -batch -`: one call for each step, however many devices it is about. Pure. */
import { createHash } from 'node:crypto'

export interface BridgeDevice {
  readonly name: string
  readonly mac: string
  readonly mtu: number
  /** With their prefixes. */
  readonly addresses: readonly string[]
}

export interface GuestDevice {
  readonly tap: string
  /** Without prefixes. */
  readonly addresses: readonly string[]
}

/** Bytes per second, of whole frames. */
export interface Rates {
  readonly downloadBps?: number
  readonly uploadBps?: number
}

// No entry ages: who is behind a port does not change for as long as the port is there.
const AGEING_SECONDS_100 = 4_000_000_00

export const bridgeLines = ({ name, mac, mtu, addresses }: BridgeDevice): string[] => [
  // A MAC of its own: left to itself the bridge would take that of a port, and guests that sleep know it by this one.
  `link add name ${name} address ${mac} mtu ${mtu} type bridge ageing_time ${AGEING_SECONDS_100} mcast_snooping 0`,
  ...addresses.map((address) => `addr add ${address} dev ${name}${address.includes(':') ? ' nodad' : ''}`),
  `link set dev ${name} up`,
]

export const tapLines = ({ tap }: GuestDevice, bridge: BridgeDevice): string[] => [
  `tuntap add dev ${tap} mode tap vnet_hdr`,
  ...joinLines(tap, bridge),
]

/**
 * A TAP that is there becomes a port of the bridge. `isolated`: no port reaches another. `flood off`: what is for a guest that the bridge
 * has not heard yet goes to no one rather than to everyone; questions (ARP, ND) are still sent to all.
 */
export const joinLines = (tap: string, { name, mtu }: Pick<BridgeDevice, 'name' | 'mtu'>): string[] => [
  `link set dev ${tap} mtu ${mtu} addrgenmode none master ${name}`,
  `link set dev ${tap} type bridge_slave isolated on flood off`,
  `link set dev ${tap} up`,
]

/**
 * The host forgets who had the address: whoever sends there first asks all ports, and by the answer the bridge learns where the guest is.
 * What the host remembered would be sent to a port that is not there any more, for seconds.
 */
export const neighbourLines = ({ addresses }: GuestDevice, bridge: string): string[] =>
  addresses.map((address) => `neigh replace ${address} dev ${bridge} nud failed`)

export const deleteLines = (devices: readonly string[]): string[] => devices.map((device) => `link delete dev ${device}`)

/**
 * The way to a guest is shaped on its TAP. What comes from it can only be dropped there, so it is led through a device of its own (ifb)
 * on which it can be held back, as on any wire.
 */
export const ifbLines = (ifb: string): string[] => [`link add name ${ifb} type ifb`, `link set dev ${ifb} up`]

export const shapeLines = (tap: string, ifb: string, before: Rates, after: Rates): string[] => [
  ...(after.downloadBps === undefined
    ? before.downloadBps === undefined
      ? []
      : [`qdisc delete dev ${tap} root`]
    : [`qdisc replace dev ${tap} root ${bucket(after.downloadBps)}`]),
  ...(after.uploadBps === undefined
    ? []
    : [...(before.uploadBps === undefined ? ingressLines(tap, ifb) : []), `qdisc replace dev ${ifb} root ${bucket(after.uploadBps)}`]),
]

const ingressLines = (tap: string, ifb: string): string[] => [
  `qdisc replace dev ${tap} handle ffff: ingress`,
  `filter add dev ${tap} parent ffff: protocol all prio 1 u32 match u32 0 0 action mirred egress redirect dev ${ifb}`,
]

/** What may come at once: 20 ms, and some frames always; what is larger than that is cut up. And how much may wait, a fifth of a second. */
const bucket = (bytes: number): string =>
  `tbf rate ${bytes}bps burst ${Math.max(Math.ceil(bytes / 50), 16 * 1024)} limit ${Math.max(Math.ceil(bytes / 5), 256 * 1024)}`

/** 15 bytes at most (IFNAMSIZ). The bridge's name is part of it, so that two daemons on one host tell theirs apart. */
export const tapPrefixOf = (bridge: string): string => `d${mark(bridge)}-`
export const ifbPrefixOf = (bridge: string): string => `u${mark(bridge)}-`
export const deviceNameOf = (prefix: string, id: string): string => `${prefix}${id}`.slice(0, 15)

const mark = (bridge: string): string => createHash('sha256').update(bridge).digest('hex').slice(0, 2)

/** The bridge's own MAC: the same on every start. */
export const bridgeMacOf = (bridge: string): string =>
  [
    '02',
    ...[...createHash('sha256').update(`bridge ${bridge}`).digest().subarray(0, 5)].map((byte) => byte.toString(16).padStart(2, '0')),
  ].join(':')
