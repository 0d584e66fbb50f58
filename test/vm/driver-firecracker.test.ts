/** The driver with a real Firecracker: skipped where there is none, or no KVM for it. */
import assert from 'node:assert/strict'
import { mkdir, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { GuestClient } from '../../packages/daemon/src/guest/guest-client.ts'
import { driverContract } from '../../packages/daemon/src/hypervisors/contract-suite.ts'
import type { Vm } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { firecrackerUnderTest, whyNoFirecracker } from '../harness/firecracker-driver.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { makeStep } from '../harness/qemu-driver.ts'

const skip = await whyNoFirecracker(agentManners)

driverContract('firecracker', () => firecrackerUnderTest(agentManners), skip)

const greets = async (vm: Vm): Promise<GuestClient['hello']> => {
  await using guest = await GuestClient.connect(await vm.connectGuest(makeStep()), makeStep())
  return guest.hello
}

const stories = { skip: skip ?? false }

test('several wake from one capture, each from the memory as it was, and what they stand on stays as it is', stories, async () => {
  await using driver = await firecrackerUnderTest(agentManners)
  const { hypervisor } = driver
  const source = await hypervisor.start(await driver.makeSpec(), makeStep())
  const { bootNonce } = await greets(source)
  await source.pause(makeStep())
  const dir = join(driver.dir, 'capture')
  await mkdir(dir)
  const capturing = await source.capture(dir, makeStep())
  // The kernel of a guest that has just been parked touches some hundred pages.
  assert.ok(capturing.bytes > 0 && capturing.bytes < 64 * 2 ** 20, `${capturing.bytes} bytes`)
  const capture = await capturing.stored
  assert.deepEqual((await readdir(dir)).sort(), ['delta', 'manifest.json', 'state'])
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
  // Checked by the sum of its pages when it is loaded anew.
  assert.equal((await hypervisor.start(await driver.makeSpec(), makeStep()).then((vm) => vm.kill())).kind, 'signaled')
})

test('a capture of a capture has what changed since the golden boot, and wakes as well', stories, async () => {
  await using driver = await firecrackerUnderTest(agentManners)
  const { hypervisor } = driver
  const spec = await driver.makeSpec()
  let vm = await hypervisor.start(spec, makeStep())
  const { bootNonce } = await greets(vm)
  for (let nap = 0; nap < 3; nap++) {
    await vm.pause(makeStep())
    const dir = join(driver.dir, `nap-${nap}`)
    await mkdir(dir)
    const { stored } = await vm.capture(dir, makeStep())
    const capture = await stored
    await vm.kill()
    vm = await hypervisor.restore(spec, capture, makeStep())
    await vm.resume(makeStep())
    assert.equal((await greets(vm)).bootNonce, bootNonce)
  }
  await vm.kill()
})

test('a sleeping state that was damaged, or is of another machine, is refused and leaves nothing', stories, async () => {
  await using driver = await firecrackerUnderTest(agentManners)
  const { hypervisor } = driver
  const vm = await hypervisor.start(await driver.makeSpec(), makeStep())
  await vm.pause(makeStep())
  const dir = join(driver.dir, 'capture')
  await mkdir(dir)
  const capture = await (await vm.capture(dir, makeStep())).stored
  await vm.kill()
  const spec = await driver.makeSpec({ vcpus: 2 })
  await assert.rejects(hypervisor.restore(spec, capture, makeStep()), { code: 'snapshot_unusable', message: /processors/ })
  const other = await driver.makeSpec()
  await writeFile(join(dir, 'state'), 'no device state at all')
  await assert.rejects(hypervisor.restore(other, capture, makeStep()), { code: 'snapshot_unusable' })
  for (const one of [spec, other]) assert.deepEqual(await driver.leftovers(one), [])
})

test('a guest that powers off ends its machine with code 0', stories, async () => {
  await using driver = await firecrackerUnderTest(agentManners)
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
  await using driver = await firecrackerUnderTest(agentManners)
  const wishes = [
    { nic: { mac: '02:00:00:00:00:01', backend: 'user', ports: [] } },
    { hotplugMib: 128 },
    { freshBoot: true },
    { vcpus: 33 },
    { hostDevices: [{ kind: 'pci', address: '0000:00:00.0' }] },
  ] as const
  for (const wish of wishes) {
    const spec = await driver.makeSpec(wish)
    await assert.rejects(driver.hypervisor.start(spec, makeStep()), { code: 'not_supported' })
    assert.deepEqual(await driver.leftovers(spec), [])
  }
})
