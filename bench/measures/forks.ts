/** Live forks and snapshots of an instance of 2 GiB, beside a plain QEMU whose whole memory is migrated to a file. */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { guestNetworkOf } from '../../packages/daemon/src/network/network.ts'
import { TICKER } from '../../test/harness/busybox-image.ts'
import { BareQemu, bareGuestConfig, limited, MAC, WAKE } from '../anchors/bare-qemu.ts'
import type { Bench } from '../bench.ts'
import { atLeastTimesFaster, atMost, atMostAndFaster, type Measurement } from '../promise.ts'
import { change, copySparse, flush, makeOverlay, SleepingHouse, timed } from '../sleeping-house.ts'

export async function measureForks(bench: Bench): Promise<Measurement[]> {
  const { runs, tell } = bench
  await using house = await SleepingHouse.open(bench, 'forks')
  tell('two guests of 2 GiB: one of an instance, one of plain QEMU')
  const source = await house.create('source')
  await using bare = await startBare(house)

  const forks: number[] = []
  const bareForks: number[] = []
  const snapshots: number[] = []
  const bareSnapshots: number[] = []
  for (let run = 0; run < runs; run += 1) {
    tell(`fork: run ${run + 1} of ${runs}`)
    await house.run(source, change())
    const child = `child-${run}`
    forks.push(await house.ask(source, 'fork', { name: child, from_running: true, target_state: 'Running' }))
    await house.daemon.client.delete(`/instances/${child}`)

    await bare.run(change())
    bareForks.push(await bareFork(house, bare, `bare-${run}`))

    await house.run(source, change())
    snapshots.push(await house.ask(source, 'snapshots', { kind: 'Standby' }))
    await bare.run(change())
    bareSnapshots.push(await bareSnapshot(house, bare))
  }
  const pauses = (await house.logged<{ name: string; ms: number }>('VM stood still')).filter(({ name }) => name === source.name)
  return [
    {
      id: 'fork_pause',
      what: "how long the source's processors stand still for a live fork or snapshot, by QEMU's own events STOP and RESUME",
      ...{ unit: 'ms', target: atMost(10, 'ms'), ours: pauses.map(({ ms }) => ms) },
    },
    {
      id: 'fork_ready',
      what: 'POST /instances/{id}/fork of a running guest of 2 GiB that has written 16 MiB anew, until the child has another name and its agent has answered; the anchor by hand: stop, migrate into a file, start another QEMU from it and ask its agent for the same, the disk copied beforehand',
      ...{ unit: 'ms', target: atMostAndFaster(120, 'ms'), ours: forks, anchor: bareForks },
    },
    {
      id: 'snapshot_create',
      what: 'POST /instances/{id}/snapshots of the same guest while it runs, until all is flushed; the anchor stops, migrates into a file, flushes it and goes on',
      ...{ unit: 'ms', target: atLeastTimesFaster(2), ours: snapshots, anchor: bareSnapshots },
    },
  ]
}

async function startBare(house: SleepingHouse): Promise<BareQemu> {
  const dir = await house.place('bare')
  await makeOverlay(join(dir, 'overlay'))
  const vm = await BareQemu.start({ ...house.machine, dir, disks: house.disksOver(join(dir, 'overlay')) })
  const guest = await vm.connectGuest()
  await guest.go(bareGuestConfig(TICKER, guestNetworkOf(MAC, [])), limited())
  return vm
}

async function bareFork(house: SleepingHouse, source: BareQemu, name: string): Promise<number> {
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
  return ms
}

async function bareSnapshot(house: SleepingHouse, source: BareQemu): Promise<number> {
  const file = join(await house.place('snapshot'), 'state')
  const ms = await timed(async () => {
    await source.migrateTo(file)
    await flush(file)
    await source.qmp.execute('cont', undefined, limited())
  })
  await rm(file)
  return ms
}
