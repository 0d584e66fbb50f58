/**
 * An instance of 2 GiB that naps three times, a little of its memory written anew before each: beside it a plain QEMU that wakes from
 * the same files, and libvirt with the same guest.
 */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { guestNetworkOf } from '../../packages/daemon/src/network/network.ts'
import { TICKER } from '../../test/harness/busybox-image.ts'
import { BareQemu, bareGuestConfig, limited, MAC, WAKE } from '../anchors/bare-qemu.ts'
import { LibvirtMachine } from '../anchors/libvirt-machine.ts'
import { PrivateLibvirt, whyNoLibvirt } from '../anchors/private-libvirt.ts'
import type { Bench } from '../bench.ts'
import { atLeastTimesFaster, atMost, atMostTimesAnchor, type Measurement } from '../promise.ts'
import { change, flush, makeOverlay, type Sleeper, SleepingHouse, timed, writtenSince } from '../sleeping-house.ts'

/** How often libvirt is measured: one nap and wake of it take as long as ten rounds of ours. */
const LIBVIRT_RUNS = 3

interface Nap {
  readonly ms: number
  readonly writtenMib: number
  /** Bytes of memory that the guest has changed since it last woke, whatever a capture makes of it. */
  readonly changedMib: number
}

/** Of the same turn in every round. */
interface Naps {
  readonly ours: Nap[]
  /** Milliseconds by hand. */
  readonly bare: number[]
}

export async function measureSleep(bench: Bench): Promise<Measurement[]> {
  const { runs, tell } = bench
  await using house = await SleepingHouse.open(bench, 'sleep')
  tell('the golden boot')
  await house.forget(await house.create('warm-up'))
  await using libvirt = await startLibvirt(house, bench)

  const naps = (): Naps => ({ ours: [], bare: [] })
  const [first, second, third] = [naps(), naps(), naps()]
  const restores: number[] = []
  const bareRestores: number[] = []
  const saves: number[] = []
  const starts: number[] = []
  for (let run = 0; run < runs; run += 1) {
    tell(`sleep: run ${run + 1} of ${runs}`)
    const sleeper = await house.create(`sleeper-${run}`)
    for (const { ours, bare } of [first, second, third]) {
      ours.push(await nap(house, sleeper))
      await house.consolidated(sleeper)
      const { restoreMs, napMs } = await bareLife(house, sleeper, `bare-${run}-${bareRestores.length}`)
      bareRestores.push(restoreMs)
      bare.push(napMs)
      restores.push(await house.ask(sleeper, 'restore'))
    }
    await house.forget(sleeper)
    if (libvirt === undefined || run >= LIBVIRT_RUNS) continue
    const { saveMs, startMs } = await libvirt.nap()
    saves.push(saveMs)
    starts.push(startMs)
  }
  const what = 'POST /instances/{id}/standby of a guest of 2 GiB, with its answer: the VM is gone, everything is flushed'
  const changed = 'a program has written 16 MiB anew since it woke'
  const byHand = 'the anchor by hand, of plain QEMU that woke in that state: stop, migrate into a file, flush it, quit'
  const times = ({ ours, bare }: Naps) => ({ ours: ours.map(({ ms }) => ms), anchor: bare })
  const bytes = ({ ours }: Naps) => ({ ours: ours.map((one) => one.writtenMib), anchor: ours.map((one) => one.changedMib) })
  const besideLibvirt: Measurement[] = [
    {
      id: 'standby_libvirt',
      what: 'the third naps again; the anchor is `virsh managedsave` of the same guest',
      ...{ unit: 'ms', target: atLeastTimesFaster(40), ours: times(third).ours, anchor: saves },
    },
    {
      id: 'restore_libvirt',
      what: "the restores again; the anchor is `virsh start` after it, and the same request to the guest's agent",
      ...{ unit: 'ms', target: atLeastTimesFaster(100), ours: restores, anchor: starts },
    },
  ]
  return [
    {
      ...{ id: 'standby', what: `${what}; its first nap; ${byHand}` },
      ...{ unit: 'ms', target: atMost(40, 'ms'), ...times(first) },
    },
    {
      ...{ id: 'standby_third', what: `${what}; its third nap, ${changed}; ${byHand}` },
      ...{ unit: 'ms', target: atMost(40, 'ms'), ...times(third) },
    },
    {
      ...{ id: 'standby_bytes', what: 'what the first nap takes on disk; the anchor is what the guest had written since its golden boot' },
      ...{ unit: 'MiB', target: atMostTimesAnchor(1.2), ...bytes(first) },
    },
    {
      ...{ id: 'standby_bytes_third', what: 'what the third nap takes on disk; the anchor is what the guest had written since it woke' },
      ...{ unit: 'MiB', target: atMostTimesAnchor(1.2), ...bytes(third) },
    },
    {
      id: 'restore',
      what: 'POST /instances/{id}/restore of a guest of 2 GiB until its agent has set it right and answered; the anchor does the same by hand: plain QEMU on a copy of the disk, the same memory mapped and the same state loaded, the same request to the agent',
      ...{ unit: 'ms', target: atMostTimesAnchor(1.5), ours: restores, anchor: bareRestores },
    },
    ...(saves.length === 0 ? [] : besideLibvirt),
  ]
}

async function nap(house: SleepingHouse, sleeper: Sleeper): Promise<Nap> {
  await house.run(sleeper, change())
  const changed = await writtenSince(await house.vmmOf(sleeper))
  const ms = await house.ask(sleeper, 'standby', {})
  return { ms, changedMib: changed / 2 ** 20, writtenMib: house.sleepBytes(sleeper) / 2 ** 20 }
}

/** What a script would do with the sleeping state, and how it would make one anew; the disk is copied beforehand, in no one's time. */
async function bareLife(house: SleepingHouse, sleeper: Sleeper, name: string): Promise<{ restoreMs: number; napMs: number }> {
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
  const restoreMs = performance.now() - from

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

interface LibvirtSleeper extends AsyncDisposable {
  nap(): Promise<{ saveMs: number; startMs: number }>
}

/** Undefined where libvirt cannot be had; why is told. */
async function startLibvirt(house: SleepingHouse, { tell }: Bench): Promise<LibvirtSleeper | undefined> {
  const why = await whyNoLibvirt()
  if (why === undefined) {
    tell("libvirt's own boot of the same guest")
    try {
      return await bootInLibvirt(house)
    } catch (error) {
      tell(`without libvirt: ${error instanceof Error ? error.message : error}`)
      return undefined
    }
  }
  tell(`without libvirt: ${why}`)
  return undefined
}

async function bootInLibvirt(house: SleepingHouse): Promise<LibvirtSleeper> {
  await using undo = new AsyncDisposableStack()
  const libvirt = undo.use(await PrivateLibvirt.start(await house.place('libvirt')))
  const dir = await house.place('domain')
  const overlay = join(dir, 'overlay')
  await makeOverlay(overlay)
  const machine = undo.use(await LibvirtMachine.define(libvirt, 'sleeper', { ...house.machine, dir, disks: house.disksOver(overlay) }))
  let guest = await machine.start()
  await guest.go(bareGuestConfig(TICKER, guestNetworkOf(MAC, [])), limited())
  const held = undo.move()
  return {
    async nap() {
      const { code } = await (await guest.exec({ command: change() }, limited())).exit
      if (code !== 0) throw new Error(`The program in libvirt's guest ended with ${code}`)
      const saveMs = await timed(() => machine.sleep())
      const startMs = await timed(async () => {
        guest = await machine.start()
        await guest.wake(WAKE, limited())
      })
      return { saveMs, startMs }
    },
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  }
}
