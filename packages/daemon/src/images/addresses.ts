import { BlockList, isIPv4, isIPv6 } from 'node:net'

/** What kind of place an IP address is. `other` is what no registry can be at: multicast, documentation, reserved. */
export type AddressClass = 'public' | 'loopback' | 'private' | 'link-local' | 'other'

// Sources: IANA special-purpose address registries (RFC 6890 and its updates).
const RANGES: readonly (readonly [AddressClass, readonly string[]])[] = [
  ['loopback', ['127.0.0.0/8', '::1/128']],
  // 100.64/10 is carrier-grade NAT; some clouds keep their inner services there.
  ['private', ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10', 'fc00::/7', 'fec0::/10']],
  // Metadata services of clouds live here.
  ['link-local', ['169.254.0.0/16', 'fe80::/10']],
  [
    'other',
    [
      '0.0.0.0/8',
      '192.0.0.0/24',
      '192.0.2.0/24',
      '192.88.99.0/24',
      '198.18.0.0/15',
      '198.51.100.0/24',
      '203.0.113.0/24',
      '224.0.0.0/4',
      '240.0.0.0/4',
      '::/128',
      '100::/64',
      '2001:db8::/32',
      'ff00::/8',
    ],
  ],
]

const lists = RANGES.map(([kind, ranges]) => {
  const list = new BlockList()
  for (const range of ranges) {
    const [address = '', prefix = '0'] = range.split('/')
    list.addSubnet(address, Number(prefix), isIPv4(address) ? 'ipv4' : 'ipv6')
  }
  return [kind, list] as const
})

/** `address` is what a resolver or a URL gives, without brackets. What is no address is `other`. */
export function classifyAddress(address: string): AddressClass {
  const plain = address.replace(/%.*$/, '')
  if (isIPv4(plain)) return lists.find(([, list]) => list.check(plain, 'ipv4'))?.[0] ?? 'public'
  if (!isIPv6(plain)) return 'other'
  const embedded = embeddedIpv4(plain)
  if (embedded !== undefined) return classifyAddress(embedded)
  return lists.find(([, list]) => list.check(plain, 'ipv6'))?.[0] ?? 'public'
}

/** The IPv4 address in a mapped (::ffff:0:0/96), translated (64:ff9b::/96), 6to4 (2002::/16) or compatible (::/96) one. */
function embeddedIpv4(address: string): string | undefined {
  const groups = expand(address)
  const dotted = (high: number, low: number) => [high >> 8, high & 255, low >> 8, low & 255].join('.')
  const [a = 0, b = 0, , , , f = 0, g = 0, h = 0] = groups
  const zeroTo = (end: number) => groups.slice(0, end).every((group) => group === 0)
  if (zeroTo(5) && f === 0xffff) return dotted(g, h)
  if (zeroTo(6) && !(g === 0 && h <= 1)) return dotted(g, h)
  if (a === 0x64 && b === 0xff9b && groups.slice(2, 6).every((group) => group === 0)) return dotted(g, h)
  if (a === 0x2002) return dotted(b, groups[2] ?? 0)
  return undefined
}

function expand(address: string): number[] {
  const v4 = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(address)
  const text = v4
    ? `${v4[1]}${((Number(v4[2]) << 8) | Number(v4[3])).toString(16)}:${((Number(v4[4]) << 8) | Number(v4[5])).toString(16)}`
    : address
  const [head = '', tail] = text.split('::')
  const left = head === '' ? [] : head.split(':')
  const right = tail === undefined || tail === '' ? [] : tail.split(':')
  const gap = tail === undefined ? 0 : 8 - left.length - right.length
  return [...left, ...Array<string>(Math.max(0, gap)).fill('0'), ...right].map((group) => Number.parseInt(group, 16))
}
