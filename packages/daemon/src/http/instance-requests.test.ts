import assert from 'node:assert/strict'
import { test } from 'node:test'
import { graceMs, toCreateInstance, toUpdateInstance, waitLimitMs } from './instance-requests.ts'

const NOW = 1_700_000_000_000
const good = { name: 'web', image: 'alpine' }
const create = (more: object) => toCreateInstance({ ...good, ...more }, NOW)

test('texts become numbers, and what was left out stays out', () => {
  assert.deepEqual(create({}), good)
  assert.deepEqual(create({ size: '1.5GB', overlay_size: ' 10 gb ', vcpus: 4, cmd: [], entrypoint: ['sh'] }), {
    ...good,
    vcpus: 4,
    memoryBytes: 1.5 * 2 ** 30,
    overlayBytes: 10 * 2 ** 30,
    entrypoint: ['sh'],
  })
  assert.deepEqual(create({ size: '' }), good)
})

test('each size has an error code of its own', () => {
  assert.throws(() => create({ size: 'big' }), { code: 'invalid_size' })
  assert.throws(() => create({ size: '0' }), { code: 'invalid_size' })
  assert.throws(() => create({ overlay_size: '10Gb' }), { code: 'invalid_overlay_size' })
})

test('an end is given by ttl or by time, in the future, never both', () => {
  assert.equal(create({ ttl: '1h' }).expiresAtMs, NOW + 3_600_000)
  assert.equal(create({ ttl: '0s' }).expiresAtMs, undefined)
  assert.equal(toUpdateInstance({ ttl: '0s' }, NOW).expiresAtMs, null)
  assert.equal(create({ expires_at: new Date(NOW + 1).toISOString() }).expiresAtMs, NOW + 1)
  assert.throws(() => create({ ttl: '-1h' }), { code: 'invalid_ttl' })
  assert.throws(() => create({ ttl: 'soon' }), { code: 'invalid_ttl' })
  assert.throws(() => create({ expires_at: new Date(NOW).toISOString() }), { code: 'invalid_expires_at' })
  assert.throws(() => create({ ttl: '0s', expires_at: new Date(NOW + 1).toISOString() }), { code: 'invalid_request' })
})

test('only platforms that can run are taken', () => {
  assert.equal(create({ platform: 'linux/arm64/v8' }).platform, 'linux/arm64/v8')
  assert.throws(() => create({ platform: 'windows/amd64' }), { code: 'invalid_platform' })
})

test('a host address that is none is refused', () => {
  const ports = (host_ip: string) => ({ network: { ports: [{ host_port: 0, guest_port: 80, host_ip }] } })
  assert.equal(create(ports('127.0.0.1')).network?.ports?.[0]?.hostIp, '127.0.0.1')
  assert.throws(() => create(ports('localhost; rm -rf /')), { code: 'invalid_request' })
})

test('what is not built yet is refused by name, and its defaults are not', () => {
  const defaults = {
    volumes: [],
    devices: [],
    gpu: {},
    hotplug_size: '0',
    disk_io_bps: '',
    auto_standby: { enabled: false },
    health_check: { type: 'none' as const },
    restart_policy: { policy: 'never' as const },
    credentials: {},
    skip_guest_agent: false,
    skip_kernel_headers: true,
    network: { egress: { enabled: false }, bandwidth_download: '' },
  }
  assert.equal(create(defaults).name, 'web')
  for (const [field, value] of Object.entries({
    volumes: [{ volume_id: 'v', mount_path: '/data' }],
    devices: ['gpu0'],
    gpu: { profile: 'x' },
    hotplug_size: '1GB',
    disk_io_bps: '100MB/s',
    auto_standby: { enabled: true },
    health_check: { type: 'tcp', tcp: { port: 1 } },
    restart_policy: { policy: 'always' },
    skip_guest_agent: true,
  })) {
    assert.throws(
      () => create({ [field]: value }),
      (error: Error & { code?: string }) => error.code === 'not_supported' && error.message.includes(`\`${field}\``),
      field,
    )
  }
})

test('waits are bounded, and need a time above nothing', () => {
  assert.equal(waitLimitMs(undefined), 60_000)
  assert.equal(waitLimitMs('10h'), 300_000)
  for (const text of ['0s', '-1s', 'long', '']) assert.throws(() => waitLimitMs(text), { code: 'invalid_timeout' }, text)
  assert.equal(graceMs(undefined), undefined)
  assert.equal(graceMs('0s'), 0)
  assert.throws(() => graceMs('1 minute'), { code: 'invalid_timeout' })
})
