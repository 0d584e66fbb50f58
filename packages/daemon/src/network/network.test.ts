import assert from 'node:assert/strict'
import { test } from 'node:test'
import { guestNetworkOf, macOf } from './network.ts'

test('an instance has one MAC for ever, locally administered and unicast', () => {
  assert.equal(macOf('abc'), macOf('abc'))
  assert.notEqual(macOf('abc'), macOf('abd'))
  assert.match(macOf('abc'), /^02(:[0-9a-f]{2}){5}$/)
})

test('a guest without resolvers of its own asks the backend’s forwarder', () => {
  assert.deepEqual(guestNetworkOf('02:00:00:00:00:01', []).dns, ['10.0.2.3'])
  assert.deepEqual(guestNetworkOf('02:00:00:00:00:01', ['192.0.2.1']).dns, ['192.0.2.1'])
})

test('a guest is told its address in both families and the large frames of a net without a wire', () => {
  const { ipv4, ipv6, mtu } = guestNetworkOf('02:00:00:00:00:01', [])
  assert.deepEqual(ipv4, { address: '10.0.2.15', prefix: 24, gateway: '10.0.2.2' })
  assert.deepEqual(ipv6, { address: 'fdd0:6d05:e000::15', prefix: 64, gateway: 'fdd0:6d05:e000::2' })
  assert.equal(mtu, 65_520)
})
