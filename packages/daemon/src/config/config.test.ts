import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { makeAuthority } from '../egress/certificates.ts'
import { configOf, readConfig } from './config.ts'
import { readEnv } from './env.ts'

const configured = (settings: Record<string, string>, file: Record<string, string> = {}) =>
  configOf(new Map(Object.entries(settings)), new Map(Object.entries(file)))

test('without a word everything has a default', () => {
  const config = configured({})
  assert.equal(config.dataDir, '/var/lib/dormouse')
  assert.deepEqual(config.listen, { socket: '/run/dormouse/dormouse.sock', socketMode: 0o660, tcp: { host: '127.0.0.1', port: 4973 } })
  assert.equal(config.limits.maxMemoryBytes, 32 * 2 ** 30)
  assert.equal(config.hypervisor, 'qemu')
})

test('the environment outweighs the file, the file the default', () => {
  const config = configured({ LOG_LEVEL: 'debug' }, { LOG_LEVEL: 'warn', STOP_GRACE: '9s' })
  assert.equal(config.logLevel, 'debug')
  assert.equal(config.instances.stopGraceMs, 9000)
})

test('a setting that does not exist, or is malformed, stops with a sentence that names it', () => {
  assert.throws(() => configured({ DATADIR: '/x' }), { code: 'invalid_request', message: 'There is no setting DORMOUSE_DATADIR' })
  assert.throws(() => configured({}, { DATADIR: '/x' }), { message: 'There is no setting datadir' })
  for (const [name, value] of [
    ['MAX_VCPUS', '0'],
    ['MAX_VCPUS', '1.5'],
    ['MAX_MEMORY', 'much'],
    ['STOP_GRACE', '-1s'],
    ['GOLDEN', 'perhaps'],
    ['STOP_GRACE', '577h'],
    ['DELETE_GRACE', '99999999999h'],
    ['BOOT_LIMIT', '2147483648ms'],
    ['HYPERVISOR', 'xen'],
    ['HYPERVISOR', 'vz'],
    ['LISTEN', '127.0.0.1'],
    ['LISTEN', '127.0.0.1:70000'],
    ['DNS', '192.0.2.1,resolver'],
    ['PUBLISH_ADDRESS', '::1'],
    ['SOCKET_MODE', '999'],
    ['REGISTRY_MIRRORS', 'docker.io'],
    ['ALLOWED_ORIGINS', '*'],
    ['ALLOWED_ORIGINS', 'https://a.example/'],
    ['ALLOWED_ORIGINS', 'a.example'],
    ['ALLOWED_ORIGINS', 'null'],
    ['NAME_LIMITS', 'ci-*'],
    ['NAME_LIMITS', 'ci-*:'],
    ['NAME_LIMITS', 'CI:vcpus=2'],
    ['NAME_LIMITS', ':vcpus=2'],
    ['NAME_LIMITS', 'ci-*:vcpus=0'],
    ['NAME_LIMITS', 'ci-*:vcpus=2=3'],
    ['NAME_LIMITS', 'ci-*:memory=much'],
    ['NAME_LIMITS', 'ci-*:constructor=2'],
    ['MAX_TOTAL_VOLUME_STORAGE', 'much'],
  ] as const) {
    assert.throws(() => configured({ [name]: value }), { message: new RegExp(`^DORMOUSE_${name} is .* but must be`) }, `${name}=${value}`)
  }
})

test('durations are whole milliseconds that a timer can be told', () => {
  assert.equal(configured({ BOOT_LIMIT: '576h' }).instances.bootLimitMs, 2_073_600_000)
  assert.equal(configured({ STOP_GRACE: '1.5ms' }).instances.stopGraceMs, 2)
})

test('a hypervisor that this build cannot run is refused with those that it can', () => {
  assert.throws(() => configured({ HYPERVISOR: 'vz' }), {
    message: 'DORMOUSE_HYPERVISOR is "vz", but must be one of qemu, qemu-microvm, firecracker, cloud-hypervisor, fake',
  })
})

test('addresses to listen on are read in all their forms', () => {
  assert.equal(configured({ LISTEN: 'off' }).listen.tcp, undefined)
  assert.deepEqual(configured({ LISTEN: '[::1]:80' }).listen.tcp, { host: '::1', port: 80 })
  assert.deepEqual(configured({ LISTEN: ':0' }).listen.tcp, { host: '127.0.0.1', port: 0 })
})

