import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { VmmRefusal } from '../vmm-api.ts'
import { CLOUD_HYPERVISOR } from './cloud-hypervisor-host.ts'
import { API_SOCKET, Control, type MachineState, type PluggedDisk, REQUESTS } from './control.ts'
import { bootCommandLine, rateBucket, restoreCommandLine, slotsOf } from './machine.ts'
import { PUBLISHED } from './published-api.ts'
import { rewire } from './saved-state.ts'

const { requests, schemas, server } = PUBLISHED
type SchemaName = keyof typeof schemas

/** Only what the document has, and all that it must have. */
function assertIs(name: SchemaName, value: unknown, beside: readonly string[] = []): void {
  const known: object = schemas[name]
  const names = Object.keys(value as object)
  assert.deepEqual(
    names.filter((one) => !(one in known) && !beside.includes(one)),
    [],
    name,
  )
  assert.deepEqual(
    Object.entries(known).flatMap(([one, kind]) => (kind === 'required' && !names.includes(one) ? [one] : [])),
    [],
    name,
  )
}

const disk: PluggedDisk = { id: 'volume-0', path: '/proc/dormouse/volume-0', readonly: true, serial: 'volume-0', image_type: 'Raw' }

test('requests are those of the published documents', () => {
  const asked = [
    REQUESTS.info(),
    REQUESTS.pause(),
    REQUESTS.resume(),
    REQUESTS.powerButton(),
    REQUESTS.snapshot('file:///proc/self/cwd/save'),
    REQUESTS.addDisk(disk),
    REQUESTS.removeDevice('volume-0'),
    REQUESTS.resizeDisk('volume-0', 2 ** 30),
  ]
  assert.deepEqual(asked.length, Object.keys(REQUESTS).length)
  for (const { method, path: where, body } of asked) {
    assert.ok(where.startsWith(server))
    const published: { readonly method: string; readonly body?: SchemaName } = requests[where.slice(server.length) as keyof typeof requests]
    assert.equal(method, published.method, where)
    assert.equal(body === undefined, published.body === undefined, where)
    if (published.body !== undefined) assertIs(published.body, body)
  }
  assertIs('TokenBucket', rateBucket(1))
})

test('there is a document of each release that is supported', () => {
  assert.deepEqual(PUBLISHED.releases, CLOUD_HYPERVISOR.versions)
})

/** One that maps memory copy-on-write would be taken instead of a zone over a file: whoever makes the documents' facts anew is told by this. */
test('a restore asks for a mode that is published; none of them maps memory copy-on-write, which its file does', () => {
  assert.deepEqual(schemas.MemoryRestoreMode, ['Copy', 'OnDemand'])
  const argv = restoreCommandLine({ vcpus: 1, memoryMib: 1, hasTap: false }, { program: 'ch' }, { resumes: false })
  const words = Object.fromEntries(
    String(argv.at(-1))
      .split(',')
      .map((word) => word.split('=')),
  )
  assertIs('RestoreConfig', words)
  assert.ok(schemas.MemoryRestoreMode.some((one) => one.toLowerCase() === words.memory_restore_mode))
})

test('disks and their rate are told in words of the documents, when a machine boots and when it wakes', () => {
  const disks = [{ role: 'rootfs', path: '/r', format: 'raw', readOnly: true }] as const
  // These two are switches for its own tests, which release 52 is given.
  const beside = ['_disable_io_uring', '_disable_aio']
  for (const version of PUBLISHED.releases) {
    const wiring = { program: 'ch', version, disks, sharesMemory: false, diskIoBps: 2 ** 20 }
    for (const told of bootCommandLine({ vcpus: 1, memoryMib: 1, hasTap: false }, wiring).filter((word) => word.includes('serial=')))
      assertIs('DiskConfig', Object.fromEntries(told.split(',').map((word) => word.split('='))), beside)
  }
  const saved = {
    payload: {},
    memory: { zones: [{ id: 'ram', size: 1 }] },
    disks: [{ id: 'rootfs' }, { id: 'empty-1' }, { id: 'empty-2' }],
  }
  const woken = rewire(saved, { slots: slotsOf(disks), sharesMemory: false, diskIoBps: 2 ** 20 })
  for (const one of woken.disks as object[]) assertIs('DiskConfig', one)
  for (const zone of (woken.memory as { zones: object[] }).zones) assertIs('MemoryZoneConfig', zone)
  assertIs('PayloadConfig', woken.payload)
  for (const group of woken.rate_limit_groups as { rate_limiter_config: { bandwidth: object } }[]) {
    assertIs('RateLimitGroupConfig', group)
    assertIs('RateLimiterConfig', group.rate_limiter_config)
    assertIs('TokenBucket', group.rate_limiter_config.bandwidth)
  }
})

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
