/** Live forks and snapshots of an instance of 2 GiB, beside a plain VM of its own VMM whose whole memory is written into a file. */
import type { Bench } from '../bench.ts'
import { change } from '../both-sides.ts'
import type { BenchedDriver } from '../drivers.ts'
import { atMost, type Measurement } from '../promise.ts'
import { SleepingHouse } from '../sleeping-house.ts'

export async function measureForks(bench: Bench, driver: BenchedDriver): Promise<Measurement[]> {
  const { runs, tell } = bench
  const { name, suffix, byHand, targets } = driver
  await using house = await SleepingHouse.open(bench, `forks${suffix}`, { driver })
  tell(`${name}: two guests of 2 GiB, one of an instance, one by hand`)
  const source = await house.create('source')
  await using bare = await byHand.source(house)

  const forks: number[] = []
  const bareForks = byHand.says.ways.map((): number[] => [])
  const snapshots: number[] = []
  const bareSnapshots: number[] = []
  for (let run = 0; run < runs; run += 1) {
    tell(`${name}, fork: run ${run + 1} of ${runs}`)
    await house.run(source, change())
    const child = `child-${run}`
    forks.push(await house.ask(source, 'fork', { name: child, from_running: true, target_state: 'Running' }))
    await house.daemon.client.delete(`/instances/${child}`)

    await bare.run(change())
    for (const [way, ms] of (await bare.fork(`bare-${run}`)).entries()) bareForks[way]?.push(ms)

    await house.run(source, change())
    snapshots.push(await house.ask(source, 'snapshots', { kind: 'Standby' }))
    await bare.run(change())
    bareSnapshots.push(await bare.snapshot())
  }
  const pauses = (await house.logged<{ name: string; ms: number }>('VM stood still')).filter(({ name }) => name === source.name)
  return [
    ...(pauses.length === 0 ? [] : [pausesOf(pauses)]),
    ...byHand.says.ways.map(
      ({ suffix: way, restore }, at): Measurement => ({
        id: `fork_ready${suffix}${way}`,
        what: `POST /instances/{id}/fork of a running guest of 2 GiB that has written 16 MiB anew, until the child has another name and its agent has answered; the anchor by hand: ${byHand.says.fork} (${restore})`,
        ...{ unit: 'ms', target: targets.fork, ours: forks, anchor: bareForks[at] ?? [] },
      }),
    ),
    {
      id: `snapshot_create${suffix}`,
      what: `POST /instances/{id}/snapshots of the same guest while it runs, until all is flushed; the anchor ${byHand.says.snapshot}`,
      ...{ unit: 'ms', target: targets.snapshot, ours: snapshots, anchor: bareSnapshots },
    },
  ]
}

/** Told by QEMU alone. */
const pausesOf = (pauses: readonly { readonly ms: number }[]): Measurement => ({
  id: 'fork_pause',
  what: "how long the source's processors stand still for a live fork or snapshot, by QEMU's own events STOP and RESUME",
  ...{ unit: 'ms', target: atMost(10, 'ms'), ours: pauses.map(({ ms }) => ms) },
})