test('a compression is an algorithm and a level that it has, or off', () => {
  const compression = (text: string) => configured({ SNAPSHOT_COMPRESSION: text }).snapshots.compression
  assert.equal(configured({}).snapshots.compression, undefined)
  assert.equal(compression('off'), undefined)
  assert.deepEqual(compression('zstd'), { algorithm: 'zstd', level: 1 })
  assert.deepEqual(compression('zstd:19'), { algorithm: 'zstd', level: 19 })
  assert.deepEqual(compression('lz4'), { algorithm: 'lz4', level: 0 })
  for (const wrong of ['zstd:0', 'zstd:20', 'lz4:10', 'gzip', 'zstd:', 'zstd:-1'])
    assert.throws(() => compression(wrong), { message: /^DORMOUSE_SNAPSHOT_COMPRESSION is .* but must be off, or/ }, wrong)
})

test('lists and pairs are parted by commas', () => {
  const config = configured({ INSECURE_REGISTRIES: 'a:5000, b', REGISTRY_MIRRORS: 'docker.io=mirror.test' })
  assert.deepEqual(config.images.insecureRegistries, ['a:5000', 'b'])
  assert.deepEqual(config.images.registryMirrors, { 'docker.io': 'mirror.test' })
})

test('a file is JSON with flat settings; one that was named must be there', () => {
  const dir = mkdtempSync(join(tmpdir(), 'config-'))
  try {
    const path = join(dir, 'config.json')
    assert.throws(() => readConfig(new Map([['CONFIG', path]])), { code: 'invalid_request', message: /cannot be read/ })
    writeFileSync(path, '{"data_dir": "/d", "golden": false, "dns": ["192.0.2.1", "192.0.2.2"]}')
    const config = readConfig(new Map([['CONFIG', path]]))
    assert.deepEqual([config.dataDir, config.golden.enabled, config.network.dns], ['/d', false, ['192.0.2.1', '192.0.2.2']])
    writeFileSync(path, '[]')
    assert.throws(() => readConfig(new Map([['CONFIG', path]])), { message: /must hold one JSON object/ })
    writeFileSync(path, '{')
    assert.throws(() => readConfig(new Map([['CONFIG', path]])), { message: /is not JSON/ })
  } finally {
    rmSync(dir, { recursive: true })
  }
})

test('only variables with our prefix are settings, and empty ones are unset', () => {
  assert.deepEqual([...readEnv({ DORMOUSE_DNS: '1.1.1.1', DORMOUSE_LISTEN: '', PATH: '/bin' })], [['DNS', '1.1.1.1']])
})

test('limits by name keep their order, and name what they limit', () => {
  assert.deepEqual(configured({ NAME_LIMITS: 'ci-*:vcpus=2:memory=4GB, *:overlay_size=1.5GB' }).limits.nameLimits, [
    { pattern: 'ci-*', maxVcpus: 2, maxMemoryBytes: 4 * 2 ** 30 },
    { pattern: '*', maxOverlayBytes: 1.5 * 2 ** 30 },
  ])
  assert.equal(configured({}).limits.maxVolumesBytes, undefined)
  assert.equal(configured({ MAX_TOTAL_VOLUME_STORAGE: '0' }).limits.maxVolumesBytes, 0)
})

test('authorities for proxies are read from a file, which must hold some and nothing broken', () => {
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  try {
    const file = join(dir, 'authorities')
    const [one, other] = ['one', 'other'].map((name) => makeAuthority(name, undefined, Date.now()).certificate)
    writeFileSync(file, `# who\n${one}\n${other}`)
    assert.deepEqual(configured({ EGRESS_CA_FILE: file }).egress.trusted, [one, other])
    assert.deepEqual(configured({}).egress.trusted, [])
    for (const content of ['', 'no certificate', `-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n`]) {
      writeFileSync(file, content)
      assert.throws(() => configured({ EGRESS_CA_FILE: file }), { code: 'invalid_request', message: /DORMOUSE_EGRESS_CA_FILE/ }, content)
    }
    assert.throws(() => configured({ EGRESS_CA_FILE: join(dir, 'none') }), { code: 'invalid_request' })
  } finally {
    rmSync(dir, { recursive: true })
  }
})
