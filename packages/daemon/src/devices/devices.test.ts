import assert from 'node:assert/strict'
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import { silentLogger } from '../log.ts'
import { Database } from '../store/database.ts'
import type { InstanceGpu, InstanceId } from '../store/instance-record.ts'
import { Devices } from './devices.ts'
import { type FakeFunction, FakeSysfs } from './fake-sysfs.ts'
import { parsePciAddress } from './pci.ts'
import { PciIds } from './pci-ids.ts'

const GPU: FakeFunction = { address: '0000:65:00.0', vendor: '10de', device: '26b9', classCode: '030200', group: 12, driver: 'nvidia' }
const GPU_AUDIO: FakeFunction = {
  address: '0000:65:00.1',
  vendor: '10de',
  device: '22ba',
  classCode: '040300',
  group: 12,
  driver: 'snd_hda_intel',
}
const PORT: FakeFunction = { address: '0000:64:00.0', vendor: '8086', device: '347a', classCode: '060400', group: 12, driver: 'pcieport' }
const CARD: FakeFunction = { address: '0000:17:00.0', vendor: '15b3', device: '101d', classCode: '020000', group: 3, driver: 'mlx5_core' }
const NOT_ISOLATED: FakeFunction = { address: '0000:00:1f.3', vendor: '8086', device: 'f1c8', classCode: '040300' }

const A = 'aaaaaaaaaaaaaaaaaaaaaaaa' as InstanceId
const B = 'bbbbbbbbbbbbbbbbbbbbbbbb' as InstanceId
const step = { signal: AbortSignal.timeout(600_000), log: silentLogger }

function room(t: TestContext, functions: readonly FakeFunction[], options: { hasVfio?: boolean; isRoot?: boolean } = {}) {
  const sysfs = new FakeSysfs(functions, options)
  const db = Database.open(':memory:')
  t.after(() => {
    sysfs[Symbol.dispose]()
    db.close()
  })
  const events: { kind: string }[] = []
  const { isRoot = true } = options
  const ids = join(sysfs.dir, 'pci.ids')
  writeFileSync(ids, PCI_IDS)
  const pciIds = new PciIds([join(sysfs.dir, 'no-such.ids'), ids])
  const make = () => new Devices({ db, events: { record: (event) => events.push(event) }, sysfs, pciIds, log: silentLogger, isRoot })
  return { sysfs, db, events, devices: make(), make }
}

const PCI_IDS = `# a comment
10de  NVIDIA Corporation
	26b9  AD102GL [L40S]
		10de 1851  a board
15b3  Mellanox Technologies
	101d  MT2892 Family [ConnectX-6 Dx]
C 03  Display controller
	02  3D controller
`

const code = async (work: Promise<unknown>): Promise<string> => {
  try {
    await work
  } catch (error) {
    assert.ok(error instanceof AppError, String(error))
    return `${error.code}: ${error.message}`
  }
  return 'done'
}

test('what could be registered is listed with its names, its driver and its group; bridges and what no IOMMU guards are not', async (t) => {
  const { devices } = room(t, [CARD, PORT, GPU, GPU_AUDIO, NOT_ISOLATED])
  const found = await devices.listAvailable()
  assert.deepEqual(
    found.map(({ address, driver, iommuGroup, vendorName, deviceName }) => [address, driver, iommuGroup, vendorName, deviceName]),
    [
      ['0000:17:00.0', 'mlx5_core', 3, 'Mellanox Technologies', 'MT2892 Family [ConnectX-6 Dx]'],
      ['0000:65:00.0', 'nvidia', 12, 'NVIDIA Corporation', 'AD102GL [L40S]'],
      ['0000:65:00.1', 'snd_hda_intel', 12, 'NVIDIA Corporation', undefined],
    ],
  )
  await devices.register({ pciAddress: '17:00.0' })
  assert.deepEqual(
    (await devices.listAvailable()).map(({ address }) => address),
    ['0000:65:00.0', '0000:65:00.1'],
  )
})

