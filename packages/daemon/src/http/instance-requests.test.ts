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
  assert.equal(create({ fresh_boot: true }).freshBoot, true)
})

test('sizes with decimals are taken, in whole MiB upwards', () => {
  assert.equal(create({ size: '1.2GB' }).memoryBytes, 1229 * 2 ** 20)
  assert.equal(create({ size: '1.2GB', overlay_size: '10.7GB' }).overlayBytes, 10_957 * 2 ** 20)
  assert.equal(toUpdateInstance({ size: '128.5mb' }, NOW).memoryBytes, 129 * 2 ** 20)
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
  for (const ttl of ['99999999999h', '2562048h', `${'9'.repeat(62)}s`]) {
    assert.throws(() => create({ ttl }), { code: 'invalid_ttl' }, ttl)
    assert.throws(() => toUpdateInstance({ ttl }, NOW), { code: 'invalid_ttl' }, ttl)
  }
  for (const expires_at of ['+010000-01-01T00:00:00Z', '+275760-09-13T00:00:00Z', '99999-01-01T00:00:00Z', '2030-02-31T25:00:00Z']) {
    assert.throws(() => create({ expires_at }), { code: 'invalid_expires_at' }, expires_at)
  }
  // Rows hold whole milliseconds.
  assert.equal(create({ ttl: '1ns' }).expiresAtMs, NOW + 1)
  assert.throws(() => create({ ttl: '0s', expires_at: new Date(NOW + 1).toISOString() }), { code: 'invalid_request' })
})

test('only platforms that can run are taken', () => {
  assert.equal(create({ platform: 'linux/arm64/v8' }).platform, 'linux/arm64/v8')
  assert.throws(() => create({ platform: 'windows/amd64' }), { code: 'invalid_platform' })
})

test('a host address that is none is refused', () => {
  const ports = (host_ip: string) => ({ network: { ports: [{ host_port: 0, guest_port: 80, host_ip }] } })
  assert.equal(create(ports('127.0.0.1')).network?.ports?.[0]?.hostIp, '127.0.0.1')
  for (const text of ['localhost; rm -rf /', '::1%lo', 'fe80::1%eth0', ''])
    assert.throws(() => create(ports(text)), { code: 'invalid_request' }, text)
})

test('defaults that are written out are taken as what they are', () => {
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
  assert.equal(create({ skip_guest_agent: true }).skipGuestAgent, true)
  assert.ok(!('egress' in create(defaults)))
})

test('devices and a profile are handed on, and none where none is meant', () => {
  assert.deepEqual(create({ devices: ['gpu0'], gpu: { profile: 'L40S-1Q' } }).devices, ['gpu0'])
  assert.equal(create({ gpu: { profile: 'L40S-1Q' } }).gpuProfile, 'L40S-1Q')
  assert.ok(!('devices' in create({ devices: [] })) && !('gpuProfile' in create({ gpu: { profile: '' } })))
})

test('an overlay needs a volume that is shared, and a size; a size needs an overlay', () => {
  const mount = (more: object) => create({ volumes: [{ volume_id: 'v', mount_path: '/data', ...more }] }).volumes
  assert.deepEqual(mount({}), [{ volume: 'v', mountPath: '/data', readOnly: false }])
  assert.deepEqual(mount({ readonly: true, overlay: true, overlay_size: '1.5GB' }), [
    { volume: 'v', mountPath: '/data', readOnly: true, overlayBytes: 1.5 * 2 ** 30 },
  ])
  assert.throws(() => mount({ overlay: true, overlay_size: '1GB' }), { code: 'invalid_request', message: /volumes\[0\]\.overlay/ })
  assert.throws(() => mount({ readonly: true, overlay: true }), { code: 'invalid_overlay_size' })
  assert.throws(() => mount({ readonly: true, overlay_size: '1GB' }), { code: 'invalid_overlay_size' })
})

test('what is not built yet but is malformed is told as malformed, with the code of its own', () => {
  const wrong: readonly (readonly [code: string, change: object])[] = [
    ['invalid_hotplug_size', { hotplug_size: 'banana' }],
    ['invalid_hotplug_size', { hotplug_size: '9'.repeat(32) }],
    ['invalid_disk_io_bps', { disk_io_bps: 'banana' }],
    ['invalid_disk_io_bps', { disk_io_bps: '-1', hotplug_size: '1GB' }],
    ['invalid_bandwidth_download', { network: { bandwidth_download: 'fast' } }],
    ['invalid_bandwidth_upload', { network: { bandwidth_upload: `${'9'.repeat(28)}bps` } }],
    ['invalid_overlay_size', { volumes: [{ volume_id: 'v', mount_path: '/data', overlay_size: 'much' }] }],
    ['invalid_auto_standby', { auto_standby: { enabled: false, idle_timeout: 'later' } }],
    ['invalid_auto_standby', { auto_standby: { enabled: true, idle_timeout: '0s' } }],
    ['invalid_auto_standby', { auto_standby: { enabled: true } }],
    ...['10.0.0.0', '10.0.0.0/33', '10.0.0.0/8/8', '::/129', 'home/8', '10.0.0.0/', 'fe80::%eth0/64'].map(
      (cidr) => ['invalid_auto_standby', { auto_standby: { ignore_source_cidrs: [cidr] } }] as const,
    ),
    ['invalid_health_check', { health_check: { type: 'none', interval: '-1s' } }],
    ['invalid_health_check', { health_check: { timeout: '0s' } }],
    ['invalid_health_check', { health_check: { start_period: '99999999999h' } }],
    ['invalid_health_check', { health_check: { type: 'http' } }],
    ['invalid_restart_policy', { restart_policy: { policy: 'never', backoff: '1 s' } }],
    ['invalid_restart_policy', { restart_policy: { stable_after: '-1s' } }],
  ]
  for (const [code, change] of wrong) {
    assert.throws(() => create(change), { code }, JSON.stringify(change))
    if (!('volumes' in change) && !('disk_io_bps' in change)) {
      assert.throws(() => toUpdateInstance(change, NOW), { code }, JSON.stringify(change))
    }
  }
})

