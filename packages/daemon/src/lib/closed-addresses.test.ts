import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isClosedAddress } from './closed-addresses.ts'

test('loopback, links and metadata are closed in every spelling; all else is open', () => {
  const closed = ['127.0.0.1', '127.255.255.255', '0.0.0.0', '169.254.169.254', '100.100.100.200', '168.63.129.16']
  const closed6 = [
    '::1',
    '::',
    '::ffff:10.0.0.1',
    '::ffff:7f00:1',
    '::127.0.0.1',
    '64:ff9b::169.254.169.254',
    '64:ff9b::7f00:1',
    '2002:7f00:1::',
  ]
  for (const address of [...closed, ...closed6, 'fd00:ec2::254', 'fe80::1', 'fe80::1%eth0', 'localhost', '', '127.1']) {
    assert.ok(isClosedAddress(address), address)
  }
  for (const address of ['1.1.1.1', '10.0.0.1', '192.0.2.1', '2001:db8::1', 'fd12::1', '64:ff9b::1.1.1.1']) {
    assert.ok(!isClosedAddress(address), address)
  }
})
