import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { parseSubnet4, parseSubnet6 } from '../lib/subnet.ts'
import { nextHost } from './address-plan.ts'
import { parseRoutes4, parseRoutes6, resolversIn, uplinkOf } from './host-network.ts'
import { bridgeMacOf, deviceNameOf, ifbPrefixOf, shapeLines, tapPrefixOf } from './plumbing.ts'
import { type BridgeRules, changeOf, elementsOf, type GuestRules, readListing, rulesetOf, sameElements } from './ruleset.ts'

const subnet4 = parseSubnet4('10.100.0.0/16') ?? assert.fail()
const subnet6 = parseSubnet6('fd00:1::/64') ?? assert.fail()
const rules: BridgeRules = {
  ...{ table: 'dormouse0', bridge: 'dormouse0', tapPrefix: 'd12-', subnet4, subnet6, gateway4: '10.100.0.1', gateway6: 'fd00:1::1' },
  ...{ uplink: undefined, resolver: '192.0.2.53', opensHost: false },
}
const guest = (host: number, ports: GuestRules['ports'] = []): GuestRules => ({
  ...{ tap: `d12-${host}`, mac: `02:00:00:00:00:0${host}`, ipv4: `10.100.0.${host}`, ipv6: `fd00:1::${host}`, ports },
})

test('addresses go round, so that one that was given back is not soon another’s', () => {
  const small = parseSubnet4('192.0.2.0/29') ?? assert.fail()
  const given: number[] = []
  for (let last = 1; given.length < 5; given.push(last)) last = nextHost(small, new Set(given), last) ?? assert.fail()
  assert.deepEqual(given, [2, 3, 4, 5, 6])
  assert.equal(nextHost(small, new Set(given), 6), undefined)
  assert.equal(nextHost(small, new Set([2, 3, 6]), 5), 4)
  assert.equal(nextHost(small, new Set(), 4), 5)
})

test('whoever asks gets an address that is free and is neither the network’s, the gateway’s nor everyone’s', () => {
  fc.assert(
    fc.property(fc.uniqueArray(fc.integer({ min: 2, max: 14 })), fc.nat(20), (taken, after) => {
      const small = parseSubnet4('192.0.2.0/28') ?? assert.fail()
      const host = nextHost(small, new Set(taken), after)
      if (taken.length === 13) return assert.equal(host, undefined)
      assert.ok(host !== undefined && host >= 2 && host <= 14 && !taken.includes(host))
    }),
  )
})

test('devices have names that the kernel takes, and two bridges have none in common', () => {
  const name = deviceNameOf(tapPrefixOf('dormouse0'), 'abcdefghijklmnopqrstuvwx')
  assert.match(name, /^d[0-9a-f]{2}-abcdefghijk$/)
  assert.equal(name.length, 15)
  assert.notEqual(tapPrefixOf('dormouse0'), tapPrefixOf('dormouse1'))
  assert.notEqual(tapPrefixOf('dormouse0'), ifbPrefixOf('dormouse0'))
  assert.match(bridgeMacOf('dormouse0'), /^02(:[0-9a-f]{2}){5}$/)
})

test('a change of one guest is a transaction about that guest alone', () => {
  const port = { protocol: 'tcp', hostIp: '0.0.0.0', hostPort: 8080, guestPort: 80 } as const
  assert.equal(changeOf('t', [guest(2)], [guest(2)]).trim(), '')
  assert.equal(changeOf('t', [guest(2)], [guest(2, [port])]).trim(), 'add element inet t ports4 { 6 . 8080 : 10.100.0.2 . 80 }')
  assert.equal(
    changeOf('t', [guest(2, [port])], [guest(2, [{ ...port, guestPort: 81 }])]).trim(),
    'delete element inet t ports4 { 6 . 8080 : 10.100.0.2 . 80 }\nadd element inet t ports4 { 6 . 8080 : 10.100.0.2 . 81 }',
  )
  assert.match(changeOf('t', [], [guest(2)]), /add element bridge t nics \{ "d12-2" \. 02:00:00:00:00:02 \}/)
})

test('ports of one address, of all, and of IPv6 are told apart', () => {
  const elements = elementsOf([
    guest(2, [
      { protocol: 'tcp', hostIp: '0.0.0.0', hostPort: 1, guestPort: 80 },
      { protocol: 'udp', hostIp: '192.0.2.1', hostPort: 2, guestPort: 53 },
      { protocol: 'tcp', hostIp: '::', hostPort: 3, guestPort: 80 },
      { protocol: 'tcp', hostIp: '2001:db8::1', hostPort: 4, guestPort: 80 },
    ]),
  ])
  assert.deepEqual(
    ['ports4', 'ports4_at', 'ports6', 'ports6_at'].map((name) => elements.get(name)),
    [
      ['6 . 1 : 10.100.0.2 . 80'],
      ['192.0.2.1 . 17 . 2 : 10.100.0.2 . 53'],
      ['6 . 3 : fd00:1::2 . 80'],
      ['2001:db8::1 . 6 . 4 : fd00:1::2 . 80'],
    ],
  )
})

