/** What a restore costs follows what was changed, not how much memory there is. */
import type { Bench } from '../bench.ts'
import { change } from '../both-sides.ts'
import { atMostTimesAnchor, type Measurement } from '../promise.ts'
import { SleepingHouse } from '../sleeping-house.ts'

const SMALL_MIB = 256
const LARGE_MIB = 4096

export async function measureRestoreFlat(bench: Bench): Promise<Measurement[]> {
  const { runs, tell } = bench
  await using house = await SleepingHouse.open(bench, 'flat')
  tell(`${SMALL_MIB} and ${LARGE_MIB} MiB: golden boots`)
  const [small, large] = [await house.create('small', SMALL_MIB), await house.create('large', LARGE_MIB)]
  const ours: number[] = []
  const anchor: number[] = []
  for (let run = 0; run < runs; run += 1) {
    tell(`restore_flat: run ${run + 1} of ${runs}`)
    for (const [sleeper, restores] of [
      [small, anchor],
      [large, ours],
    ] as const) {
      await house.run(sleeper, change())
      await house.ask(sleeper, 'standby', {})
      await house.consolidated(sleeper)
      restores.push(await house.ask(sleeper, 'restore'))
    }
  }
  return [
    {
      id: 'restore_flat',
      what: `POST /instances/{id}/restore of a guest of ${LARGE_MIB} MiB until its agent has answered; the anchor is one of ${SMALL_MIB} MiB whose program has written as much`,
      ...{ unit: 'ms', target: atMostTimesAnchor(1.2), ours, anchor },
    },
  ]
}