test('without pci.ids devices have no names', async (t) => {
  const { sysfs, db } = room(t, [GPU])
  const uses = { db, events: { record: () => undefined }, sysfs, log: silentLogger, isRoot: true }
  const [found] = await new Devices({ ...uses, pciIds: new PciIds([join(sysfs.dir, 'none')]) }).listAvailable()
  assert.equal(found?.vendorName, undefined)
})

test('a device is registered, found by id and by name, and deleted; nothing of the host changes by it', async (t) => {
  const { devices, sysfs, events } = room(t, [GPU, GPU_AUDIO, PORT, CARD])
  const gpu = await devices.register({ pciAddress: '65:00.0', name: 'big', tags: { rack: 'r1' } })
  const card = await devices.register({ pciAddress: '0000:17:00.0' })
  assert.deepEqual([gpu.type, gpu.vendorId, gpu.deviceId, gpu.iommuGroup, gpu.isBoundToVfio], ['gpu', '10de', '26b9', 12, false])
  assert.deepEqual([card.type, card.name], ['pci', 'pci-0000-17-00-0'])
  assert.equal((await devices.get('big')).id, gpu.id)
  assert.equal((await devices.get(gpu.id)).name, 'big')
  assert.deepEqual((await devices.list()).map(({ name }) => name).sort(), ['big', 'pci-0000-17-00-0'])
  assert.deepEqual(
    (await devices.list({ tags: { rack: 'r1' } })).map(({ name }) => name),
    ['big'],
  )
  devices.delete('big')
  assert.equal(await code(devices.get('big')), 'not_found: There is no device "big"')
  assert.deepEqual(
    events.map(({ kind }) => kind),
    ['device.created', 'device.created', 'device.deleted'],
  )
  assert.deepEqual(sysfs.writes, [])
})

const DISK: FakeFunction = { ...CARD, address: '0000:19:00.0', group: 5, classCode: '010802', driver: 'nvme' }

for (const [what, use, says] of [
  ['has a made-up number and a source, as of btrfs,', { mountinfo: '22 1 0:31 /@ / rw - btrfs /dev/nvme0n1p2 rw' }, '/ is on it'],
  ['is of the device mapper, named as a source,', { mountinfo: '22 1 0:31 /@ /srv rw - btrfs /dev/mapper/a\\040b rw' }, '/srv is on it'],
  ['is swapped to', { swaps: 'Filename\tType\n/dev/nvme0n1p2   partition\t1 0 -2' }, 'it is swapped to'],
  ['a pool holds', { claimed: 'nvme0n1p2' }, 'the kernel holds /dev/nvme0n1p2, as a part of a pool or of a volume'],
] as const)
  for (const isMultipath of [false, true])
    test(`a disk that ${what} is the host's own${isMultipath ? ', also with several paths' : ''}`, async (t) => {
      const { devices, sysfs } = room(t, [DISK])
      const at = 'devices/virtual/nvme-subsystem/nvme-subsys0'
      if (isMultipath) sysfs.addDisk(DISK.address, 'nvme0c0n1')
      sysfs.addDisk(DISK.address, 'nvme0n1', isMultipath ? at : undefined)
      const part = sysfs.addDisk(DISK.address, 'nvme0n1p2', isMultipath ? `${at}/nvme0n1` : undefined)
      const slaves = join(sysfs.addDisk(DISK.address, 'dm-0', 'devices/virtual/block'), 'slaves')
      mkdirSync(slaves)
      symlinkSync(part, join(slaves, 'nvme0n1p2'))
      mkdirSync(join(sysfs.dev, 'mapper'))
      symlinkSync('../dm-0', join(sysfs.dev, 'mapper/a b'))
      const { mountinfo = '', swaps = '', claimed } = { claimed: undefined, ...use } as Record<'mountinfo' | 'swaps' | 'claimed', string>
      writeFileSync(join(sysfs.proc, 'self/mountinfo'), `${mountinfo}\n21 1 0:21 / /proc rw - proc proc rw\n`)
      writeFileSync(join(sysfs.proc, 'swaps'), swaps)
      if (claimed) sysfs.claimed.add(claimed)
      assert.equal(
        await code(devices.register({ pciAddress: DISK.address })),
        `conflict: The host uses the device ${DISK.address}: ${says}`,
      )
    })

