/** Where no guest may go, on no kind of network. Pure. */
import { BlockList, isIPv4, isIPv6 } from 'node:net'

/** 0.0.0.0/8 and loopback are the host's; 169.254.0.0/16 and the others are where clouds hand out the host's credentials. */
export const CLOSED4 = ['0.0.0.0/8', '100.100.100.200', '127.0.0.0/8', '168.63.129.16', '169.254.0.0/16']
/**
 * The same over IPv6 (AWS, Google), addresses that carry an IPv4 one within, and what translators (NAT64, 6to4) would carry to those of
 * above. `::/96` takes loopback along.
 */
export const CLOSED6 = [
  '::/96',
  '::ffff:0:0/96',
  '64:ff9b::/104',
  '64:ff9b::7f00:0/104',
  '64:ff9b::a9fe:0/112',
  '2002::/24',
  '2002:7f00::/24',
  '2002:a9fe::/32',
  'fd00:ec2::254',
  'fd20:ce::254',
]

// One for each family: a list takes every IPv4 address for its IPv4-mapped one as well.
const [list4, list6] = [new BlockList(), new BlockList()]
for (const range of CLOSED4) add(list4, range, 'ipv4')
for (const range of CLOSED6) add(list6, range, 'ipv6')
// Of the host's links, not of anywhere that packets are routed to.
add(list6, 'fe80::/10', 'ipv6')

function add(list: BlockList, range: string, family: 'ipv4' | 'ipv6'): void {
  const [address = '', prefix = family === 'ipv4' ? '32' : '128'] = range.split('/')
  list.addSubnet(address, Number(prefix), family)
}

/** Of an address as a resolver gives it, without brackets. What is no address is closed. */
export function isClosedAddress(address: string): boolean {
  const plain = address.replace(/%.*$/, '')
  if (isIPv4(plain)) return list4.check(plain, 'ipv4')
  return !isIPv6(plain) || list6.check(plain, 'ipv6')
}
