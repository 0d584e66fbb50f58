import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { Failure } from '../failure.ts'
import { formatPort, parsePorts } from './ports.ts'

const one = (spec: string) => parsePorts(spec)[0]

test('a host port and a guest port are a TCP mapping', () => {
  assert.deepEqual(parsePorts('8080:80'), [{ host_port: 8080, guest_port: 80, protocol: 'tcp' }])
})

test('protocol, IPv4 and IPv6 addresses are taken', () => {
  assert.deepEqual(one('53:5353/udp'), { host_port: 53, guest_port: 5353, protocol: 'udp' })
  assert.deepEqual(one('127.0.0.1:8080:80'), { host_port: 8080, guest_port: 80, protocol: 'tcp', host_ip: '127.0.0.1' })
  assert.deepEqual(one('[::1]:8080:80/tcp'), { host_port: 8080, guest_port: 80, protocol: 'tcp', host_ip: '::1' })
})

test('without a host port the daemon picks one', () => {
  for (const spec of ['80', ':80', '0:80']) assert.deepEqual(one(spec), { host_port: 0, guest_port: 80, protocol: 'tcp' }, spec)
  assert.deepEqual(one('127.0.0.1::80'), { host_port: 0, guest_port: 80, protocol: 'tcp', host_ip: '127.0.0.1' })
})

test('ranges of the same length are mapped one to one', () => {
  assert.deepEqual(
    parsePorts('8000-8002:80-82').map((mapping) => [mapping.host_port, mapping.guest_port]),
    [
      [8000, 80],
      [8001, 81],
      [8002, 82],
    ],
  )
})

test('what is no mapping is refused with a hint', () => {
  for (const spec of [
    '',
    'x',
    '80:',
    '8080:80/sctp',
    '70000:80',
    '80:0',
    '8000-8001:80',
    '8001-8000:80-81',
    '1-100:1-100',
    '999.0.0.1:1:1',
    '::1:80:80',
  ]) {
    assert.throws(
      () => parsePorts(spec),
      (error: unknown) => error instanceof Failure && error.exitCode === 2 && error.hint !== undefined,
      spec,
    )
  }
})

test('what is shown of a mapping can be read back', () => {
  const port = fc.integer({ min: 1, max: 65_535 })
  fc.assert(
    fc.property(
      port,
      port,
      fc.constantFrom('tcp' as const, 'udp' as const),
      fc.option(fc.ipV4(), { nil: undefined }),
      (host_port, guest_port, protocol, host_ip) => {
        const mapping = { host_port, guest_port, protocol, ...(host_ip !== undefined && { host_ip }) }
        assert.deepEqual(parsePorts(formatPort(mapping).replace('->', ':')), [mapping])
      },
    ),
  )
})