test('a disk that no one uses can be given away', async (t) => {
  const { devices, sysfs } = room(t, [DISK])
  sysfs.addDisk(DISK.address, 'nvme0n1')
  sysfs.addDisk(DISK.address, 'vda', 'devices/pci0000:00/0000:00:05.0/virtio1/block')
  writeFileSync(
    join(sysfs.proc, 'self/mountinfo'),
    '22 1 0:31 /@ / rw - btrfs /dev/vda rw\n23 1 0:32 / /mnt rw - nfs host:/dev/nvme0n1 rw\n',
  )
  sysfs.claimed.add('vda')
  assert.equal(await code(devices.register({ pciAddress: DISK.address })), 'done')
})

test('a name that cannot be one is refused with the rule', async (t) => {
  const { devices } = room(t, [GPU])
  for (const name of ['a b', '-a', 'a', '', 'x'.repeat(129), 'a/b'])
    await assert.rejects(devices.register({ pciAddress: GPU.address, name }), { code: 'invalid_name', hint: /two to 128/ })
})

test('what cannot be registered is refused with what is in the way', async (t) => {
  const neighbour: FakeFunction = { address: '0000:66:00.0', vendor: '8086', device: '1533', classCode: '020000', group: 12, driver: 'igb' }
  const up: FakeFunction = { ...CARD, address: '0000:18:00.0', group: 4, net: { name: 'eth0', isUp: true } }
  const disk: FakeFunction = { ...CARD, address: '0000:19:00.0', group: 5, classCode: '010802', driver: 'nvme' }
  const { devices, sysfs } = room(t, [GPU, PORT, NOT_ISOLATED, CARD, up, disk, neighbour])
  sysfs.mount('259:1', '/srv', disk.address)
  await devices.register({ pciAddress: CARD.address, name: 'taken' })
  for (const [address, says] of [
    ['65:00', 'invalid_pci_address: "65:00" is no PCI address such as 0000:65:00.0'],
    ['../../etc', 'invalid_pci_address: "../../etc" is no PCI address such as 0000:65:00.0'],
    ['0000:65:00.8', 'invalid_pci_address: "0000:65:00.8" is no PCI address such as 0000:65:00.0'],
    ['0000:99:00.0', 'device_not_found: The host has no PCI device 0000:99:00.0'],
    [PORT.address, 'conflict: The device 0000:64:00.0 is a bridge of the host: it can be given to no one'],
    [NOT_ISOLATED.address, "conflict: The device 0000:00:1f.3 is in no IOMMU group: it would reach all of the host's memory"],
    [CARD.address, 'conflict: The device 0000:17:00.0 is registered already, as taken'],
    [up.address, 'conflict: The host uses the device 0000:18:00.0: its network interface eth0 is up'],
    [disk.address, 'conflict: The host uses the device 0000:19:00.0: /srv is on it'],
    [GPU.address, 'conflict: The device 0000:65:00.0 shares the IOMMU group 12 with 0000:66:00.0, which the host drives with igb'],
  ])
    assert.equal(await code(devices.register({ pciAddress: String(address) })), says)
  sysfs.unplug(neighbour.address)
  assert.equal(
    await code(devices.register({ pciAddress: GPU.address, name: 'taken' })),
    'conflict: The name taken is taken by the device 0000:17:00.0',
  )
  assert.equal(await code(devices.register({ pciAddress: GPU.address })), 'done')
})

