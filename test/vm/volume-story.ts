/** Volumes of a driver that needs KVM, without an instance: files that are no VMM's, in and out of machines. */
import assert from 'node:assert/strict'
import { stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import type { DiskHotplug, Vm } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import type { DiskSpec } from '../../packages/daemon/src/hypervisors/vm-spec.ts'
import { makeStep } from '../harness/qemu-driver.ts'
import { captured, greets, type UnderTest } from './layered-stories.ts'

const MIB = 2 ** 20

function hotplugOf({ diskHotplug }: Vm): DiskHotplug {
  assert.ok(diskHotplug)
  return diskHotplug
}

/** `skip`: why it cannot be tried here; undefined when it can. */
export function tellOfVolumes(underTest: () => Promise<UnderTest>, skip: string | undefined): void {
  const stories = { skip: skip ?? false }

  test(
    'a volume of another owner comes to a VM that runs, grows, is there after a nap, goes, and comes again to be read',
    stories,
    async () => {
      await using driver = await underTest()
      const { hypervisor } = driver
      const { spec, volume, file } = await specs(driver)
      let vm = await hypervisor.start(spec, makeStep(120_000))
      try {
        const { bootNonce } = await greets(vm)
        for (let time = 0; time < 2; time++) await hotplugOf(vm).insertDisk(volume, makeStep())
        await hotplugOf(vm).growDisk('volume-1', 16 * MIB, makeStep())
        await assert.rejects(hotplugOf(vm).growDisk('volume-1', 8 * MIB, makeStep()))
        assert.equal((await stat(file)).size, 16 * MIB)
        const { capture } = await captured(driver, vm, 'nap')
        await vm.kill()
        vm = await hypervisor.restore({ ...spec, disks: [...spec.disks, volume] }, capture, makeStep())
        await vm.resume(makeStep())
        assert.equal((await greets(vm)).bootNonce, bootNonce)
        for (let time = 0; time < 2; time++) await hotplugOf(vm).ejectDisk('volume-1', makeStep())
        await hotplugOf(vm).insertDisk({ ...volume, readOnly: true }, makeStep())
        await assert.rejects(hotplugOf(vm).growDisk('volume-1', 32 * MIB, makeStep()))
        await hotplugOf(vm).ejectDisk('volume-1', makeStep())
      } finally {
        await vm.kill()
      }
      assert.deepEqual(await driver.leftovers(spec), [])
    },
  )

  test('a volume is there with a start, from a golden boot or not, and goes', stories, async () => {
    await using driver = await underTest()
    const { hypervisor } = driver
    const { spec, volume } = await specs(driver)
    for (const freshBoot of hypervisor.capabilities.has('fresh_boot') ? [false, true] : [false]) {
      const own = { ...spec, disks: [...spec.disks, volume], ...(freshBoot ? { freshBoot } : {}) }
      const vm = await hypervisor.start(own, makeStep(120_000))
      try {
        assert.equal(vm.origin, freshBoot ? 'boot' : 'golden')
        await greets(vm)
        await hotplugOf(vm).ejectDisk('volume-1', makeStep())
      } finally {
        await vm.kill()
      }
    }
  })
}

async function specs(driver: UnderTest) {
  const file = join(driver.dir, 'volume')
  await writeFile(file, '', { mode: 0o600 })
  await truncate(file, 8 * MIB)
  const volume: DiskSpec = { role: 'volume-1', path: file, format: 'raw', readOnly: false }
  return { spec: await driver.makeSpec(), volume, file }
}