test('a closed host is closed, an opened one lets guests reach it and the ports published there', () => {
  const closed = rulesetOf(rules, [])
  assert.match(closed, /^table bridge dormouse0\ndelete table bridge dormouse0\n/)
  assert.match(closed, /th dport 53 accept\n[^}]*\ndrop\n\}\nchain through/)
  const open = rulesetOf({ ...rules, opensHost: true, uplink: 'eth0', resolver: undefined }, [])
  assert.match(open, /oifname != "eth0" drop/)
  assert.doesNotMatch(open, /dport 53/)
  // Never the loopback, nor where credentials are.
  for (const text of [closed, open]) assert.match(text, /ip daddr \{ [^}]*127\.0\.0\.0\/8[^}]*169\.254\.0\.0\/16 \} drop/)
})

test('a guest with a proxy of its own is in the sets of its mode, with all its addresses', () => {
  const egress = { mode: 'all', proxyPort: 4000 } as const
  const sets = (one: GuestRules) =>
    [...elementsOf([one])].flatMap(([name, list]) => (/prox|mediated/.test(name) && list.length > 0 ? [name] : []))
  assert.deepEqual(sets(guest(2)), [])
  assert.deepEqual(sets({ ...guest(2), egress }), ['proxies', 'proxy_ports', 'mediated4', 'mediated6'])
  assert.deepEqual(sets({ ...guest(2), egress: { ...egress, mode: 'http_https_only' } }), [
    ...['proxies', 'proxy_ports', 'mediated_web4', 'mediated_web6'],
  ])
  // One has let go of its port, which the other has been given.
  const both = [guest(2), guest(3)].map((one) => ({ ...one, egress }))
  assert.deepEqual(elementsOf(both).get('proxy_ports'), ['4000'])
  assert.doesNotMatch(changeOf('t', both, both.slice(1)), /proxy_ports/)
  assert.match(changeOf('t', [guest(2)], [{ ...guest(2), egress }]), /add element inet t proxies \{ 10\.100\.0\.2 : 4000 \}/)
  assert.match(changeOf('t', [{ ...guest(2), egress }], []), /delete element inet t mediated6 \{ fd00:1::2, fe80::ff:fe00:2 \}/)
})

test('a listing is read as what is fixed and what changes with the guests', () => {
  const listing = readListing(`table bridge t {
\tset nics {
\t\ttypeof iifname . ether saddr
\t\telements = { "d12-3" . 02:00:00:00:00:03,
\t\t\t     "d12-2" . 02:00:00:00:00:02 }
\t}
\tset arp {
\t\ttypeof iifname . arp saddr ether . arp saddr ip
\t}
}`)
  assert.deepEqual(listing.elements.get('nics'), ['"d12-3" . 02:00:00:00:00:03', '"d12-2" . 02:00:00:00:00:02'])
  assert.doesNotMatch(listing.fixed, /elements/)
  assert.ok(sameElements(listing.elements, new Map([['nics', ['"d12-2" . 02:00:00:00:00:02', '"d12-3" . 02:00:00:00:00:03']]])))
  assert.ok(!sameElements(listing.elements, new Map()))
})

test('rates come, change and go without what is there being made anew', () => {
  assert.deepEqual(shapeLines('t', 'u', {}, {}), [])
  assert.equal(shapeLines('t', 'u', {}, { downloadBps: 1000 }).length, 1)
  assert.equal(shapeLines('t', 'u', {}, { uploadBps: 1000 }).length, 3)
  assert.equal(shapeLines('t', 'u', { uploadBps: 1000 }, { uploadBps: 2000 }).length, 1)
  assert.deepEqual(shapeLines('t', 'u', { downloadBps: 1 }, {}), ['qdisc delete dev t root'])
})

test('routes and resolvers are read from where the kernel and the resolver’s library have them', () => {
  const ipv4 = parseRoutes4(
    'Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\neth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\nbr1\t0000640A\t00000000\t0001\t0\t0\t0\t0000FFFF\n',
  )
  assert.deepEqual(ipv4, [
    { device: 'eth0', base: 0, prefix: 0 },
    { device: 'br1', base: subnet4.base, prefix: 16 },
  ])
  const ipv6 = parseRoutes6(
    'fd000001000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     br1\n',
  )
  assert.deepEqual(ipv6, [{ device: 'br1', base: subnet6.base, prefix: 64 }])
  assert.equal(uplinkOf({ ipv4, ipv6 }), 'eth0')
  assert.deepEqual(resolversIn('# x\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n nameserver 2001:db8::1\n'), [
    '192.0.2.1',
    'fe80::1%eth0',
    '2001:db8::1',
  ])
})