test('a function is not taken from under its virtual functions, nor a GPU from under its parts', async (t) => {
  const physical: FakeFunction = { ...CARD, virtualFunctions: 2 }
  const virtual: FakeFunction = { ...CARD, address: '0000:17:00.2', device: '101e' }
  const { devices, sysfs } = room(t, [physical, virtual, { ...GPU, mdevTypes: TYPES }])
  assert.match(await code(devices.register({ pciAddress: physical.address })), /^conflict: .* has virtual functions/)
  assert.match(await code(devices.register({ pciAddress: virtual.address })), /^conflict: .* shares the IOMMU group 3 with 0000:17:00.0/)
  sysfs.plug({ ...virtual, address: '0000:17:00.3', group: 31 })
  assert.equal(await code(devices.register({ pciAddress: '17:00.3' })), 'done')
  const { id, name, address } = await devices.register({ pciAddress: GPU.address })
  await devices.attach({ id: A, gpu: { profile: 'L40S-1Q' } }, step)
  assert.match(await code(devices.assertReady({ id: B, devices: [{ id, name, address }] })), /^conflict: .* a part of it is in use/)
})

test('an instance has a device with all functions of its card, and the host has them back as they were', async (t) => {
  const { devices, sysfs } = room(t, [GPU, GPU_AUDIO, PORT])
  const { id, name, address } = await devices.register({ pciAddress: GPU.address, name: 'big' })
  const owner = { id: A, devices: [{ id, name, address }], uid: 4711 }
  await devices.attach(owner, step)
  assert.deepEqual(
    [sysfs.driverOf(GPU.address), sysfs.driverOf(GPU_AUDIO.address), sysfs.driverOf(PORT.address)],
    ['vfio-pci', 'vfio-pci', 'pcieport'],
  )
  assert.equal(sysfs.owners.get('12'), 4711)
  assert.ok((await devices.get('big')).isBoundToVfio)
  assert.ok(devices.isHolding(A))
  await devices.detach(A, step)
  assert.deepEqual([sysfs.driverOf(GPU.address), sysfs.driverOf(GPU_AUDIO.address)], ['nvidia', 'snd_hda_intel'])
  assert.equal(sysfs.overrideOf(GPU.address), '(null)')
  assert.ok(!devices.isHolding(A))
  const { length } = sysfs.writes
  await devices.detach(A, step)
  assert.equal(sysfs.writes.length, length)
})

test('a device that had no driver, or vfio-pci, is left so; an override that someone had set is back', async (t) => {
  const bare: FakeFunction = { address: '0000:17:00.0', vendor: '15b3', device: '101d', classCode: '020000', group: 3 }
  const kept: FakeFunction = { ...bare, address: '0000:18:00.0', group: 4, driver: 'vfio-pci' }
  const { devices, sysfs } = room(t, [bare, kept])
  await sysfs.write(join(sysfs.root, 'bus/pci/devices', bare.address, 'driver_override'), 'none-of-ours', step)
  const held = []
  for (const { address } of [bare, kept]) {
    const { id, name } = await devices.register({ pciAddress: address })
    held.push({ id, name, address })
  }
  await devices.attach({ id: A, devices: held, uid: 4711 }, step)
  assert.deepEqual([sysfs.driverOf(bare.address), sysfs.driverOf(kept.address)], ['vfio-pci', 'vfio-pci'])
  assert.deepEqual(
    [...sysfs.owners],
    [
      ['3', 4711],
      ['4', 4711],
    ],
  )
  await devices.detach(A, step)
  assert.deepEqual([sysfs.driverOf(bare.address), sysfs.driverOf(kept.address)], [undefined, 'vfio-pci'])
  assert.equal(sysfs.overrideOf(bare.address), 'none-of-ours')
  // The node of one that the host keeps so is root's again.
  assert.equal(sysfs.owners.get('4'), 0)
})

