import assert from 'node:assert/strict'
import { networkInterfaces } from 'node:os'
import { test } from 'node:test'
import { OwnAddresses, ownAddressesOf } from './own-addresses.ts'

const trie = `Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.0
              /8 host LOCAL
     +-- 192.0.2.0/24 2 0 2
           |-- 192.0.2.0
              /24 link UNICAST
           |-- 192.0.2.2
              /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
     |-- 198.51.100.0
        /24 host LOCAL
`
const routes6 = `fd000000000000000000000000000000 40 0 00 0 00000100 00000001 00000000 00000001     eth0
fd000000000000000000000000000002 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000004 00000000 80200001     eth0
20010db8000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000400 00000001 00000000 00000001     eth0
`

test('what the kernel would deliver here is the host’s own, whole prefixes of a load balancer too', () => {
  const { ipv4, ipv6 } = ownAddressesOf({ trie, routes6 })
  for (const own of ['127.9.9.9', '192.0.2.2', '192.0.2.255', '198.51.100.77']) assert.ok(ipv4.check(own, 'ipv4'), own)
  for (const other of ['192.0.2.1', '192.0.2.3', '1.1.1.1', '198.51.101.1']) assert.ok(!ipv4.check(other, 'ipv4'), other)
  assert.ok(ipv6.check('fd00::2', 'ipv6') && !ipv6.check('fd00::3', 'ipv6') && !ipv6.check('2001:db8::1', 'ipv6'))
  assert.ok(!ownAddressesOf({ trie: '', routes6: '' }).ipv6.check('fd00::2', 'ipv6'))
})

test('the addresses of this host’s interfaces are its own', () => {
  const own = new OwnAddresses()
  for (const { address, family } of Object.values(networkInterfaces()).flatMap((list) => list ?? [])) {
    if (family === 'IPv4') assert.ok(own.has(address), address)
  }
})
