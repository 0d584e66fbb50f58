/**
 * A VM with devices of the host, as far as it can be seen without any: where QEMU would be given them stand devices of its own, one with a
 * window as large as a GPU's. All else is as it is for real ones.
 */
import assert from 'node:assert/strict'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { Shim, type ShimPlan } from '../../packages/daemon/src/hypervisors/shim.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { qemuUnderTest } from '../harness/qemu-driver.ts'
import { makeRootfs, runGuest } from '../harness/running-guest.ts'

const STAND_INS = ['pci-testdev,membar=16G', 'e1000e,romfile=']

test('a VM with devices boots by itself, and its guest finds each behind a port of its own, large windows too', async (t) => {
  const plans: ShimPlan[] = []
  const { launch } = Shim
  t.mock.method(Shim, 'launch', (plan: ShimPlan, step: Parameters<typeof launch>[1]) => {
    plans.push(plan)
    let next = 0
    const argv = plan.vmm.argv.map((word) =>
      word.replace(/^vfio-pci(,id=device\d+,bus=port\d+),.*$/, (_, place) => `${STAND_INS[next++]}${place}`),
    )
    // To allow it takes a right that root need not have, and none of these devices asks for it.
    const { lockedBytes: _locked, ...rest } = plan
    return launch.call(Shim, { ...rest, vmm: { ...plan.vmm, argv } }, step)
  })
  await using driver = await qemuUnderTest('qemu', agentManners)
  await mkdir(join(driver.dir, 'image'))
  const rootfs = await makeRootfs(join(driver.dir, 'image'))
  const hostDevices = STAND_INS.map((_, index) => ({ kind: 'pci', address: `0000:65:00.${index}` }) as const)
  await using running = await runGuest(driver, rootfs, { hostDevices })
  assert.equal(running.vm.origin, 'boot')
  // The guest's memory, and the devices' own tables.
  assert.equal(plans[0]?.lockedBytes, (running.spec.memoryMib + 1024) * 2 ** 20)
  const found = await running.sh('for d in /sys/bus/pci/devices/*; do echo $(readlink -f $d) $(cat $d/vendor $d/device); done')
  const seen = found.split('\n').filter((line) => /0000:00:1[01]\.0\/0000:0[12]:00\.0 /.test(line))
  assert.deepEqual(
    seen.map((line) => line.split('/').slice(-2).join('/')),
    ['0000:00:10.0/0000:01:00.0 0x1b36 0x0005', '0000:00:11.0/0000:02:00.0 0x8086 0x10d3'],
  )
  // Sixteen GiB, all of them.
  const [first, last] = await running
    .sh("awk 'NR == 3 { print $1, $2 }' /sys/bus/pci/devices/0000:01:00.0/resource")
    .then((line) => line.split(' '))
  assert.equal(BigInt(String(last)) - BigInt(String(first)) + 1n, 16n << 30n)
})