test('an attach that fails halfway is undone by a detach, and one that hangs is waited for no longer than its step', async (t) => {
  const { devices, sysfs } = room(t, [GPU, GPU_AUDIO])
  const { id, name, address } = await devices.register({ pciAddress: GPU.address, name: 'big' })
  const owner = { id: A, devices: [{ id, name, address }] }
  sysfs.injectFault(/65:00\.1\/driver\/unbind$/)
  await assert.rejects(devices.attach(owner, step), /Injected fault/)
  assert.equal(sysfs.driverOf(GPU.address), 'vfio-pci')
  await devices.detach(A, step)
  assert.deepEqual([sysfs.driverOf(GPU.address), sysfs.driverOf(GPU_AUDIO.address)], ['nvidia', 'snd_hda_intel'])
  assert.equal(sysfs.overrideOf(GPU_AUDIO.address), '(null)')
  const hangs = sysfs.injectFault(/65:00\.0\/driver\/unbind$/, 'hang')
  const cut = new AbortController()
  const attaching = devices.attach(owner, { ...step, signal: cut.signal })
  await hangs
  cut.abort(new Error('the time was up'))
  await assert.rejects(attaching)
  await devices.detach(A, step)
  assert.equal(sysfs.driverOf(GPU.address), 'nvidia')
})

test('what cannot be given back stays on record, the rest is given back, and the next attach or daemon tries again', async (t) => {
  const { devices, sysfs, make } = room(t, [GPU, GPU_AUDIO])
  const { id, name, address } = await devices.register({ pciAddress: GPU.address, name: 'big' })
  const owner = { id: A, devices: [{ id, name, address }] }
  await devices.attach(owner, step)
  sysfs.injectFault(/65:00\.0\/driver\/unbind$/)
  await assert.rejects(devices.detach(A, step), /Injected fault/)
  assert.deepEqual([sysfs.driverOf(GPU.address), sysfs.driverOf(GPU_AUDIO.address)], ['vfio-pci', 'snd_hda_intel'])
  assert.ok(devices.isHolding(A))
  // It still knows where it belongs.
  await devices.attach(owner, step)
  await devices.detach(A, step)
  assert.equal(sysfs.driverOf(GPU.address), 'nvidia')

  await devices.attach(owner, step)
  const next = make()
  await next.recover((one) => one === A, step)
  assert.equal(sysfs.driverOf(GPU.address), 'vfio-pci')
  await next.recover(() => false, step)
  assert.equal(sysfs.driverOf(GPU.address), 'nvidia')
})

test('a group that became two instances’ own is the first one’s that runs', async (t) => {
  const { devices, sysfs } = room(t, [GPU, CARD])
  const held = []
  for (const { address } of [GPU, CARD]) {
    const { id, name } = await devices.register({ pciAddress: address })
    held.push({ id, name, address })
  }
  sysfs.unplug(CARD.address)
  sysfs.plug({ ...CARD, group: 12 })
  await devices.attach({ id: A, devices: held.slice(0, 1) }, step)
  assert.match(
    await code(devices.attach({ id: B, devices: held.slice(1) }, step)),
    /^conflict: The IOMMU group 12 is taken for another instance/,
  )
  await devices.detach(B, step)
  assert.deepEqual([sysfs.driverOf(GPU.address), sysfs.driverOf(CARD.address)], ['vfio-pci', 'vfio-pci'])
  await devices.detach(A, step)
  assert.deepEqual([sysfs.driverOf(GPU.address), sysfs.driverOf(CARD.address)], ['nvidia', 'mlx5_core'])
})

test('a driver that does not take its device back does not keep the instance from ending', async (t) => {
  const { devices, sysfs } = room(t, [GPU])
  const { id, name, address } = await devices.register({ pciAddress: GPU.address, name: 'big' })
  await devices.attach({ id: A, devices: [{ id, name, address }] }, step)
  sysfs.dropDriver('nvidia')
  await devices.detach(A, step)
  assert.ok(!devices.isHolding(A))
})

