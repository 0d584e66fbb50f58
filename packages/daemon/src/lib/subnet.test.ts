import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  address4,
  address6,
  formatSubnet4,
  formatSubnet6,
  hostOf,
  linkLocalOf,
  overlaps4,
  overlaps6,
  parseSubnet4,
  parseSubnet6,
  type Subnet4,
  type Subnet6,
  toNumber6,
} from './subnet.ts'

const four = (text: string): Subnet4 => parseSubnet4(text) ?? assert.fail(`${text} is no subnet`)
const six = (text: string): Subnet6 => parseSubnet6(text) ?? assert.fail(`${text} is no subnet`)

test('a subnet is read as it is written, and one that guests cannot be in is none', () => {
  assert.equal(formatSubnet4(four('10.100.0.0/16')), '10.100.0.0/16')
  assert.equal(formatSubnet4(four('192.0.2.248/29')), '192.0.2.248/29')
  for (const text of ['10.100.0.1/16', '10.100.0.0/31', '10.0.0.0/7', '10.100.0.0', '10.100.0.0/16/2', 'fd00::/64', '']) {
    assert.equal(parseSubnet4(text), undefined, text)
  }
  assert.equal(formatSubnet6(six('fd00:1::/64')), 'fd00:1::/64')
  for (const text of ['2001:db8::/64', 'fd00::%1/64', 'fd00::%eth0/64', 'fd00::1/64', 'fd00::/112', 'fd00::', 'fe80::/64', '10.0.0.0/16']) {
    assert.equal(parseSubnet6(text), undefined, text)
  }
})

test('a host number is the same guest in both families', () => {
  const subnet = four('10.100.0.0/16')
  assert.equal(address4(subnet, 258), '10.100.1.2')
  assert.equal(hostOf(subnet, '10.100.1.2'), 258)
  assert.equal(hostOf(subnet, '10.101.1.2'), undefined)
  assert.equal(address6(six('fd00:1::/64'), 258), 'fd00:1::102')
})

test('subnets overlap when one lies within the other', () => {
  assert.ok(overlaps4(four('10.0.0.0/8'), four('10.100.0.0/16')))
  assert.ok(overlaps4(four('10.100.0.0/16'), four('10.100.3.0/24')))
  assert.ok(!overlaps4(four('10.100.0.0/16'), four('10.101.0.0/16')))
  assert.ok(overlaps6(six('fd00::/8'), six('fd00:1::/64')))
  assert.ok(!overlaps6(six('fd00:2::/64'), six('fd00:1::/64')))
})

test('a card gives itself the address that its MAC makes', () => {
  assert.equal(linkLocalOf('02:00:00:00:00:01'), 'fe80::ff:fe00:1')
  assert.equal(linkLocalOf('52:54:00:12:34:56'), 'fe80::5054:ff:fe12:3456')
})

test('an IPv6 address is one number, however it is spelt', () => {
  assert.equal(toNumber6('::'), 0n)
  assert.equal(toNumber6('::ffff:192.0.2.1'), 0xffffc0000201n)
  assert.equal(toNumber6('fd00:0:0:0:0:0:0:2'), toNumber6('fd00::2'))
  fc.assert(
    fc.property(fc.nat(2 ** 31 - 1), (host) => {
      assert.equal(toNumber6(address6(six('fd00:1::/64'), host)) - six('fd00:1::/64').base, BigInt(host))
    }),
  )
})

test('every subnet that is printed reads back as the same, and its addresses have their numbers', () => {
  fc.assert(
    fc.property(fc.integer({ min: 8, max: 30 }), fc.nat(2 ** 32 - 1), fc.nat(), (prefix, address, host) => {
      const base = address - (address % 2 ** (32 - prefix))
      const subnet = { base, prefix }
      assert.deepEqual(parseSubnet4(formatSubnet4(subnet)), subnet)
      const inside = host % 2 ** (32 - prefix)
      assert.equal(hostOf(subnet, address4(subnet, inside)), inside)
      // An address within it is no subnet of that size.
      if (inside !== 0) assert.equal(parseSubnet4(`${address4(subnet, inside)}/${prefix}`), undefined)
    }),
  )
  fc.assert(
    fc.property(fc.integer({ min: 8, max: 96 }), fc.bigInt({ min: 0n, max: 2n ** 121n - 1n }), fc.nat(65_535), (prefix, bits, host) => {
      const address = (0x7en << 121n) | bits
      const base = (address >> BigInt(128 - prefix)) << BigInt(128 - prefix)
      const subnet = { base, prefix }
      assert.deepEqual(parseSubnet6(formatSubnet6(subnet)), subnet)
      assert.equal(toNumber6(address6(subnet, host)), base + BigInt(host))
    }),
  )
})

test('no text makes the readers throw, and what they take is one of their own', () => {
  const parts = fc.constantFrom(
    '10.',
    '0',
    '0.0.0',
    '255',
    '256',
    '.',
    '/',
    '/8',
    '/16',
    '/64',
    '/033',
    'fd00',
    '::',
    ':',
    'ffff',
    '%1',
    ' ',
    '-1',
    '٣',
  )
  const nearly = fc.array(parts, { maxLength: 8 }).map((found) => found.join(''))
  fc.assert(
    fc.property(fc.oneof(nearly, fc.string({ unit: 'binary' })), (text) => {
      const [in4, in6] = [parseSubnet4(text), parseSubnet6(text)]
      if (in4) assert.deepEqual(parseSubnet4(formatSubnet4(in4)), in4)
      if (in6) assert.deepEqual(parseSubnet6(formatSubnet6(in6)), in6)
    }),
    { numRuns: 2000 },
  )
})
