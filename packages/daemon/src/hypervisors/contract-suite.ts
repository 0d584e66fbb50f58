/**
 * The driver contract as tests, one suite for every driver. A driver's own test file calls `driverContract` with a way to make specs
 * and to look for what must be gone afterwards.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { basename } from 'node:path'
import type { Duplex } from 'node:stream'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Step } from '../lib/step.ts'
import type { Hypervisor, Vm, VmHandle } from './hypervisor.ts'
import type { VmSpec } from './vm-spec.ts'

export interface DriverUnderTest extends AsyncDisposable {
  readonly hypervisor: Hypervisor
  /** A spec of its own each time: its id, its run directory, its disks. */
  makeSpec(): Promise<VmSpec>
  /** An empty qcow2 layer for the disk `overlay` of a spec. */
  makeLayer(spec: VmSpec): Promise<string>
  /** Whatever is still there of a VM that is gone: processes, sockets, files of its run directory. Its exit record does not count. */
  leftovers(spec: VmSpec): Promise<string[]>
  /** Talks to the guest until it has answered; throws when it does not. */
  greetGuest(stream: Duplex, step: Step): Promise<void>
  /** Ends the VMM from outside, with SIGKILL. */
  killVmm(handle: VmHandle): void
  /** Ends from outside what holds the VMM; absent for a driver that has no such thing. */
  killHolder?(handle: VmHandle): void
  step(ms?: number): Step
}