test('without vfio-pci, without root, or without the device there is a sentence, and nothing is done', async (t) => {
  const { devices, sysfs } = room(t, [GPU], { hasVfio: false })
  const { id, name, address } = await devices.register({ pciAddress: GPU.address, name: 'big' })
  const owner = { id: A, devices: [{ id, name, address }] }
  assert.match(await code(devices.attach(owner, step)), /^dependency_missing: The host's kernel has no vfio-pci/)
  assert.deepEqual([sysfs.driverOf(address), sysfs.writes], ['nvidia', []])
  sysfs.unplug(address)
  assert.match(await code(devices.assertReady(owner)), /^device_not_found: The host has no PCI device 0000:65:00.0/)
  sysfs.plug({ ...GPU, device: '2330' })
  assert.match(
    await code(devices.assertReady(owner)),
    /^conflict: At 0000:65:00.0 is another device than the one that was registered as big/,
  )
  const plain = room(t, [GPU], { isRoot: false })
  assert.match(await code(plain.devices.plan({ devices: ['big'] })), /^not_supported: .* only by a daemon that is root/)
})

test('what is asked for is looked at as a whole first', async (t) => {
  const { devices } = room(t, [GPU, CARD])
  await devices.register({ pciAddress: GPU.address, name: 'big' })
  assert.deepEqual((await devices.plan({})).devices, [])
  assert.deepEqual(
    (await devices.plan({ devices: ['big'] })).devices.map(({ name, address }) => [name, address]),
    [['big', GPU.address]],
  )
  assert.match(await code(devices.plan({ devices: ['big', 'small'] })), /^device_not_found: There is no device "small"/)
  assert.match(await code(devices.plan({ devices: ['big', 'big'] })), /^invalid_request: .* twice/)
  assert.match(await code(devices.plan({ devices: Array.from({ length: 9 }, () => 'big') })), /^invalid_request: .* at most 8/)
  assert.match(await code(devices.plan({ profile: 'L40S-1Q' })), /^not_supported: No GPU of the host can be divided/)
  const planned = await devices.plan({ devices: ['big'] })
  devices.delete('big')
  assert.throws(() => planned.assertFree(), /There is no device "big"/)
})

const TYPES = [
  { id: 'nvidia-1148', name: 'NVIDIA L40S-1Q', description: 'num_heads=4, framebuffer=1024M, max_instance=32', available: 2 },
  { id: 'nvidia-1150', name: 'NVIDIA L40S-12Q', available: 2 },
]
const DIVIDED: FakeFunction = { ...GPU, mdevTypes: TYPES }

test('a part of a GPU is made under a UUID of its own and freed; what is left is told', async (t) => {
  const { devices, sysfs } = room(t, [DIVIDED])
  const profiles = (available: number) => [
    { name: 'L40S-1Q', framebuffer_mb: 1024, available },
    { name: 'L40S-12Q', framebuffer_mb: 12_288, available },
  ]
  assert.deepEqual(await devices.gpus(), { mode: 'vgpu', total_slots: 2, used_slots: 0, profiles: profiles(2) })
  const a = (await devices.attach({ id: A, gpu: { profile: 'L40S-1Q' }, uid: 4711 }, step)) as InstanceGpu
  assert.deepEqual([a.profile, sysfs.mdevs], ['L40S-1Q', [a.mdevUuid]])
  assert.equal(sysfs.owners.get('500'), 4711)
  assert.deepEqual(await devices.gpus(), { mode: 'vgpu', total_slots: 2, used_slots: 1, profiles: profiles(1) })
  await devices.attach({ id: B, gpu: { profile: 'nvidia-1150' } }, step)
  assert.match(
    await code(devices.plan({ profile: 'L40S-1Q' })),
    /^insufficient_resources: No GPU of the host has room for one more L40S-1Q$/,
  )
  assert.match(await code(devices.plan({ profile: 'A16-2B' })), /^invalid_request: No GPU of the host has the profile "A16-2B"$/)
  await devices.detach(A, step)
  await devices.detach(B, step)
  assert.deepEqual([sysfs.mdevs, devices.isHolding(A)], [[], false])
})

test('a part that was on record and never made, and one that cannot be removed at once', async (t) => {
  const { devices, sysfs, make } = room(t, [DIVIDED])
  const owner = { id: A, gpu: { profile: 'L40S-1Q' } }
  sysfs.injectFault(/create$/)
  assert.match(await code(devices.attach(owner, step)), /^insufficient_resources: The GPU 0000:65:00.0 does not give a L40S-1Q$/)
  await devices.detach(A, step)
  await devices.attach(owner, step)
  sysfs.injectFault(/remove$/)
  await assert.rejects(devices.detach(A, step), /Injected fault/)
  assert.equal(sysfs.mdevs.length, 1)
  // Its last one makes room for it.
  await devices.attach(owner, step)
  assert.equal(sysfs.mdevs.length, 1)
  await make().recover(() => false, step)
  assert.deepEqual(sysfs.mdevs, [])
})

test('mediated devices that someone else has made are counted and never touched', async (t) => {
  const { devices, sysfs } = room(t, [DIVIDED])
  const uuid = '11111111-2222-3333-4444-555555555555'
  await sysfs.write(join(sysfs.root, 'class/mdev_bus', DIVIDED.address, 'mdev_supported_types/nvidia-1148/create'), uuid, step)
  assert.equal((await devices.gpus())?.used_slots, 1)
  await devices.recover(() => false, step)
  assert.deepEqual(sysfs.mdevs, [uuid])
})

test('a virtual function becomes what is asked for, and nothing again', async (t) => {
  const vf = (n: number): FakeFunction => ({
    address: `0000:65:00.${n}`,
    vendor: '10de',
    device: '26b9',
    classCode: '030200',
    group: 20 + n,
    driver: 'nvidia',
    vfTypes: { 1148: 'NVIDIA L40S-1Q', 1150: 'NVIDIA L40S-12Q' },
  })
  const { devices, sysfs } = room(t, [vf(4), vf(5)])
  assert.deepEqual(await devices.gpus(), {
    mode: 'vgpu',
    total_slots: 2,
    used_slots: 0,
    profiles: [
      { name: 'L40S-1Q', framebuffer_mb: 1024, available: 2 },
      { name: 'L40S-12Q', framebuffer_mb: 12_288, available: 2 },
    ],
  })
  const made = await devices.attach({ id: A, gpu: { profile: 'L40S-12Q' }, uid: 4711 }, step)
  assert.deepEqual(made, { profile: 'L40S-12Q', address: '0000:65:00.4' })
  assert.deepEqual([sysfs.vfTypeOf('0000:65:00.4'), sysfs.driverOf('0000:65:00.4'), sysfs.owners.get('24')], ['1150', 'nvidia', 4711])
  await devices.attach({ id: B, gpu: { profile: 'L40S-1Q' } }, step)
  assert.match(await code(devices.plan({ profile: 'L40S-1Q' })), /^insufficient_resources/)
  await devices.detach(A, step)
  await devices.detach(B, step)
  assert.deepEqual([sysfs.vfTypeOf('0000:65:00.4'), sysfs.vfTypeOf('0000:65:00.5')], ['0', '0'])
})

test('without divided GPUs those that are registered are told, without any nothing is', async (t) => {
  const { devices } = room(t, [GPU, CARD])
  await devices.register({ pciAddress: CARD.address })
  assert.equal(await devices.gpus(), undefined)
  await devices.register({ pciAddress: GPU.address, name: 'big' })
  assert.deepEqual(await devices.gpus(), {
    mode: 'passthrough',
    total_slots: 1,
    used_slots: 0,
    devices: [{ name: 'big', available: true }],
  })
})

test('PCI addresses are taken in full, without a domain and in capitals', () => {
  assert.equal(parsePciAddress('0000:A2:00.0'), '0000:a2:00.0')
  assert.equal(parsePciAddress('a2:1f.7'), '0000:a2:1f.7')
  for (const text of ['', '0000:a2:20.0', '0000:a2:00.0\n', ' 0000:a2:00.0', '00000:a2:00.0', 'a2:00.0/../x'])
    assert.equal(parsePciAddress(text), undefined, text)
})
