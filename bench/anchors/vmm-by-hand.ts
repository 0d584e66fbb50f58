/** A VMM with an API of its own beside the instances of its driver: what it saves and goes on from are its own snapshots. */
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { WakeRequest } from '../../packages/daemon/src/guest/guest-client.ts'
import { TICKER } from '../../test/harness/busybox-image.ts'
import { change, copySparse, disksOver, flush, makeOverlay, timed } from '../both-sides.ts'
import type { SleepingHouse } from '../sleeping-house.ts'
import { bareGuestConfig, limited, WAKE } from './bare-guest.ts'
import { BareVm, type BareVmm, makePlace, OVERLAY, overlayIn } from './bare-vmm.ts'
import type { BareLife, BareSleeper, BareSource, ByHand, Way } from './by-hand.ts'

export interface VmmWay extends Way {
  /** In the VMM's own words. */
  readonly word: string
}

/** It has no network to tell anyone of. */
const WOKEN: WakeRequest = { ...WAKE, announce: false }

export function vmmByHand(vmm: BareVmm, ways: readonly [VmmWay, ...VmmWay[]]): ByHand {
  const plain = `plain ${vmm.title}`
  return {
    says: {
      boot: `${plain} with the same kernel, initrd and disks, to the same end`,
      nap: `of ${plain} with the same guest: pause, save a snapshot, flush it, end`,
      ways,
      fork: `pause, save a snapshot, copy the disk, resume, start another ${vmm.title} from them and ask its agent for the same`,
      snapshot: 'pauses, saves a snapshot, flushes it and goes on',
    },
    async boot(_daemon, { dir, rootfs, argv, memoryMib }) {
      await makePlace(dir)
      await makeOverlay(overlayIn(dir))
      const from = performance.now()
      const vm = await BareVm.boot(vmm, dir, { memoryMib, disks: disksOver(rootfs, OVERLAY) })
      try {
        await vm.guest.go(bareGuestConfig(argv), limited())
        await vm.run(['/bin/true'])
      } catch (error) {
        await vm[Symbol.asyncDispose]()
        throw error
      }
      return { readyMs: performance.now() - from, guest: vm.guest, [Symbol.asyncDispose]: () => vm[Symbol.asyncDispose]() }
    },
    async sleeper(house) {
      return new PlainSleeper(house, vmm, ways, await start(house, vmm))
    },
    async source(house) {
      return new PlainSource(house, vmm, ways, await start(house, vmm))
    },
  }
}

async function start(house: SleepingHouse, vmm: BareVmm): Promise<BareVm> {
  const dir = await house.place('bare')
  await makePlace(dir)
  await makeOverlay(overlayIn(dir))
  const vm = await BareVm.boot(vmm, dir, { memoryMib: house.machine.memoryMib, disks: disksOver(house.rootfs, OVERLAY) })
  await vm.guest.go(bareGuestConfig(TICKER), limited())
  return vm
}

/** One guest; each life is that of another VMM. */
class PlainSleeper implements BareSleeper {
  readonly #house: SleepingHouse
  readonly #vmm: BareVmm
  readonly #ways: readonly [VmmWay, ...VmmWay[]]
  #vm: BareVm

  constructor(house: SleepingHouse, vmm: BareVmm, ways: readonly [VmmWay, ...VmmWay[]], vm: BareVm) {
    this.#house = house
    this.#vmm = vmm
    this.#ways = ways
    this.#vm = vm
  }

  async life(): Promise<BareLife> {
    const vm = this.#vm
    const files = await this.#house.place('asleep')
    await vm.run(change())
    const napMs = await timed(async () => {
      await vm.pause()
      await vm.save(files)
      await flushAll(files)
      await vm.quit()
    })
    await vm[Symbol.asyncDispose]()
    const [usual, ...others] = this.#ways
    const otherMs: number[] = []
    for (const { word } of others) {
      const dir = await this.#house.place(`asleep-${word}`)
      await makePlace(dir)
      await copySparse(overlayIn(vm.dir), overlayIn(dir))
      const from = performance.now()
      await using other = await BareVm.wake(this.#vmm, dir, files, word)
      await other.guest.wake(WOKEN, limited())
      otherMs.push(performance.now() - from)
    }
    const from = performance.now()
    this.#vm = await BareVm.wake(this.#vmm, vm.dir, files, usual.word)
    await this.#vm.guest.wake(WOKEN, limited())
    const restoreMs = [performance.now() - from, ...otherMs]
    // Who has it mapped keeps it.
    await rm(files, { recursive: true })
    return { restoreMs, napMs }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#vm[Symbol.asyncDispose]()
  }
}

class PlainSource implements BareSource {
  readonly #house: SleepingHouse
  readonly #vmm: BareVmm
  readonly #ways: readonly VmmWay[]
  readonly #vm: BareVm

  constructor(house: SleepingHouse, vmm: BareVmm, ways: readonly VmmWay[], vm: BareVm) {
    this.#house = house
    this.#vmm = vmm
    this.#ways = ways
    this.#vm = vm
  }

  run(command: readonly string[]): Promise<void> {
    return this.#vm.run(command)
  }

  async fork(name: string): Promise<number[]> {
    const files = await this.#house.place(`${name}-saved`)
    const children = await Promise.all(
      this.#ways.map(async ({ word }) => {
        const dir = await this.#house.place(`${name}-${word}`)
        await makePlace(dir)
        return { dir, word }
      }),
    )
    const savedMs = await timed(async () => {
      await this.#vm.pause()
      await this.#vm.save(files)
      // One disk, however many ways are tried.
      await copySparse(overlayIn(this.#vm.dir), join(files, OVERLAY))
      await this.#vm.resume()
    })
    const ms: number[] = []
    for (const { dir, word } of children) {
      await copySparse(join(files, OVERLAY), overlayIn(dir))
      const from = performance.now()
      await using child = await BareVm.wake(this.#vmm, dir, files, word)
      await child.guest.wake({ ...WOKEN, identity: { hostname: name, machineId: '1'.repeat(32) } }, limited())
      ms.push(savedMs + performance.now() - from)
    }
    await rm(files, { recursive: true })
    await this.#vm.connectGuest()
    return ms
  }

  async snapshot(): Promise<number> {
    const files = await this.#house.place('snapshot')
    const ms = await timed(async () => {
      await this.#vm.pause()
      await this.#vm.save(files)
      await flushAll(files)
      await this.#vm.resume()
    })
    await rm(files, { recursive: true })
    await this.#vm.connectGuest()
    return ms
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#vm[Symbol.asyncDispose]()
  }
}

async function flushAll(files: string): Promise<void> {
  for (const name of await readdir(files)) await flush(join(files, name))
}
