/** Instances that have devices of the host: whose they are, when they are taken and given back, and what becomes of them when something fails. */
import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import type { FakeFunction } from '../devices/fake-sysfs.ts'
import type { CreateInstance, Instance, InstanceId } from './instance.ts'
import { assertInOrder, settled, TEST_IMAGE, TEST_OVERLAY, TestHouse } from './test-house.ts'

const GPU: FakeFunction = { address: '0000:65:00.0', vendor: '10de', device: '26b9', classCode: '030200', group: 12, driver: 'nvidia' }
const AUDIO: FakeFunction = { ...GPU, address: '0000:65:00.1', device: '22ba', classCode: '040300', driver: 'snd_hda_intel' }
const OTHER: FakeFunction = { ...GPU, address: '0000:66:00.0', group: 13 }
const DIVIDED: FakeFunction = {
  ...GPU,
  address: '0000:67:00.0',
  group: 14,
  mdevTypes: [{ id: 'nvidia-1148', name: 'NVIDIA L40S-1Q', description: 'framebuffer=1024M', available: 1 }],
}

async function houseOf(t: TestContext, functions: readonly FakeFunction[] = [GPU, AUDIO, OTHER, DIVIDED]): Promise<TestHouse> {
  const house = new TestHouse()
  t.after(() => house[Symbol.asyncDispose]())
  for (const one of functions) house.sysfs.plug(one)
  await house.begin()
  return house
}

const register = (house: TestHouse, { address }: FakeFunction, name: string) => house.devices.register({ pciAddress: address, name })

async function run(house: TestHouse, name: string, more: Partial<CreateInstance>): Promise<Instance> {
  const { id } = await house.instances.create({ name, image: 'test', overlayBytes: TEST_OVERLAY, ...more })
  await settled(house.instances)
  return house.instances.get(id)
}

const specOf = (house: TestHouse, id: InstanceId) => house.host.running().find(({ spec }) => spec.id === id)?.spec
const driverOf = (house: TestHouse, { address }: FakeFunction) => house.sysfs.driverOf(address)

test('an instance has its device from its create to its delete, and its VM while it runs', async (t) => {
  const house = await houseOf(t)
  const device = await register(house, GPU, 'big')
  const { id, devices } = await run(house, 'a', { devices: ['big'] })
  assert.deepEqual(devices, [{ id: device.id, name: 'big', address: GPU.address }])
  assert.deepEqual(specOf(house, id)?.hostDevices, [{ kind: 'pci', address: GPU.address }])
  assert.deepEqual([driverOf(house, GPU), driverOf(house, AUDIO)], ['vfio-pci', 'vfio-pci'])
  await assertInOrder(house)
  await house.instances.stop(id)
  assert.deepEqual([driverOf(house, GPU), driverOf(house, AUDIO)], ['nvidia', 'snd_hda_intel'])
  assert.equal((await house.devices.get('big')).holder?.instanceId, id)
  assert.throws(() => house.devices.delete('big'), { code: 'in_use', message: /The instance a has the device big/ })
  await house.instances.start(id)
  await settled(house.instances)
  assert.equal(driverOf(house, GPU), 'vfio-pci')
  await house.instances.delete(id)
  assert.equal(driverOf(house, GPU), 'nvidia')
  assert.equal((await house.devices.get('big')).holder, undefined)
  house.devices.delete('big')
  await assertInOrder(house)
})

