/** Plain QEMU beside instances of QEMU: booted, woken from the very files that an instance sleeps in, migrated into a file. */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { guestNetworkOf } from '../../packages/daemon/src/network/network.ts'
import { anchorMachineOf } from '../../test/harness/anchor-machine.ts'
import { TICKER } from '../../test/harness/busybox-image.ts'
import { rawColdBoot } from '../../test/harness/raw-cold-boot.ts'
import { change, copySparse, flush, makeOverlay, timed } from '../both-sides.ts'
import type { Sleeper, SleepingHouse } from '../sleeping-house.ts'
import { bareGuestConfig, limited, MAC, WAKE } from './bare-guest.ts'
import { BareQemu } from './bare-qemu.ts'
import type { BareLife, ByHand } from './by-hand.ts'

export const qemuByHand = (name: 'qemu' | 'qemu-microvm'): ByHand => ({
  says: {
    boot: 'plain QEMU on the same board, kernel, initrd and disks, to the same end',
    nap: 'of plain QEMU that woke in that state: stop, migrate into a file, flush it, quit',
    ways: [
      {
        suffix: '',
        restore: 'plain QEMU on a copy of the disk, the same memory mapped and the same state loaded, the same request to the agent',
      },
    ],
    fork: 'stop, migrate into a file, start another QEMU from it and ask its agent for the same, the disk copied beforehand',
    snapshot: 'stops, migrates into a file, flushes it and goes on',
  },
  async boot(daemon, options) {
    return rawColdBoot({ ...options, ...(await anchorMachineOf(daemon, name)), vcpus: 1 })
  },
  async sleeper(house) {
    let lives = 0
    return {
      life: (sleeper) => life(house, sleeper, `bare-${lives++}`),
      async [Symbol.asyncDispose]() {},
    }
  },
  async source(house) {
    const vm = await start(house)
    return {
      run: (command) => vm.run(command),
      fork: (name) => fork(house, vm, name),
      snapshot: () => snapshot(house, vm),
      [Symbol.asyncDispose]: () => vm[Symbol.asyncDispose](),
    }
  },
})

/** What a script would do with the sleeping state, and how it would make one anew; the disk is copied beforehand, in no one's time. */
async function life(house: SleepingHouse, sleeper: Sleeper, name: string): Promise<BareLife> {
  const state = await house.consolidated(sleeper)
  const dir = await house.place(name)
  const disks = await house.copyOfDisks(dir)
  const from = performance.now()
  await using vm = await BareQemu.start({
    ...{ ...house.machine, dir, disks, isIncoming: true },
    ...{ base: house.baseOf(state), mac: house.macOf(sleeper) },
  })
  await vm.load(`exec:cat ${join(state.dir, 'state')}`)
  const guest = await vm.connectGuest()
  await guest.wake(WAKE, limited())
  const restoreMs = [performance.now() - from]

  await vm.run(change())
  const file = join(dir, 'asleep')
  const napMs = await timed(async () => {
    await vm.migrateTo(file)
    await flush(file)
    await vm.quit()
  })
  await rm(file)
  return { restoreMs, napMs }
}

async function start(house: SleepingHouse): Promise<BareQemu> {
  const dir = await house.place('bare')
  await makeOverlay(join(dir, 'overlay'))
  const vm = await BareQemu.start({ ...house.machine, dir, disks: house.disksOver(join(dir, 'overlay')) })
  const guest = await vm.connectGuest()
  await guest.go(bareGuestConfig(TICKER, guestNetworkOf(MAC, [])), limited())
  return vm
}

async function fork(house: SleepingHouse, source: BareQemu, name: string): Promise<number[]> {
  const dir = await house.place(name)
  const [overlay, file] = [join(dir, 'overlay'), join(dir, 'state')]
  await source.qmp.execute('stop', undefined, limited())
  await copySparse(join(source.dir, 'overlay'), overlay)
  const from = performance.now()
  await source.migrateTo(file)
  await source.qmp.execute('cont', undefined, limited())
  await using child = await BareQemu.start({ ...house.machine, dir, disks: house.disksOver(overlay), isIncoming: true })
  await child.load(`exec:cat ${file}`)
  const guest = await child.connectGuest()
  await guest.wake({ ...WAKE, identity: { hostname: name, machineId: '1'.repeat(32) } }, limited())
  const ms = performance.now() - from
  await rm(file)
  return [ms]
}

async function snapshot(house: SleepingHouse, source: BareQemu): Promise<number> {
  const file = join(await house.place('snapshot'), 'state')
  const ms = await timed(async () => {
    await source.migrateTo(file)
    await flush(file)
    await source.qmp.execute('cont', undefined, limited())
  })
  await rm(file)
  return ms
}
