import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import test from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import type { Instance } from '@dormouse/api/instances.ts'
import { statusText } from './commands/ps.ts'
import { compare } from './commands/stats.ts'
import { addressText, connectionFailure, parseAddress } from './connect.ts'
import { Failure, tell } from './failure.ts'
import { randomName } from './random-name.ts'
import { requestOf } from './run/create-instance.ts'
import { commandOf } from './run/interactive.ts'
import { verbGroups, verbs } from './verbs.ts'
import { VERSION } from './version.ts'

test('the version is that of the package', async () => {
  const { version } = JSON.parse(await readFile(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }
  assert.equal(VERSION, version)
})

test('every verb is there and can be loaded', async () => {
  for (const verb of [...verbs, ...Object.values(verbGroups).flat()]) assert.equal(typeof (await verb.load()).define, 'function', verb.name)
})

test('made-up names are names, and later attempts differ', () => {
  for (let attempt = 0; attempt < 200; attempt++) assert.match(randomName(attempt % 4), /^[a-z]+-[a-z]+(-\d+)?$/)
  assert.equal(
    randomName(0, () => 0),
    'balmy-badger',
  )
  assert.equal(
    randomName(2, () => 0),
    'balmy-badger-0',
  )
})

test('addresses of a daemon are read in the ways people write them', () => {
  assert.deepEqual(parseAddress('unix:///run/d.sock'), { kind: 'unix', path: '/run/d.sock' })
  assert.deepEqual(parseAddress('/run/d.sock'), { kind: 'unix', path: '/run/d.sock' })
  assert.equal(addressText(parseAddress('http://localhost:4973/')), 'http://localhost:4973')
  assert.equal(addressText(parseAddress('10.0.0.1:4973')), 'http://10.0.0.1:4973')
  assert.equal(addressText(parseAddress('tcp://[::1]:4973')), 'http://[::1]:4973')
  assert.equal(addressText(parseAddress('https://vm.example/api/')), 'https://vm.example:443/api')
  for (const text of ['', 'ftp://x', 'nonsense', 'http://']) assert.throws(() => parseAddress(text), /is not an address/, text)
})

test('a daemon that is not there is one sentence with a hint and an exit code of its own', () => {
  const failure = connectionFailure({ kind: 'unix', path: '/run/d.sock' }, Object.assign(new Error('connect ENOENT'), { code: 'ENOENT' }))
  assert.ok(failure instanceof Failure)
  assert.equal(failure.message, 'No daemon answers at unix:///run/d.sock')
  assert.match(failure.hint ?? '', /dormouse serve/)
  assert.equal(failure.exitCode, 5)
})

test('what the daemon says decides the exit code', () => {
  const codes = (
    ['not_found', 'name_conflict', 'invalid_state', 'unauthorized', 'timed_out', 'internal_error', 'invalid_size'] as const
  ).map((code) => tell(new AppError(code, 'x')).exitCode)
  assert.deepEqual(codes, [3, 4, 4, 6, 7, 1, 1])
  const told = tell(new AppError('invalid_request', 'No.', { hint: 'Try.', detail: { details: [{ message: 'name is long' }, {}] } }))
  assert.deepEqual(told, { exitCode: 1, code: 'invalid_request', message: 'No.', hint: 'Try.', details: ['name is long'] })
})

test('the command of an interactive run is composed as container engines do', () => {
  const image = { entrypoint: ['/entry'], cmd: ['default'] }
  assert.deepEqual(commandOf(image, [], {}), ['/entry', 'default'])
  assert.deepEqual(commandOf(image, ['sh'], {}), ['/entry', 'sh'])
  assert.deepEqual(commandOf(image, [], { entrypoint: '/bin/sh' }), ['/bin/sh'])
  assert.deepEqual(commandOf({}, [], {}), [])
})

test('the status of an instance says how long, how it ended, or what is under way', () => {
  const now = Date.parse('2026-01-01T01:00:00Z')
  const base: Instance = {
    id: 'i',
    name: 'web',
    image: 'alpine',
    state: 'Running',
    created_at: '2026-01-01T00:00:00Z',
    expires_at: null,
    started_at: '2026-01-01T00:55:00Z',
  }
  assert.equal(statusText(base, now), '5m')
  assert.equal(statusText({ ...base, operation: 'stop' }, now), 'stop under way')
  assert.equal(statusText({ ...base, state: 'Stopped', exit_code: 1, stopped_at: '2026-01-01T00:59:00Z' }, now), 'exit 1, 1m ago')
  assert.equal(statusText({ ...base, state: 'Stopped' }, now), '')
  const health = { status: 'unhealthy', consecutive_successes: 0, consecutive_failures: 3 } as const
  assert.equal(statusText({ ...base, health_status: health }, now), '5m, unhealthy')
  assert.equal(statusText({ ...base, health_status: { ...health, status: 'unknown' } }, now), '5m')
  const crashed = { ...base, state: 'Stopped', exit_code: 1 } as const
  const next_attempt_at = '2026-01-01T01:00:05Z'
  assert.equal(statusText({ ...crashed, restart_status: { attempts: 1, next_attempt_at } }, now), 'exit 1, starts in 5s')
  const given = statusText({ ...crashed, restart_status: { attempts: 3, blocked_reason: 'max_attempts_exceeded' } }, now)
  assert.equal(given, 'exit 1, no more restarts')
  assert.equal(statusText({ ...base, state: 'Unknown', state_error: 'no answer' }, now), 'no answer')
})

test('processor use is what was added since, and nothing when the process is another', () => {
  const stats = {
    instance_id: 'i',
    instance_name: 'web',
    memory_rss_bytes: 0,
    memory_vms_bytes: 0,
    network_rx_bytes: 0,
    network_tx_bytes: 0,
    allocated_vcpus: 2,
    allocated_memory_bytes: 0,
  }
  const before = { atMs: 1000, stats: [{ ...stats, cpu_seconds: 1 }] }
  assert.equal(compare(before, { atMs: 2000, stats: [{ ...stats, cpu_seconds: 1.5 }] })[0]?.cpu_ratio, 0.5)
  assert.equal(compare(before, { atMs: 2000, stats: [{ ...stats, cpu_seconds: 0.1 }] })[0]?.cpu_ratio, undefined)
})

test('what `run` asks for is what its options say, and nothing else', async () => {
  assert.deepEqual(await requestOf('alpine', [], { network: true }, { idle: false }), { image: 'alpine' })
  const options = { network: false, freshBoot: true, skipGuestAgent: true, memory: '512m', tag: ['a=b'] } as const
  assert.deepEqual(await requestOf('alpine', ['ls'], { ...options, tag: [...options.tag] }, { idle: false }), {
    ...{ image: 'alpine', cmd: ['ls'], tags: { a: 'b' }, network: { enabled: false }, size: '512m' },
    ...{ fresh_boot: true, skip_guest_agent: true },
  })
})
