import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import type { VmmRequest } from '../vmm-api.ts'
import { VmmRefusal } from '../vmm-api.ts'
import { API_SOCKET, Control, type MachineState, REQUESTS } from './control.ts'
import { bootCommandLine, rateBucket, restoreCommandLine, slotsOf } from './machine.ts'
import { rewire } from './saved-state.ts'

/** What the OpenAPI document of Cloud Hypervisor 52.0 and 53.0 says (info.version 0.3.0), as far as it is used here. */
const DOCUMENT = {
  server: '/api/v1',
  paths: {
    '/vm.info': { method: 'GET', body: undefined },
    '/vm.pause': { method: 'PUT', body: undefined },
    '/vm.resume': { method: 'PUT', body: undefined },
    '/vm.power-button': { method: 'PUT', body: undefined },
    '/vm.snapshot': { method: 'PUT', body: { destination_url: 'string' } },
  },
  VmState: ['Created', 'Running', 'Shutdown', 'Paused', 'BreakPoint'],
  MemoryRestoreMode: ['Copy', 'OnDemand'],
  RestoreConfig: ['source_url', 'prefault', 'memory_restore_mode', 'resume'],
  TokenBucket: ['size', 'one_time_burst', 'refill_time'],
  RateLimiterConfig: ['bandwidth', 'ops'],
  RateLimitGroupConfig: ['id', 'rate_limiter_config'],
  /** As far as disks of ours have it. */
  DiskConfig: ['path', 'readonly', 'id', 'serial', 'rate_limit_group', 'image_type'],
} as const

test('requests are those of the published document', () => {
  const asked: VmmRequest[] = [
    REQUESTS.info(),
    REQUESTS.pause(),
    REQUESTS.resume(),
    REQUESTS.powerButton(),
    REQUESTS.snapshot('file:///proc/self/cwd/save'),
  ]
  const described = asked.map(({ method, path: where, body }) => [where, { method, body: body === undefined ? undefined : typesOf(body) }])
  const published = Object.entries(DOCUMENT.paths).map(([where, one]) => [`${DOCUMENT.server}${where}`, one])
  assert.deepEqual(Object.fromEntries(described), Object.fromEntries(published))
  const states: Readonly<Record<MachineState, true>> = { Created: true, Running: true, Shutdown: true, Paused: true, BreakPoint: true }
  assert.deepEqual(Object.keys(states), DOCUMENT.VmState)
  assert.ok(Object.keys(rateBucket(1)).every((name) => (DOCUMENT.TokenBucket as readonly string[]).includes(name)))
})

test('a restore asks for a mode that is published; none of them maps memory copy-on-write, which its file does', () => {
  const argv = restoreCommandLine({ vcpus: 1, memoryMib: 1, hasTap: false }, { program: 'ch' }, { resumes: false })
  const words = String(argv.at(-1))
    .split(',')
    .map((word) => word.split('='))
  assert.ok(words.every(([name = '']) => (DOCUMENT.RestoreConfig as readonly string[]).includes(name)))
  const mode = words.find(([name]) => name === 'memory_restore_mode')?.[1]
  assert.ok(DOCUMENT.MemoryRestoreMode.some((one) => one.toLowerCase() === mode))
})

test('disks and their rate are told in words of the document, when a machine boots and when it wakes', () => {
  const isIn = (words: readonly string[], value: unknown): void =>
    assert.deepEqual(
      Object.keys(value as object).filter((name) => !words.includes(name)),
      [],
    )
  const disks = [{ role: 'rootfs', path: '/r', format: 'raw', readOnly: true }] as const
  const wiring = { program: 'ch', disks, sharesMemory: false, diskIoBps: 2 ** 20 }
  for (const disk of bootCommandLine({ vcpus: 1, memoryMib: 1, hasTap: false }, wiring).filter((word) => word.includes('serial='))) {
    isIn(DOCUMENT.DiskConfig, Object.fromEntries(disk.split(',').map((word) => word.split('='))))
  }
  const saved = { payload: {}, memory: { zones: [{ id: 'ram' }] }, disks: [{ id: 'rootfs' }, { id: 'empty-1' }, { id: 'empty-2' }] }
  const { disks: woken, rate_limit_groups: groups } = rewire(saved, { slots: slotsOf(disks), sharesMemory: false, diskIoBps: 2 ** 20 })
  for (const disk of woken as object[]) isIn(DOCUMENT.DiskConfig, disk)
  for (const group of groups as { rate_limiter_config: { bandwidth: object } }[]) {
    isIn(DOCUMENT.RateLimitGroupConfig, group)
    isIn(DOCUMENT.RateLimiterConfig, group.rate_limiter_config)
    isIn(DOCUMENT.TokenBucket, group.rate_limiter_config.bandwidth)
  }
})

const typesOf = (body: unknown): Readonly<Record<string, string>> =>
  Object.fromEntries(Object.entries(body as object).map(([name, value]) => [name, typeof value]))

let dir: string
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'ch-'))
})
after(() => rm(dir, { recursive: true, force: true }))

test('pausing what is paused and resuming what runs is harmless, another refusal is not', async () => {
  let state: MachineState | undefined
  const server = createServer((request, response) => {
    const wanted = { '/api/v1/vm.pause': 'Paused', '/api/v1/vm.resume': 'Running' }[String(request.url)] as MachineState | undefined
    if (request.url === '/api/v1/vm.info') {
      if (state === undefined) return void response.writeHead(500).end('["VM is not created"]')
      return void response.end(JSON.stringify({ config: {}, state }))
    }
    if (state === undefined || wanted === state) return void response.writeHead(500).end('["The VM could not be paused"]')
    state = wanted
    response.writeHead(204).end()
  })
  server.listen(path.join(dir, API_SOCKET))
  await once(server, 'listening')
  const control = new Control(() => dir)
  const step = { signal: AbortSignal.timeout(20_000) }
  assert.equal(await control.state(step), undefined)
  await assert.rejects(control.pause(step), VmmRefusal)
  await assert.rejects(control.reach('Running', { signal: AbortSignal.timeout(30) }), { code: 'timed_out' })
  state = 'Running'
  await control.reach('Running', step)
  for (let round = 0; round < 2; round++) await control.pause(step)
  await control.reach('Paused', step)
  for (let round = 0; round < 2; round++) await control.resume(step)
  assert.equal(await control.state(step), 'Running')
  server.close()
})