/** `skip`: why it cannot be tried here; undefined when it can. */
export function driverContract(name: string, setUp: () => Promise<DriverUnderTest>, skip?: string): void {
  describe(`the ${name} driver`, { concurrency: false, skip: skip ?? false }, () => {
    let driver: DriverUnderTest
    before(async () => {
      driver = await setUp()
    })
    after(() => driver?.[Symbol.asyncDispose]())

    const started = async (spec: VmSpec): Promise<Vm & AsyncDisposable> => {
      const vm = await driver.hypervisor.start(spec, driver.step())
      return Object.assign(vm, { [Symbol.asyncDispose]: async () => void (await vm.kill()) })
    }
    const greets = async (vm: Vm): Promise<void> => {
      const stream = await vm.connectGuest(driver.step())
      await driver.greetGuest(stream, driver.step())
      stream.destroy()
    }
    const nothingLeft = async (spec: VmSpec): Promise<void> => assert.deepEqual(await driver.leftovers(spec), [])

    test('a probe says that it is available, in which version and with which acceleration', async () => {
      const probe = await driver.hypervisor.probe(driver.step())
      assert.equal(probe.available, true, probe.reason)
      assert.ok(probe.version)
      assert.ok(probe.acceleration)
    })

    test('a machine that was started runs, its guest answers and its usage can be read', async () => {
      const spec = await driver.makeSpec()
      await using vm = await started(spec)
      await greets(vm)
      const usage = await vm.usage()
      assert.ok(usage && usage.memoryRssBytes > 0 && usage.memoryVmsBytes >= usage.memoryRssBytes)
      assert.equal(await driver.hypervisor.lastExit(spec.runDir), undefined)
    })

    test('pausing and resuming may be repeated, and the guest goes on afterwards', async () => {
      await using vm = await started(await driver.makeSpec())
      await vm.pause(driver.step())
      await vm.pause(driver.step())
      await vm.resume(driver.step())
      await vm.resume(driver.step())
      await greets(vm)
    })

    test('a disk turns to a new layer in a pause, again and again, and one that is not wanted is let go of', async (t) => {
      if (!driver.hypervisor.capabilities.has('disk_layers')) return t.skip('its disks are one file each')
      const spec = await driver.makeSpec()
      await using vm = await started(spec)
      let top = ''
      const prepare = async () => {
        const path = await driver.makeLayer(spec)
        top = basename(path)
        return vm.preparePivot('overlay', { path }, driver.step())
      }
      const bottom = basename(String(spec.disks.find(({ role }) => role === 'overlay')?.path))
      assert.deepEqual(await vm.flatten('overlay', driver.step()), [bottom])
      const unwanted = await prepare()
      assert.equal(await unwanted.discard(driver.step()), true)
      assert.equal(await unwanted.discard(driver.step()), true)
      for (let round = 0; round < 3; round++) {
        const pivot = await prepare()
        await vm.pause(driver.step())
        await pivot.commit(driver.step())
        await pivot.commit(driver.step())
        await vm.resume(driver.step())
        assert.equal(await pivot.discard(driver.step()), false)
        await greets(vm)
      }
      for (let round = 0; round < 2; round++) assert.deepEqual(await vm.flatten('overlay', driver.step()), [top, bottom])
      await greets(vm)
      const last = await prepare()
      await vm.pause(driver.step())
      await last.commit(driver.step())
      await vm.resume(driver.step())
      await greets(vm)
    })

    test('a layer that is not there, or for a disk that is not, is refused and the machine goes on', async (t) => {
      if (!driver.hypervisor.capabilities.has('disk_layers')) return t.skip('its disks are one file each')
      const spec = await driver.makeSpec()
      await using vm = await started(spec)
      const layer = { path: await driver.makeLayer(spec) }
      await assert.rejects(vm.preparePivot('overlay', { path: `${layer.path}-absent` }, driver.step()))
      await assert.rejects(vm.preparePivot('volume-3', layer, driver.step()), { code: 'not_found' })
      await greets(vm)
      const pivot = await vm.preparePivot('overlay', layer, driver.step())
      assert.equal(await pivot.discard(driver.step()), true)
    })

    test('a pivot that a daemon did not live to commit is in nobody’s way', async (t) => {
      if (!driver.hypervisor.capabilities.has('disk_layers')) return t.skip('its disks are one file each')
      const spec = await driver.makeSpec()
      await using vm = await started(spec)
      await vm.preparePivot('overlay', { path: await driver.makeLayer(spec) }, driver.step())
      const again = await driver.hypervisor.reconnect(vm.handle, driver.step())
      assert.ok(again)
      const pivot = await again.preparePivot('overlay', { path: await driver.makeLayer(spec) }, driver.step())
      await again.pause(driver.step())
      await pivot.commit(driver.step())
      await again.resume(driver.step())
      await greets(again)
    })

    test('a second connection to the guest ends the first', async () => {
      await using vm = await started(await driver.makeSpec())
      const first = await vm.connectGuest(driver.step())
      first.on('error', () => undefined)
      const closed = once(first, 'close')
      await greets(vm)
      await closed
    })

    test('a kill ends it, may be repeated, gives the same answer and leaves nothing but the exit record', async () => {
      const spec = await driver.makeSpec()
      const vm = await started(spec)
      const exit = await vm.kill()
      assert.equal(exit.kind, 'signaled')
      assert.deepEqual(await vm.kill(), exit)
      assert.deepEqual(await vm.exited, exit)
      assert.deepEqual(await driver.hypervisor.lastExit(spec.runDir), exit)
      assert.equal(await vm.usage(), undefined)
      await assert.rejects(vm.connectGuest(driver.step()))
      await nothingLeft(spec)
    })

    test('a kill of a paused machine ends it', async () => {
      const vm = await started(await driver.makeSpec())
      await vm.pause(driver.step())
      assert.equal((await vm.kill()).kind, 'signaled')
    })

    test('a VMM that dies is noticed', async () => {
      const spec = await driver.makeSpec()
      await using vm = await started(spec)
      driver.killVmm(vm.handle)
      const exit = await vm.exited
      assert.ok(exit.kind === 'signaled' && exit.signal === 'SIGKILL')
      assert.deepEqual(await driver.hypervisor.lastExit(spec.runDir), exit)
      await nothingLeft(spec)
    })

    test('a VMM whose holder is killed dies with it and counts as lost', async (t) => {
      if (driver.killHolder === undefined) return t.skip('nothing holds the VMMs of this driver')
      const spec = await driver.makeSpec()
      await using vm = await started(spec)
      driver.killHolder(vm.handle)
      assert.equal((await vm.exited).kind, 'lost')
      await vm.kill()
      assert.equal(await driver.hypervisor.lastExit(spec.runDir), undefined)
      await nothingLeft(spec)
    })

    test('a machine is found again by its handle and can be used as before', async () => {
      const spec = await driver.makeSpec()
      await using vm = await started(spec)
      const again = await driver.hypervisor.reconnect(JSON.parse(JSON.stringify(vm.handle)), driver.step())
      assert.ok(again)
      assert.equal(again.origin, 'adopted')
      assert.deepEqual(again.handle, vm.handle)
      await greets(again)
      await again.pause(driver.step())
      await again.resume(driver.step())
      const exit = await again.kill()
      assert.deepEqual(await vm.exited, exit)
      await nothingLeft(spec)
    })

    test('a machine that is gone, or another process with its pid, is not found', async () => {
      const spec = await driver.makeSpec()
      const vm = await started(spec)
      const { handle } = vm
      const stranger = { ...handle.vmm, startTicks: '1' }
      assert.equal(await driver.hypervisor.reconnect({ ...handle, vmm: stranger }, driver.step()), undefined)
      assert.equal(await driver.hypervisor.reconnect({ ...handle, bootId: 'another boot' }, driver.step()), undefined)
      const exit = await vm.kill()
      assert.equal(await driver.hypervisor.reconnect(handle, driver.step()), undefined)
      assert.deepEqual(await driver.hypervisor.lastExit(spec.runDir), exit)
    })

    test('a start where a machine already runs is refused and does not touch it', async () => {
      const spec = await driver.makeSpec()
      await using vm = await started(spec)
      await assert.rejects(driver.hypervisor.start(spec, driver.step()))
      await greets(vm)
    })

    test('a start with a disk that is not there fails and leaves nothing', async () => {
      const spec = await driver.makeSpec()
      const missing = { role: 'overlay', path: `${spec.runDir}-absent/disk`, format: 'raw', readOnly: false } as const
      await assert.rejects(driver.hypervisor.start({ ...spec, disks: [missing] }, driver.step()))
      await nothingLeft(spec)
      assert.equal(await driver.hypervisor.lastExit(spec.runDir), undefined)
    })

    test('a start that is cancelled at any moment leaves nothing', async () => {
      for (const ms of [0, 1, 5, 15, 30, 60, 90]) {
        const spec = await driver.makeSpec()
        const cancel = new AbortController()
        const starting = driver.hypervisor.start(spec, { ...driver.step(), signal: cancel.signal })
        starting.catch(() => undefined)
        await sleep(ms)
        cancel.abort(new Error('cancelled'))
        // It may have been done before the time was up.
        await starting.then(
          (vm) => vm.kill(),
          () => undefined,
        )
        await nothingLeft(spec)
      }
    })

    test('a sweep ends what runs in a directory and removes it, and may be repeated', async () => {
      const spec = await driver.makeSpec()
      await using vm = await started(spec)
      await driver.hypervisor.sweep(spec.runDir)
      await vm.exited
      await nothingLeft(spec)
      assert.equal(await driver.hypervisor.lastExit(spec.runDir), undefined)
      await driver.hypervisor.sweep(spec.runDir)
    })

    test('the same directory can be used again', async () => {
      const spec = await driver.makeSpec()
      for (let round = 0; round < 2; round++) {
        await using vm = await started(spec)
        await greets(vm)
      }
    })
  })
}
