/** Addresses as numbers, and the two subnets of a bridge: one host number is one guest's address in both families. Pure. */
import { isIPv4, isIPv6, SocketAddress } from 'node:net'

export interface Subnet4 {
  /** The first address, that of the network itself. */
  readonly base: number
  readonly prefix: number
}

/** A /64 or wider; written without its prefix and without what follows `::`. */
export interface Subnet6 {
  /** 128 bits. */
  readonly base: bigint
  readonly prefix: number
}

/** Room for the network, the gateway, one guest and the broadcast. */
const LONGEST_PREFIX4 = 30

/** `10.100.0.0/16`. Undefined when it is no subnet that guests could be in, or names a host within one. */
export function parseSubnet4(text: string): Subnet4 | undefined {
  const [address = '', bits = '', ...rest] = text.split('/')
  const prefix = /^\d{1,2}$/.test(bits) ? Number(bits) : Number.NaN
  if (rest.length > 0 || !isIPv4(address) || !(prefix >= 8 && prefix <= LONGEST_PREFIX4)) return undefined
  const base = toNumber4(address)
  return base % sizeOf({ base, prefix }) === 0 ? { base, prefix } : undefined
}

/** `fd00:1::/64`, of unique local addresses. Undefined when it is none, or too small for as many guests as IPv4 can have. */
export function parseSubnet6(text: string): Subnet6 | undefined {
  const [address = '', bits = '', ...rest] = text.split('/')
  const prefix = /^\d{1,3}$/.test(bits) ? Number(bits) : Number.NaN
  // A zone is of one host's links, and no part of a network.
  if (rest.length > 0 || !isIPv6(address) || address.includes('%') || !(prefix >= 8 && prefix <= 96)) return undefined
  const base = toNumber6(address)
  const isLocal = base >> 121n === 0xfdn >> 1n
  return isLocal && (base & ((1n << BigInt(128 - prefix)) - 1n)) === 0n ? { base, prefix } : undefined
}

/** How many addresses there are, network and broadcast included. */
export const sizeOf = ({ prefix }: Subnet4): number => 2 ** (32 - prefix)

export const formatSubnet4 = (subnet: Subnet4): string => `${format4(subnet.base)}/${subnet.prefix}`
export const formatSubnet6 = (subnet: Subnet6): string => `${format6(subnet.base)}/${subnet.prefix}`

/** The address of host number `host` in each family; 1 is the gateway. */
export const address4 = ({ base }: Subnet4, host: number): string => format4(base + host)
export const address6 = ({ base }: Subnet6, host: number): string => format6(base + BigInt(host))

/** The host number of an address; undefined when it lies outside. */
export function hostOf(subnet: Subnet4, address: string): number | undefined {
  if (!isIPv4(address)) return undefined
  const host = toNumber4(address) - subnet.base
  return host >= 0 && host < sizeOf(subnet) ? host : undefined
}

export const overlaps4 = (a: Subnet4, b: Subnet4): boolean => a.base < b.base + sizeOf(b) && b.base < a.base + sizeOf(a)

export function overlaps6(a: Subnet6, b: Subnet6): boolean {
  const shift = BigInt(128 - Math.min(a.prefix, b.prefix))
  return a.base >> shift === b.base >> shift
}

/** The address that a card of that MAC gives itself on its link (RFC 4291, appendix A). */
export function linkLocalOf(mac: string): string {
  const [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0] = mac.split(':').map((byte) => Number.parseInt(byte, 16))
  const bytes = [a ^ 2, b, c, 0xff, 0xfe, d, e, f]
  return format6((0xfe80n << 112n) | bytes.reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n))
}

function toNumber4(address: string): number {
  return address.split('.').reduce((sum, byte) => sum * 256 + Number(byte), 0)
}

export function toNumber6(address: string): bigint {
  const [head = '', tail] = address.replace(/\d+\.\d+\.\d+\.\d+$/, ipv4Words).split('::')
  const words = (part: string): string[] => (part === '' ? [] : part.split(':'))
  const [first, last] = [words(head), words(tail ?? '')]
  const middle = tail === undefined ? [] : Array.from({ length: 8 - first.length - last.length }, () => '0')
  return [...first, ...middle, ...last].reduce((sum, word) => (sum << 16n) | BigInt(`0x${word}`), 0n)
}

const ipv4Words = (text: string): string => {
  const number = toNumber4(text)
  return `${Math.floor(number / 65536).toString(16)}:${(number % 65536).toString(16)}`
}

const format4 = (number: number): string => [24, 16, 8, 0].map((shift) => Math.floor(number / 2 ** shift) % 256).join('.')

function format6(number: bigint): string {
  const words = Array.from({ length: 8 }, (_, index) => ((number >> BigInt(112 - 16 * index)) & 0xffffn).toString(16))
  return new SocketAddress({ address: words.join(':'), family: 'ipv6' }).address
}
