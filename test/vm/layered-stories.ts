/** What a driver whose memory is layers does with them, told for those that need KVM: each runs only where its program and KVM are at hand. */
import assert from 'node:assert/strict'
import { mkdir, readdir, rename, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { errorCodeOf } from '@dormouse/api/errors.ts'
import { GuestClient } from '../../packages/daemon/src/guest/guest-client.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import type { Capture, Hypervisor, Vm } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { OWN_DIR } from '../../packages/daemon/src/hypervisors/own-dir.ts'
import { linkCapture, readManifest } from '../../packages/daemon/src/memory/capture-files.ts'
import type { KvmDriverUnderTest } from '../harness/kvm-driver.ts'
import { makeStep } from '../harness/qemu-driver.ts'

export type UnderTest = KvmDriverUnderTest<Hypervisor>

/** A line that drops is dialled again, as the daemon does. */
export async function greets(vm: Vm): Promise<GuestClient['hello']> {
  const step = makeStep()
  const greet = async (): Promise<GuestClient['hello'] | undefined> => {
    try {
      await using guest = await GuestClient.connect(await vm.connectGuest(step), step)
      return guest.hello
    } catch (error) {
      if (errorCodeOf(error) !== 'guest_unavailable') throw error
      return undefined
    }
  }
  return await pollUntil('the guest to say how it is', greet, step)
}

/** Of a VM that stands still from then on. */
export async function captured({ dir }: UnderTest, vm: Vm, name: string): Promise<{ capture: Capture; bytes: number }> {
  await vm.pause(makeStep())
  const into = join(dir, name)
  await mkdir(into)
  const { bytes, stored } = await vm.capture(into, makeStep())
  return { bytes, capture: await stored }
}

/** The same state over the base that base and delta have become. */
async function consolidated(driver: UnderTest, { dir, base }: Capture): Promise<Capture> {
  const { ref, sum } = await driver.memory.consolidate({ dir, base }, makeStep())
  const { delta: _delta, ...manifest } = await readManifest(dir)
  const to = join(driver.dir, `over-${ref.replace('/', '-')}`)
  await linkCapture(dir, to, { ...manifest, base: ref, baseSum: sum })
  return { dir: to, base: ref }
}

/** `skip`: why it cannot be tried here; undefined when it can. */
export function tellLayeredStories(underTest: () => Promise<UnderTest>, skip: string | undefined): void {
  const stories = { skip: skip ?? false }

  test('several wake from one capture, each from the memory as it was, and what they stand on stays as it is', stories, async () => {
    await using driver = await underTest()
    const { hypervisor } = driver
    const source = await hypervisor.start(await driver.makeSpec(), makeStep())
    assert.equal(source.origin, 'golden')
    const { bootNonce } = await greets(source)
    const { bytes, capture } = await captured(driver, source, 'capture')
    // What the guest has written since its golden boot, and nothing of what it stands on: some hundred pages of one that is parked.
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
    // Checked by the sum of its pages when it is loaded anew.
    assert.equal((await hypervisor.start(await driver.makeSpec(), makeStep()).then((vm) => vm.kill())).kind, 'signaled')
  })

  test(
    'nap after nap, also over a base that was consolidated, and of one that was booted from the start where it can be',
    stories,
    async () => {
      await using driver = await underTest()
      const { hypervisor } = driver
      for (const freshBoot of hypervisor.capabilities.has('fresh_boot') ? [false, true] : [false]) {
        const spec = await driver.makeSpec(freshBoot ? { freshBoot } : {})
        let vm = await hypervisor.start(spec, makeStep(120_000))
        assert.equal(vm.origin, freshBoot ? 'boot' : 'golden')
        const { bootNonce } = await greets(vm)
        for (let nap = 0; nap < 3; nap++) {
          const { capture } = await captured(driver, vm, `nap-${nap}-${freshBoot}`)
          await vm.kill()
          vm = await hypervisor.restore(spec, nap === 1 ? await consolidated(driver, capture) : capture, makeStep())
          await vm.resume(makeStep())
          assert.equal((await greets(vm)).bootNonce, bootNonce)
        }
        await vm.kill()
      }
    },
  )

  test('a sleeping state that was damaged, or is of another machine, is refused and leaves nothing', stories, async () => {
    await using driver = await underTest()
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
    await using driver = await underTest()
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
    await using driver = await underTest()
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
}

/** Wishes that its driver cannot have. */
export function tellRefusals(
  underTest: () => Promise<UnderTest>,
  wishes: readonly Parameters<UnderTest['makeSpec']>[0][],
  skip: string | undefined,
): void {
  test('what it cannot do is refused with the reason before anything is started', { skip: skip ?? false }, async () => {
    await using driver = await underTest()
    for (const wish of wishes) {
      const spec = await driver.makeSpec(wish)
      await assert.rejects(driver.hypervisor.start(spec, makeStep()), { code: 'not_supported' })
      assert.deepEqual(await driver.leftovers(spec), [])
    }
  })
}