test('a device is one instance’s alone, and so is its IOMMU group', async (t) => {
  const house = await houseOf(t)
  await register(house, GPU, 'big')
  await register(house, AUDIO, 'sound')
  await register(house, OTHER, 'other')
  const { id } = await run(house, 'a', { devices: ['big'] })
  const before = house.sysfs.writes.length
  await assert.rejects(run(house, 'b', { devices: ['big'] }), { code: 'conflict', message: /The device big is attached to the instance a/ })
  await assert.rejects(run(house, 'b', { devices: ['other', 'sound'] }), {
    code: 'conflict',
    message: /The device sound shares the IOMMU group 12 with big, which the instance a has/,
  })
  await assert.rejects(run(house, 'b', { devices: ['none'] }), { code: 'device_not_found' })
  assert.equal(house.sysfs.writes.length, before)
  assert.deepEqual(
    house.instances.list().map(({ name }) => name),
    ['a'],
  )
  // Stopped, it is its own all the same.
  await house.instances.stop(id)
  await assert.rejects(run(house, 'b', { devices: ['big'] }), { code: 'conflict' })
  const both = await Promise.allSettled(['b', 'c'].map((name) => run(house, name, { devices: ['other'] })))
  assert.deepEqual(both.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
  await assertInOrder(house)
})

test('a part of a GPU is made with each start and freed with each end; when none is left a create says so', async (t) => {
  const house = await houseOf(t)
  const { id, gpu } = await run(house, 'a', { gpuProfile: 'L40S-1Q' })
  assert.equal(gpu?.profile, 'L40S-1Q')
  assert.deepEqual(specOf(house, id)?.hostDevices, [{ kind: 'mdev', uuid: gpu?.mdevUuid }])
  await assert.rejects(run(house, 'b', { gpuProfile: 'L40S-1Q' }), { code: 'insufficient_resources', message: /one more L40S-1Q/ })
  assert.equal(house.instances.list().length, 1)
  await house.instances.stop(id)
  assert.deepEqual(house.instances.get(id).gpu, { profile: 'L40S-1Q' })
  assert.deepEqual(house.sysfs.mdevs, [])
  const b = await run(house, 'b', { gpuProfile: 'L40S-1Q' })
  await assert.rejects(house.instances.start(id), { code: 'insufficient_resources', message: /one more L40S-1Q/ })
  assert.equal(house.instances.get(id).state, 'Stopped')
  await house.instances.delete(b.id)
  await house.instances.start(id)
  await settled(house.instances)
  assert.notEqual(house.instances.get(id).gpu?.mdevUuid, gpu?.mdevUuid)
  await assertInOrder(house)
})

test('a virtual function that has become a part is the VM’s while it runs, and nothing afterwards', async (t) => {
  const virtual: FakeFunction = { ...GPU, address: '0000:68:00.4', group: 24, vfTypes: { 1148: 'NVIDIA L40S-1Q' } }
  const house = await houseOf(t, [virtual])
  const { id, gpu } = await run(house, 'a', { gpuProfile: 'L40S-1Q' })
  assert.deepEqual(gpu, { profile: 'L40S-1Q', address: virtual.address })
  assert.deepEqual(specOf(house, id)?.hostDevices, [{ kind: 'pci', address: virtual.address }])
  assert.equal(house.sysfs.vfTypeOf(virtual.address), '1148')
  await house.instances.stop(id)
  assert.deepEqual([house.instances.get(id).gpu, house.sysfs.vfTypeOf(virtual.address)], [{ profile: 'L40S-1Q' }, '0'])
  await assertInOrder(house)
})

test('nothing is pulled for an instance whose devices cannot be had', async (t) => {
  const house = await houseOf(t)
  let pulls = 0
  house.pulls.set('far', async () => {
    pulls++
    return TEST_IMAGE
  })
  await register(house, GPU, 'big')
  await run(house, 'a', { devices: ['big'] })
  const far = (more: Partial<CreateInstance>) => run(house, 'b', { image: 'far', ...more })
  await assert.rejects(far({ devices: ['big'] }), { code: 'conflict' })
  await assert.rejects(far({ devices: ['none'] }), { code: 'device_not_found' })
  await assert.rejects(far({ gpuProfile: 'none' }), { code: 'invalid_request' })
  assert.equal(pulls, 0)
  await far({ gpuProfile: 'L40S-1Q' })
  assert.equal(pulls, 1)
})

test('what is in a device cannot be kept: standby, fork and snapshot of one that runs are refused, of its disk at rest they are not', async (t) => {
  const house = await houseOf(t)
  await register(house, GPU, 'big')
  const { id } = await run(house, 'a', { devices: ['big'], gpuProfile: 'L40S-1Q' })
  const why = { message: /it has a device of the host/ }
  const kept = { kind: 'Standby', tags: {}, isScheduled: false } as const
  await assert.rejects(house.instances.standby(id), { code: 'invalid_state', ...why })
  await assert.rejects(house.instances.fork(id, { name: 'b', fromRunning: true }), { code: 'invalid_state', ...why })
  await assert.rejects(house.instances.snapshot(id, kept), { code: 'conflict', ...why })
  const { actions } = await house.instances.reclaimMemory({ bytes: 2 ** 30, holdMs: 0, dryRun: false })
  assert.match(String(actions[0]?.error), /it has a device of the host/)
  await house.instances.stop(id)
  // A fork has what it can have: a part of its own, and no device, which is one's alone.
  const fork = await house.instances.fork(id, { name: 'b' })
  assert.deepEqual([fork.state, fork.devices, fork.gpu], ['Stopped', undefined, { profile: 'L40S-1Q' }])
  await assert.rejects(house.instances.fork(id, { name: 'c', target: 'Standby' }), { code: 'invalid_state', message: /part of a GPU/ })
  const snapshot = await house.instances.snapshot(id, { ...kept, kind: 'Stopped' })
  await house.instances.restoreSnapshot(id, snapshot, 'Running')
  await settled(house.instances)
  assert.equal(driverOf(house, GPU), 'vfio-pci')
  await assertInOrder(house)
})

test('a VM that dies gives its devices back', async (t) => {
  const house = await houseOf(t)
  await register(house, GPU, 'big')
  const { id } = await run(house, 'a', { devices: ['big'], gpuProfile: 'L40S-1Q' })
  const machine = house.host.running()[0]
  await machine?.end({ kind: 'signaled', signal: 'SIGSEGV', atMs: Date.now() })
  await house.instances.wait(id, { state: 'Stopped', timeoutMs: 60_000 })
  await settled(house.instances)
  assert.deepEqual([driverOf(house, GPU), house.sysfs.mdevs], ['nvidia', []])
  await assertInOrder(house)
})

for (const [what, fault] of [
  ['its driver does not let go', /65:00\.0\/driver\/unbind$/],
  ['its part of a GPU is not made', /create$/],
] as const) {
  test(`when ${what}, a create leaves nothing and a start leaves it Stopped`, async (t) => {
    const house = await houseOf(t)
    await register(house, GPU, 'big')
    house.sysfs.injectFault(fault)
    await assert.rejects(run(house, 'a', { devices: ['big'], gpuProfile: 'L40S-1Q' }))
    assert.deepEqual(house.instances.list(), [])
    await assertInOrder(house)
    const { id } = await run(house, 'a', { devices: ['big'], gpuProfile: 'L40S-1Q' })
    await house.instances.stop(id)
    house.sysfs.injectFault(fault)
    await assert.rejects(house.instances.start(id))
    await settled(house.instances)
    assert.equal(house.instances.get(id).state, 'Stopped')
    await assertInOrder(house)
  })
}

test('a VM that does not start gives its devices back', async (t) => {
  const house = await houseOf(t)
  await register(house, GPU, 'big')
  house.host.injectFault('start_late')
  await assert.rejects(run(house, 'a', { devices: ['big'], gpuProfile: 'L40S-1Q' }))
  assert.deepEqual([driverOf(house, GPU), house.sysfs.mdevs, house.instances.list()], ['nvidia', [], []])
  await assertInOrder(house)
})

test('a device that cannot be given back does not keep its instance from stopping, and is given back by the next daemon', async (t) => {
  const house = await houseOf(t)
  await register(house, GPU, 'big')
  const { id } = await run(house, 'a', { devices: ['big'], gpuProfile: 'L40S-1Q' })
  house.sysfs.injectFault(/65:00\.0\/driver\/unbind$/)
  house.sysfs.injectFault(/remove$/)
  assert.equal((await house.instances.stop(id)).state, 'Stopped')
  assert.deepEqual([driverOf(house, GPU), house.sysfs.mdevs.length], ['vfio-pci', 1])
  await house.end()
  await house.begin()
  await settled(house.instances)
  assert.deepEqual([driverOf(house, GPU), house.sysfs.mdevs], ['nvidia', []])
  assert.deepEqual(house.instances.get(id).gpu, { profile: 'L40S-1Q' })
  await assertInOrder(house)
})

test('a VM that lives through a restart of the daemon keeps its devices', async (t) => {
  const house = await houseOf(t)
  await register(house, GPU, 'big')
  const { id, gpu } = await run(house, 'a', { devices: ['big'], gpuProfile: 'L40S-1Q' })
  const { length } = house.sysfs.writes
  house.crash()
  await house.begin()
  await settled(house.instances)
  assert.equal(house.sysfs.writes.length, length)
  assert.deepEqual(house.instances.get(id).gpu, gpu)
  await assertInOrder(house)
})

type Doing = 'create' | 'start' | 'stop' | 'delete' | 'end'
const CASES: readonly (readonly [at: string, doing: Doing, ends: 'Running' | 'Stopped' | undefined])[] = [
  ['create:devices', 'create', undefined],
  ['create:spawn', 'create', undefined],
  ['create:record', 'create', undefined],
  ['boot:connect', 'create', 'Running'],
  ['start:devices', 'start', 'Stopped'],
  ['start:spawn', 'start', 'Stopped'],
  ['start:record', 'start', 'Stopped'],
  ['stop:settle', 'stop', 'Stopped'],
  ['stop:sweep', 'stop', 'Stopped'],
  ['stop:detach', 'stop', 'Stopped'],
  ['stop:give_back', 'stop', 'Stopped'],
  ['delete:sweep', 'delete', undefined],
  ['delete:give_back', 'delete', undefined],
  ['delete:forget', 'delete', undefined],
  ['exit:collect', 'end', 'Stopped'],
  ['exit:give_back', 'end', 'Stopped'],
]
for (const [at, doing, ends] of CASES) {
  test(`after a daemon's death at ${at} the host has its devices, or the VM that runs`, async (t) => {
    const house = await houseOf(t)
    await register(house, GPU, 'big')
    const more = { devices: ['big'], gpuProfile: 'L40S-1Q' }
    if (doing !== 'create') {
      const { id } = await run(house, 'a', more)
      if (doing === 'start') await house.instances.stop(id)
      await house.end()
    } else await house.end()
    const { promise: died, resolve: onCrash } = Promise.withResolvers<void>()
    const instances = await house.begin({ crashAt: at, onCrash })
    const id = instances.list()[0]?.id as InstanceId
    const done = {
      create: () => run(house, 'a', more),
      start: () => instances.start(id),
      stop: () => instances.stop(id),
      delete: () => instances.delete(id),
      end: async () => house.host.running()[0]?.guest.exitWorkload(3, 'it had enough'),
    }[doing]()
    done.catch(() => undefined)
    await died
    house.crash()
    await house.begin()
    await settled(house.instances)
    assert.equal(house.instances.list()[0]?.state, ends)
    assert.deepEqual(
      [driverOf(house, GPU), driverOf(house, AUDIO), house.sysfs.mdevs.length],
      ends === 'Running' ? ['vfio-pci', 'vfio-pci', 1] : ['nvidia', 'snd_hda_intel', 0],
    )
    await assertInOrder(house)
  })
}

for (const fault of [/65:00\.1\/driver\/unbind$/, /create$/, /drivers_probe$/]) {
  test(`a daemon that dies while the kernel is at ${fault.source} leaves nothing of it`, async (t) => {
    const house = await houseOf(t)
    await register(house, GPU, 'big')
    const hangs = house.sysfs.injectFault(fault, 'hang')
    house.instances
      .create({ name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, devices: ['big'], gpuProfile: 'L40S-1Q' })
      .catch(() => undefined)
    await hangs
    house.crash()
    await house.begin()
    await settled(house.instances)
    assert.deepEqual(house.instances.list(), [])
    assert.deepEqual([driverOf(house, GPU), driverOf(house, AUDIO), house.sysfs.mdevs], ['nvidia', 'snd_hda_intel', []])
    await assertInOrder(house)
  })
}
