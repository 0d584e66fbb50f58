/** What a client is told that this server can do: no more than it can on this host, and why not more. */
import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { type Capabilities, RUNTIME_FEATURES } from '@dormouse/api/capabilities.ts'
import { type FakeUses, fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

type Driver = FakeUses['host']['hypervisors'][number]

const qemu: Driver = {
  name: 'qemu',
  capabilities: new Set(['pause', 'standby', 'fork', 'snapshots', 'disk_hotplug', 'memory_hotplug', 'disk_limit']),
  probe: async () => ({ available: true, version: '7.2', acceleration: 'tcg' }),
}

async function told(t: TestContext, drivers: readonly Driver[], network?: FakeUses['host']['network']): Promise<Capabilities> {
  const uses = fakeUses()
  const host = { ...uses.host, hypervisors: drivers, ...(network === undefined ? {} : { network }) }
  const server = new HttpServer({ ...uses, host })
  t.after(() => server.close())
  const answer = await server.host.inject({ method: 'GET', url: '/capabilities' })
  assert.equal(answer.statusCode, 200, answer.body)
  return answer.json()
}

test('runtimes come by name; those that this daemon has no driver of are told as unavailable, with the reason', async (t) => {
  const { runtimes, default_runtime } = await told(t, [{ ...qemu, name: 'qemu-microvm' }, qemu])
  assert.deepEqual(
    runtimes.map(({ name, available }) => [name, available]),
    [
      ['cloud-hypervisor', false],
      ['firecracker', false],
      ['qemu', true],
      ['qemu-microvm', true],
      ['vz', false],
    ],
  )
  for (const { name, available, reason = '', features } of runtimes) {
    if (!available) assert.ok(reason.length > 20 && features.length === 0, name)
  }
  assert.deepEqual(default_runtime, { name: 'qemu', available: true })
})

test('a runtime has the features of its driver, in the words of the contract', async (t) => {
  const { runtimes } = await told(t, [qemu])
  const { features = [] } = runtimes.find(({ name }) => name === 'qemu') ?? {}
  const wanted = ['disk-io-limit', 'disk-resize', 'fork', 'hotplug-disk', 'hotplug-memory', 'pause', 'snapshots', 'standby']
  assert.deepEqual(features, wanted)
  for (const feature of features) assert.ok((RUNTIME_FEATURES as readonly string[]).includes(feature), feature)
})

test('memory cannot be added where the memory of VMs is out of reach, and is not told of', async (t) => {
  const probe: Driver['probe'] = async () => ({ available: true, memoryOutOfReach: 'Yama does not let us' })
  const { runtimes } = await told(t, [{ ...qemu, probe }])
  const { features = [] } = runtimes.find(({ name }) => name === 'qemu') ?? {}
  assert.ok(!features.includes('hotplug-memory'))
  assert.ok(features.includes('standby'))
})

test('a driver whose program is missing can do nothing, and says what is missing', async (t) => {
  const probe: Driver['probe'] = async () => ({ available: false, reason: 'There is no qemu-system-x86_64' })
  const { runtimes, default_runtime } = await told(t, [{ ...qemu, probe }])
  assert.deepEqual(
    runtimes.find(({ name }) => name === 'qemu'),
    { name: 'qemu', available: false, features: [], reason: 'There is no qemu-system-x86_64' },
  )
  assert.deepEqual(default_runtime, { name: 'qemu', available: false })
})

test('releases that a driver works with are told, whether one of them is here or not', async (t) => {
  const probe: Driver['probe'] = async () => ({ available: false, reason: 'There is no cloud-hypervisor in PATH' })
  const { runtimes } = await told(t, [qemu, { ...qemu, name: 'cloud-hypervisor', versions: ['53', '52'], probe }])
  const versionsOf = (wanted: string) => runtimes.find(({ name }) => name === wanted)?.versions
  assert.deepEqual([versionsOf('cloud-hypervisor'), versionsOf('qemu'), versionsOf('vz')], [['53', '52'], undefined, undefined])
})

test('the network is told as it is: a bridge with its addresses, or none', async (t) => {
  const bridge = { model: 'bridge', gateway: '10.100.0.1', subnet: '10.100.0.0/16' } as const
  assert.deepEqual((await told(t, [qemu], bridge)).network, { ...bridge, guest_to_guest: false })
  assert.deepEqual((await told(t, [qemu])).network, { model: 'nat', guest_to_guest: false })
})

test('versions, platforms and the features of the server', async (t) => {
  const { server, host, images, features } = await told(t, [qemu])
  assert.deepEqual(server, { version: '0.1.0', api_version: '0.1.0' })
  assert.deepEqual([host.os, host.arch], ['linux', 'amd64'])
  assert.deepEqual(images, { platforms: ['linux/amd64'], default_platform: 'linux/amd64' })
  for (const always of ['exec', 'images', 'instances', 'logs', 'volumes']) assert.ok(features.includes(always), always)
  assert.deepEqual(features, features.toSorted())
})