test('a snapshot policy is looked at before it is kept', () => {
  const policy = (snapshot_policy: object) => create({ snapshot_policy }).snapshotPolicy
  const good = { standby_compression_delay: '0s', compression: { enabled: true, algorithm: 'lz4', level: 0 } }
  assert.deepEqual(policy(good), good)
  for (const wrong of [
    { standby_compression_delay: '-1s' },
    { standby_compression_delay: 'soon' },
    { compression: { enabled: true, algorithm: 'zstd', level: 0 } },
    { compression: { enabled: true, algorithm: 'zstd', level: 20 } },
    { compression: { enabled: true, algorithm: 'lz4', level: 10 } },
    { compression: { enabled: true, level: 0 } },
  ]) {
    assert.throws(() => policy(wrong), { code: 'invalid_snapshot_policy' }, JSON.stringify(wrong))
    assert.throws(() => toUpdateInstance({ snapshot_policy: wrong as object }, NOW), { code: 'invalid_snapshot_policy' })
  }
})

test('waits are bounded, and need a time above nothing', () => {
  assert.equal(waitLimitMs(undefined), 60_000)
  assert.equal(waitLimitMs('10h'), 300_000)
  for (const text of ['0s', '-1s', 'long', '']) assert.throws(() => waitLimitMs(text), { code: 'invalid_timeout' }, text)
  assert.equal(graceMs(undefined), undefined)
  assert.equal(graceMs('0s'), 0)
  assert.deepEqual([waitLimitMs('1ns'), graceMs('1.5ms')], [1, 2])
  assert.throws(() => graceMs('1 minute'), { code: 'invalid_timeout' })
})

test('an auto-standby policy is taken as a whole, what is left out is none', () => {
  const policy = {
    enabled: true,
    idle_timeout: '1.5m',
    ignore_source_cidrs: ['192.0.2.0/24', '2001:db8::/32'],
    ignore_destination_ports: [22],
  }
  const taken = { enabled: true, idleTimeoutMs: 90_000, ignoreSources: policy.ignore_source_cidrs, ignorePorts: [22] }
  assert.deepEqual(create({ auto_standby: policy }).autoStandby, taken)
  assert.deepEqual(toUpdateInstance({ auto_standby: policy }, NOW).autoStandby, taken)
  assert.deepEqual(toUpdateInstance({ auto_standby: {} }, NOW).autoStandby, { enabled: false, ignoreSources: [], ignorePorts: [] })
  // Rows hold whole milliseconds.
  assert.equal(create({ auto_standby: { enabled: true, idle_timeout: '1ns' } }).autoStandby?.idleTimeoutMs, 1)
  assert.equal(create({}).autoStandby, undefined)
})

test('mediated egress that contradicts the request is told as malformed, and what does not is taken', () => {
  const credentials = { KEY: { source: { env: 'REAL' }, inject: [{ as: { header: 'authorization', format: `Bearer \${value}` } }] } }
  const mediated = { network: { egress: { enabled: true } }, env: { REAL: 'x' }, credentials }
  for (const [change, message] of [
    [{ network: { enabled: false, egress: { enabled: true } } }, /`network\.egress` needs the network/],
    [{ env: { REAL: 'x' }, credentials }, /`credentials` need `network\.egress\.enabled`/],
    [{ ...mediated, env: {} }, /`credentials\.KEY\.source\.env` names "REAL"/],
  ] as const) {
    assert.throws(() => create(change), { code: 'invalid_request', message })
  }
  const { mode, credentials: taken } = create(mediated).egress ?? {}
  assert.equal(mode, 'all')
  assert.deepEqual(taken, { KEY: { source: 'REAL', inject: [{ header: 'authorization', format: `Bearer \${value}` }] } })
  const web = { network: { egress: { enabled: true, enforcement: { mode: 'http_https_only' as const } } } }
  assert.deepEqual(create(web).egress, { mode: 'http_https_only', credentials: {} })
})
