/** Devices of a made-up host, by the published client and the command line, against a whole daemon that listens; the VMs are made up too. */
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import Hypeman from '@onkernel/hypeman'
import { configOf } from '../../packages/daemon/src/config/config.ts'
import { Daemon } from '../../packages/daemon/src/daemon.ts'
import { type FakeFunction, FakeSysfs } from '../../packages/daemon/src/devices/fake-sysfs.ts'
import { FakeHypervisor } from '../../packages/daemon/src/hypervisors/fake/fake.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { dormouse } from '../harness/dormouse-command.ts'

const GPU: FakeFunction = { address: '0000:65:00.0', vendor: '10de', device: '26b9', classCode: '030200', group: 12, driver: 'nvidia' }
const CARD: FakeFunction = {
  ...GPU,
  address: '0000:17:00.0',
  vendor: '15b3',
  device: '101d',
  classCode: '020000',
  group: 3,
  driver: 'mlx5_core',
}
const DIVIDED: FakeFunction = {
  ...GPU,
  address: '0000:67:00.0',
  group: 14,
  mdevTypes: [{ id: 'nvidia-1148', name: 'NVIDIA L40S-1Q', description: 'framebuffer=1024M', available: 1 }],
}
const UP: FakeFunction = { ...CARD, address: '0000:18:00.0', group: 4, net: { name: 'eth0', isUp: true } }
const IMAGE = 'sleepy:1'

