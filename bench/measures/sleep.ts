/**
 * An instance of 2 GiB that naps three times, a little of its memory written anew before each: beside it plain VMs of its own VMM that nap
 * and wake, and with QEMU libvirt with the same guest.
 */
import { join } from 'node:path'
import { guestNetworkOf } from '../../packages/daemon/src/network/network.ts'
import { TICKER } from '../../test/harness/busybox-image.ts'
import { bareGuestConfig, limited, MAC, WAKE } from '../anchors/bare-guest.ts'
import { LibvirtMachine } from '../anchors/libvirt-machine.ts'
import { PrivateLibvirt, whyNoLibvirt } from '../anchors/private-libvirt.ts'
import type { Bench } from '../bench.ts'
import { change, makeOverlay, timed } from '../both-sides.ts'
import { type BenchedDriver, DRIVERS } from '../drivers.ts'
import { atLeastTimesFaster, atMostTimesAnchor, type Measurement } from '../promise.ts'
import { type Sleeper, SleepingHouse, writtenSince } from '../sleeping-house.ts'

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

export async function measureSleep(bench: Bench, driver: BenchedDriver): Promise<Measurement[]> {
  const { runs, tell } = bench
  const { name, suffix, byHand, targets } = driver
  await using house = await SleepingHouse.open(bench, `sleep${suffix}`, { driver })
  tell(`${name}: the golden boot`)
  await house.forget(await house.create('warm-up'))
  await using libvirt = driver === DRIVERS.qemu ? await startLibvirt(house, bench) : undefined
  await using plain = await byHand.sleeper(house)

  const naps = (): Naps => ({ ours: [], bare: [] })
  const [first, second, third] = [naps(), naps(), naps()]
  const restores: number[] = []
  const bareRestores = byHand.says.ways.map((): number[] => [])
  const saves: number[] = []
  const starts: number[] = []
  for (let run = 0; run < runs; run += 1) {
    tell(`${name}, sleep: run ${run + 1} of ${runs}`)
    const sleeper = await house.create(`sleeper-${run}`)
    for (const { ours, bare } of [first, second, third]) {
      ours.push(await nap(house, sleeper))
      await house.consolidated(sleeper)
      const { restoreMs, napMs } = await plain.life(sleeper)
      for (const [way, ms] of restoreMs.entries()) bareRestores[way]?.push(ms)
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
  const besides = `the anchor by hand, ${byHand.says.nap}`
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
      ...{ id: `standby${suffix}`, what: `${what}; its first nap; ${besides}` },
      ...{ unit: 'ms', target: targets.standby, ...times(first) },
    },
    {
      ...{ id: `standby_third${suffix}`, what: `${what}; its third nap, ${changed}; ${besides}` },
      ...{ unit: 'ms', target: targets.standby, ...times(third) },
    },
    {
      ...{
        id: `standby_bytes${suffix}`,
        what: 'what the first nap takes on disk; the anchor is what the guest had written since its golden boot',
      },
      ...{ unit: 'MiB', target: atMostTimesAnchor(1.2), ...bytes(first) },
    },
    {
      ...{
        id: `standby_bytes_third${suffix}`,
        what: 'what the third nap takes on disk; the anchor is what the guest had written since it woke',
      },
      ...{ unit: 'MiB', target: atMostTimesAnchor(1.2), ...bytes(third) },
    },
    ...byHand.says.ways.map(
      ({ suffix: way, restore }, at): Measurement => ({
        id: `restore${suffix}${way}`,
        what: `POST /instances/{id}/restore of a guest of 2 GiB until its agent has set it right and answered; the anchor does the same by hand: ${restore}`,
        ...{ unit: 'ms', target: atMostTimesAnchor(1.5), ours: restores, anchor: bareRestores[at] ?? [] },
      }),
    ),
    ...(saves.length === 0 ? [] : besideLibvirt),
  ]
}

async function nap(house: SleepingHouse, sleeper: Sleeper): Promise<Nap> {
  await house.run(sleeper, change())
  const changed = await writtenSince(await house.vmmOf(sleeper))
  const ms = await house.ask(sleeper, 'standby', {})
  return { ms, changedMib: changed / 2 ** 20, writtenMib: house.sleepBytes(sleeper) / 2 ** 20 }
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
