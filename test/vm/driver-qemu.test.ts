import assert from 'node:assert/strict'
import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { GuestClient } from '../../packages/daemon/src/guest/guest-client.ts'
import { driverContract } from '../../packages/daemon/src/hypervisors/contract-suite.ts'
import type { Vm } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { makeStep, qemuUnderTest } from '../harness/qemu-driver.ts'

driverContract('qemu', () => qemuUnderTest('qemu', agentManners))

test('a golden boot that cannot be woken is dropped, and the instance boots all the same', async () => {
  let isNeeded = true
  await using driver = await qemuUnderTest('qemu', agentManners, {}, () => isNeeded)
  const started = async (): Promise<Vm> => driver.hypervisor.start(await driver.makeSpec(), makeStep())
  await (await started()).kill()
  const [key] = await readdir(join(driver.dir, 'golden'))
  await writeFile(join(driver.dir, 'golden', key ?? '', 'state'), 'no device state at all')
  const booted = await started()
  assert.equal(booted.origin, 'boot')
  await booted.kill()
  // As long as someone stands on it.
  const again = await started()
  assert.equal(again.origin, 'boot')
  await again.kill()
  assert.deepEqual((await readdir(join(driver.dir, 'golden', key ?? ''))).sort(), ['manifest.json', 'memory', 'state'])
  isNeeded = false
  const woken = await started()
  assert.equal(woken.origin, 'golden')
  await woken.kill()
})

test('a start whose golden boot is discarded under its hands wakes from it all the same', async () => {
  await using driver = await qemuUnderTest('qemu', agentManners)
  const { memory } = driver
  const goldenBoot = memory.goldenBoot.bind(memory)
  memory.goldenBoot = async (...asked) => {
    const golden = await goldenBoot(...asked)
    // As a sibling does that could not be woken from it.
    await golden.discard()
    return golden
  }
  const vm = await driver.hypervisor.start(await driver.makeSpec(), makeStep())
  assert.equal(vm.origin, 'golden')
  await vm.kill()
})

test('a network helper or a VMM that cannot be had fails the start and leaves nothing', async () => {
  await using driver = await qemuUnderTest('qemu', agentManners, { goldenBoots: false, networkHelperPath: '/no/such/helper' })
  const spec = await driver.makeSpec()
  await assert.rejects(driver.hypervisor.start(spec, makeStep()), /no such file/i)
  assert.deepEqual(await driver.leftovers(spec), [])
})

test('a guest kernel that is not there makes the driver unavailable, with the reason', async () => {
  await using driver = await qemuUnderTest('qemu', agentManners, { kernelPath: '/no/such/vmlinux' })
  const probe = await driver.hypervisor.probe(makeStep())
  assert.equal(probe.available, false)
  assert.match(probe.reason ?? '', /vmlinux/)
  await assert.rejects(driver.hypervisor.start(await driver.makeSpec(), makeStep()), { code: 'dependency_missing' })
})

test('a machine boots from the start when that is asked for, and stops with code 0 when its guest powers off', async () => {
  await using driver = await qemuUnderTest('qemu', agentManners)
  const spec = await driver.makeSpec({ freshBoot: true })
  const vm = await driver.hypervisor.start(spec, makeStep())
  try {
    assert.equal(vm.origin, 'boot')
    const guest = await GuestClient.connect(await vm.connectGuest(makeStep()), makeStep())
    await guest.shutdown({ graceMs: 0 }, makeStep())
    const exit = await vm.exited
    assert.ok(exit.kind === 'exited' && exit.code === 0)
    await guest[Symbol.asyncDispose]()
    assert.deepEqual(await driver.leftovers(spec), [])
  } finally {
    await vm.kill()
  }
})