// Drivers are exchanged by root alone.
describe('devices of the host', { timeout: 120_000, skip: process.geteuid?.() !== 0 }, () => {
  const sysfs = new FakeSysfs([GPU, CARD, DIVIDED, UP])
  let dir: string
  let socket: string
  let daemon: Daemon
  let client: Hypeman
  let sent = 0

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'dm-'))
    socket = join(dir, 'run/dormouse.sock')
    const ids = join(dir, 'pci.ids')
    await writeFile(ids, '10de  NVIDIA Corporation\n\t26b9  AD102GL [L40S]\n')
    const settings = { DATA_DIR: join(dir, 'data'), RUN_DIR: join(dir, 'run'), LISTEN: '127.0.0.1:0', HYPERVISOR: 'fake', PCI_IDS: ids }
    const config = configOf(new Map(Object.entries(settings)))
    daemon = await Daemon.start({ config, log: silentLogger, hypervisors: [new FakeHypervisor()], sysfs })
    const { stdout: token } = await dormouse(['token', 'create'], { socket })
    client = new Hypeman({
      baseURL: `http://127.0.0.1:${daemon.tcp?.port}`,
      apiKey: token.trim(),
      fetch: (url, init) => {
        sent++
        return fetch(url, init)
      },
    })
    await mkdir(join(dir, 'image'))
    const layout = await makeBusyboxImage(join(dir, 'image'), { cmd: ['/bin/sleep', 'infinity'] })
    assert.equal((await dormouse(['image', 'import', layout.path, IMAGE], { socket })).code, 0)
  })
  after(async () => {
    await daemon.stop()
    sysfs[Symbol.dispose]()
    await rm(dir, { recursive: true, force: true })
  })

  /** Nothing of it is sent twice. */
  async function refused(work: () => Promise<unknown>, status: number, code: string, message: RegExp): Promise<void> {
    const before = sent
    await assert.rejects(work, (error: unknown) => {
      assert.ok(error instanceof Hypeman.APIError)
      const { code: told, message: says } = error.error as { code: string; message: string }
      assert.deepEqual([error.status, told], [status, code])
      assert.match(says, message)
      return true
    })
    assert.equal(sent, before + 1)
  }

  test('the published client sees what there is, registers, finds and unregisters it', async () => {
    const available = await client.devices.listAvailable()
    assert.deepEqual(
      available.map(({ pci_address }) => pci_address),
      [CARD.address, UP.address, GPU.address, DIVIDED.address],
    )
    const gpu = available.find(({ pci_address }) => pci_address === GPU.address)
    assert.deepEqual(gpu, {
      pci_address: GPU.address,
      vendor_id: '10de',
      device_id: '26b9',
      iommu_group: 12,
      current_driver: 'nvidia',
      vendor_name: 'NVIDIA Corporation',
      device_name: 'AD102GL [L40S]',
    })
    const made = await client.devices.create({ pci_address: GPU.address, name: 'gpu0', tags: { rack: 'r1' } })
    assert.match(made.id, /^[a-z0-9]{24}$/)
    const { created_at, id, ...rest } = made
    assert.deepEqual(rest, {
      name: 'gpu0',
      type: 'gpu',
      pci_address: GPU.address,
      vendor_id: '10de',
      device_id: '26b9',
      iommu_group: 12,
      bound_to_vfio: false,
      attached_to: null,
      tags: { rack: 'r1' },
    })
    assert.ok(Date.parse(created_at) <= Date.now())
    for (const key of [id, 'gpu0']) assert.deepEqual(await client.devices.retrieve(key), made)
    assert.deepEqual(await client.devices.list({ tags: { rack: 'r1' } }), [made])
    assert.deepEqual(await client.devices.list({ tags: { rack: 'r2' } }), [])
    const card = await client.devices.create({ pci_address: '17:00.0' })
    assert.deepEqual([card.name, card.type], ['pci-0000-17-00-0', 'pci'])
    assert.equal((await client.devices.listAvailable()).length, 2)
    await client.devices.delete(card.name as string)
    await refused(() => client.devices.retrieve(card.id), 404, 'not_found', /There is no device/)
    await refused(() => client.devices.delete(card.id), 404, 'not_found', /There is no device/)
  })

  test('what cannot be registered is refused, with the reason', async () => {
    const create = (pci_address: string, name?: string) => () => client.devices.create({ pci_address, ...(name !== undefined && { name }) })
    await refused(create('0000:65:00'), 400, 'invalid_pci_address', /is no PCI address/)
    await refused(create('0000:99:00.0'), 404, 'device_not_found', /The host has no PCI device 0000:99:00.0/)
    await refused(create(GPU.address), 409, 'conflict', /is registered already, as gpu0/)
    await refused(create(CARD.address, 'gpu0'), 409, 'conflict', /The name gpu0 is taken/)
    await refused(create(CARD.address, 'a b'), 400, 'invalid_name', /cannot be the name of a device/)
    await refused(create(CARD.address, 'available'), 400, 'invalid_name', /cannot be named available/)
    await refused(create(UP.address), 409, 'conflict', /its network interface eth0 is up/)
  })

  test('an instance has a device and a part of a GPU from its create on, and gives back what it must', async () => {
    const create = (name: string, more: Partial<Hypeman.InstanceCreateParams>) =>
      client.instances.create({ name, image: IMAGE, size: '512MB', ...more })
    const made = await create('a', { devices: ['gpu0'], gpu: { profile: 'L40S-1Q' } })
    await client.instances.wait(made.id, { state: 'Running', timeout: '30s' })
    const running = await client.instances.get('a')
    assert.deepEqual([running.gpu?.profile, sysfs.mdevs], ['L40S-1Q', [running.gpu?.mdev_uuid]])
    assert.equal(sysfs.driverOf(GPU.address), 'vfio-pci')
    // The VMM's user may open both groups.
    assert.equal(sysfs.owners.size, 2)
    assert.ok([...sysfs.owners.values()].every((uid) => uid > 0))
    const held = await client.devices.retrieve('gpu0')
    assert.deepEqual([held.bound_to_vfio, held.attached_to], [true, made.id])
    const { gpu } = await client.resources.get()
    assert.deepEqual(gpu, {
      mode: 'vgpu',
      total_slots: 1,
      used_slots: 1,
      profiles: [{ name: 'L40S-1Q', framebuffer_mb: 1024, available: 0 }],
    })

    await refused(() => create('b', { devices: ['gpu0'] }), 409, 'conflict', /gpu0 is attached to the instance a/)
    await refused(() => create('b', { devices: ['gpu9'] }), 404, 'device_not_found', /"gpu9"/)
    await refused(() => create('b', { gpu: { profile: 'L40S-1Q' } }), 409, 'insufficient_resources', /one more L40S-1Q/)
    await refused(() => create('b', { gpu: { profile: 'A16-2B' } }), 400, 'invalid_request', /profile "A16-2B"/)
    await refused(() => client.devices.delete('gpu0'), 409, 'in_use', /The instance a has the device gpu0/)
    await refused(() => client.instances.standby('a'), 409, 'invalid_state', /a device of the host/)
    await refused(() => client.instances.fork('a', { name: 'b', from_running: true }), 409, 'invalid_state', /a device of the host/)
    await refused(() => client.instances.snapshots.create('a', { kind: 'Standby' }), 409, 'conflict', /a device of the host/)

    const stopped = await client.instances.stop('a')
    assert.deepEqual([stopped.gpu, sysfs.mdevs, sysfs.driverOf(GPU.address)], [{ profile: 'L40S-1Q' }, [], 'nvidia'])
    assert.equal((await client.devices.retrieve('gpu0')).attached_to, made.id)
    await client.instances.start('a', {})
    assert.equal(sysfs.driverOf(GPU.address), 'vfio-pci')
    await client.instances.delete('a')
    assert.deepEqual([sysfs.mdevs, sysfs.driverOf(GPU.address), sysfs.owners.size], [[], 'nvidia', 0])
    assert.equal((await client.devices.retrieve('gpu0')).attached_to, null)
    assert.deepEqual(sysfs.violations, [])
  })

  test('the runtime says that it can', async () => {
    const { features, runtimes } = await client.capabilities.get()
    assert.ok(features.includes('devices'))
    assert.ok(runtimes.some(({ available, features }) => available && features.includes('gpu-passthrough')))
  })

  test('the command line does the same', async () => {
    const say = async (...words: string[]): Promise<string> => {
      const { code, stdout, stderr } = await dormouse(words, { socket })
      assert.equal(code, 0, stderr)
      return stdout
    }
    assert.match(await say('device', 'available'), /^0000:17:00\.0 +15b3:101d +3 +mlx5_core/m)
    assert.equal(await say('device', 'create', CARD.address, '-n', 'card0', '-t', 'rack=r1'), 'card0\n')
    assert.equal(await say('run', '-d', '--name', 'c', '--device', 'card0', '--gpu-profile', 'L40S-1Q', '--pull', 'never', IMAGE), 'c\n')
    assert.match(await say('device', 'ls'), /^card0 +\S+ +pci +0000:17:00\.0 +15b3:101d +3 +c /m)
    assert.match(await say('df'), /^GPUs: 1 of 1 parts in use\n.*\nL40S-1Q +1GB +0$/m)
    assert.equal(JSON.parse(await say('device', 'inspect', 'card0')).bound_to_vfio, true)
    const taken = await dormouse(['device', 'rm', 'card0'], { socket })
    assert.equal(taken.code, 4)
    assert.match(taken.stderr, /The instance c has the device card0/)
    await say('rm', '-f', 'c')
    assert.equal(await say('device', 'rm', 'card0'), 'card0\n')
    assert.equal((await dormouse(['device', 'rm', 'card0'], { socket })).code, 3)
  })
})
