/** The driver with a real Cloud Hypervisor: skipped where there is none, or no KVM for it. */
import assert from 'node:assert/strict'
import { mkdir, readdir, rename, stat, symlink, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { GuestClient } from '../../packages/daemon/src/guest/guest-client.ts'
import { driverContract } from '../../packages/daemon/src/hypervisors/contract-suite.ts'
import type { Capture, DiskHotplug, Vm } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { OWN_DIR } from '../../packages/daemon/src/hypervisors/own-dir.ts'
import type { DiskSpec } from '../../packages/daemon/src/hypervisors/vm-spec.ts'
import { linkCapture, readManifest } from '../../packages/daemon/src/memory/capture-files.ts'
import { type CloudHypervisorUnderTest, cloudHypervisorUnderTest, whyNoCloudHypervisor } from '../harness/cloud-hypervisor-driver.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { makeStep } from '../harness/qemu-driver.ts'

const skip = await whyNoCloudHypervisor(agentManners)

driverContract('cloud-hypervisor', () => cloudHypervisorUnderTest(agentManners), skip)

const greets = async (vm: Vm): Promise<GuestClient['hello']> => {
  await using guest = await GuestClient.connect(await vm.connectGuest(makeStep()), makeStep())
  return guest.hello
}

async function captured(driver: CloudHypervisorUnderTest, vm: Vm, name: string): Promise<{ capture: Capture; bytes: number }> {
  await vm.pause(makeStep())
  const dir = join(driver.dir, name)
  await mkdir(dir)
  const { bytes, stored } = await vm.capture(dir, makeStep())
  return { bytes, capture: await stored }
}

const stories = { skip: skip ?? false }

test('several wake from one capture, each from the memory as it was, and what they stand on stays as it is', stories, async () => {
  await using driver = await cloudHypervisorUnderTest(agentManners)
  const { hypervisor } = driver
  const source = await hypervisor.start(await driver.makeSpec(), makeStep())
  assert.equal(source.origin, 'golden')
  const { bootNonce } = await greets(source)
  const { bytes, capture } = await captured(driver, source, 'capture')
  // What the guest has written since its golden boot, and nothing of what it stands on.
  assert.ok(bytes > 0 && bytes < 64 * 2 ** 20, `${bytes} bytes`)
  assert.deepEqual((await readdir(capture.dir)).sort(), ['delta', 'manifest.json', 'state'])
  await source.resume(makeStep())
  assert.equal((await greets(source)).bootNonce, bootNonce)

  const children: Vm[] = []
  try {
    for (let index = 0; index < 2; index++) {
      const child = await hypervisor.restore(await driver.makeSpec(), { ...capture, isShared: true }, makeStep())
      children.push(child)
      assert.equal(child.origin, 'restore')
      await child.resume(makeStep())
    }
    for (const child of children) assert.equal((await greets(child)).bootNonce, bootNonce)
  } finally {
    for (const vm of [source, ...children]) await vm.kill()
  }
})

test('nap after nap, also of one that was booted from the start, and over a base that was consolidated', stories, async () => {
  await using driver = await cloudHypervisorUnderTest(agentManners)
  const { hypervisor } = driver
  for (const freshBoot of [false, true]) {
    const spec = await driver.makeSpec({ freshBoot })
    let vm = await hypervisor.start(spec, makeStep(120_000))
    assert.equal(vm.origin, freshBoot ? 'boot' : 'golden')
    const { bootNonce } = await greets(vm)
    for (let nap = 0; nap < 3; nap++) {
      let { capture } = await captured(driver, vm, `nap-${nap}-${freshBoot}`)
      await vm.kill()
      if (nap === 1) {
        const fresh = await driver.memory.consolidate(capture, makeStep())
        capture = await linked(driver, capture, fresh)
      }
      vm = await hypervisor.restore(spec, capture, makeStep())
      await vm.resume(makeStep())
      assert.equal((await greets(vm)).bootNonce, bootNonce)
    }
    await vm.kill()
  }
})

/** The same state over the base that base and delta have become. */
async function linked(
  driver: CloudHypervisorUnderTest,
  { dir }: Capture,
  { ref, sum }: Awaited<ReturnType<CloudHypervisorUnderTest['memory']['consolidate']>>,
): Promise<Capture> {
  const { delta: _delta, ...manifest } = await readManifest(dir)
  const to = join(driver.dir, `over-${ref.replace('/', '-')}`)
  await linkCapture(dir, to, { ...manifest, base: ref, baseSum: sum })
  return { dir: to, base: ref }
}

test(
  'a volume of another owner comes to a guest, is there after a nap and in a child, and goes; a start has it as well',
  stories,
  async () => {
    await using driver = await cloudHypervisorUnderTest(agentManners)
    const { hypervisor } = driver
    const file = join(driver.dir, 'volume')
    await writeFile(file, '', { mode: 0o600 })
    await truncate(file, 8 << 20)
    const volume: DiskSpec = { role: 'volume-1', path: file, format: 'raw', readOnly: false }
    const spec = await driver.makeSpec()
    const withVolume = { ...spec, disks: [...spec.disks, volume] }
    let vm = await hypervisor.start(spec, makeStep(120_000))
    try {
      const { bootNonce } = await greets(vm)
      await hotplugOf(vm).insertDisk(volume, makeStep())
      await hotplugOf(vm).insertDisk(volume, makeStep())
      await hotplugOf(vm).growDisk('volume-1', 16 << 20, makeStep())
      assert.equal((await stat(file)).size, 16 << 20)
      const { capture } = await captured(driver, vm, 'nap')
      await vm.kill()
      await assert.rejects(hypervisor.restore(spec, capture, makeStep()), { code: 'snapshot_unusable', message: /other disks/ })
      vm = await hypervisor.restore(withVolume, capture, makeStep())
      await vm.resume(makeStep())
      assert.equal((await greets(vm)).bootNonce, bootNonce)
      await hotplugOf(vm).ejectDisk('volume-1', makeStep())
      await hotplugOf(vm).ejectDisk('volume-1', makeStep())
      await hotplugOf(vm).insertDisk({ ...volume, readOnly: true }, makeStep())
      await vm.kill()
      assert.deepEqual(await driver.leftovers(spec), [])
      for (const freshBoot of [false, true]) {
        vm = await hypervisor.start({ ...withVolume, freshBoot }, makeStep(120_000))
        await greets(vm)
        await hotplugOf(vm).ejectDisk('volume-1', makeStep())
        await vm.kill()
      }
    } finally {
      await vm.kill()
    }
  },
)

function hotplugOf({ diskHotplug }: Vm): DiskHotplug {
  assert.ok(diskHotplug)
  return diskHotplug
}

test('a sleeping state that was damaged, or is of another machine, is refused and leaves nothing', stories, async () => {
  await using driver = await cloudHypervisorUnderTest(agentManners)
  const { hypervisor } = driver
  const vm = await hypervisor.start(await driver.makeSpec(), makeStep())
  const { capture } = await captured(driver, vm, 'capture')
  await vm.kill()
  const spec = await driver.makeSpec({ vcpus: 2 })
  await assert.rejects(hypervisor.restore(spec, capture, makeStep()), { code: 'snapshot_unusable', message: /processors/ })
  const other = await driver.makeSpec()
  await writeFile(join(capture.dir, 'state'), 'no device state at all')
  await assert.rejects(hypervisor.restore(other, capture, makeStep()), { code: 'snapshot_unusable' })
  for (const one of [spec, other]) assert.deepEqual(await driver.leftovers(one), [])
})

test('a VMM that puts links into its directory leads no one by them', stories, async () => {
  await using driver = await cloudHypervisorUnderTest(agentManners)
  const spec = await driver.makeSpec()
  const vm = await driver.hypervisor.start(spec, makeStep())
  try {
    await greets(vm)
    const own = join(spec.runDir, OWN_DIR)
    await rename(join(own, 'vsock.sock'), join(own, 'elsewhere.sock'))
    await symlink('elsewhere.sock', join(own, 'vsock.sock'))
    await assert.rejects(vm.connectGuest(makeStep()))
  } finally {
    await vm.kill()
  }
  assert.deepEqual(await driver.leftovers(spec), [])
})

test('a guest that powers off ends its machine with code 0', stories, async () => {
  await using driver = await cloudHypervisorUnderTest(agentManners)
  const spec = await driver.makeSpec()
  const vm = await driver.hypervisor.start(spec, makeStep())
  const guest = await GuestClient.connect(await vm.connectGuest(makeStep()), makeStep())
  const alive = setInterval(() => undefined, 1000)
  try {
    await guest.shutdown({ graceMs: 0 }, makeStep())
    const exit = await vm.exited
    assert.ok(exit.kind === 'exited' && exit.code === 0)
    assert.deepEqual(await driver.leftovers(spec), [])
  } finally {
    clearInterval(alive)
    await guest[Symbol.asyncDispose]()
    await vm.kill()
  }
})

test('what it cannot do is refused with the reason before anything is started', stories, async () => {
  await using driver = await cloudHypervisorUnderTest(agentManners)
  const wishes = [
    { nic: { mac: '02:00:00:00:00:01', backend: 'user', ports: [] } },
    { hotplugMib: 128 },
    { hostDevices: [{ kind: 'pci', address: '0000:00:00.0' }] },
  ] as const
  for (const wish of wishes) {
    const spec = await driver.makeSpec(wish)
    await assert.rejects(driver.hypervisor.start(spec, makeStep()), { code: 'not_supported' })
    assert.deepEqual(await driver.leftovers(spec), [])
  }
})
