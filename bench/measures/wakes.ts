/** An instance of 2 GiB that wakes a moment after it was put to sleep, when its VM has been made ready. */
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { limited } from '../anchors/bare-guest.ts'
import type { Bench } from '../bench.ts'
import { change } from '../both-sides.ts'
import { atMost, type Measurement } from '../promise.ts'
import { SleepingHouse } from '../sleeping-house.ts'

export async function measureWakes(bench: Bench): Promise<Measurement[]> {
  const { runs, tell } = bench
  await using house = await SleepingHouse.open(bench, 'wakes', { poolSize: 1 })
  const sleeper = await house.create('sleeper')
  const restores: number[] = []
  for (let run = 0; run < runs; run += 1) {
    tell(`wakes: run ${run + 1} of ${runs}`)
    await house.run(sleeper, change())
    await house.ask(sleeper, 'standby', {})
    const isReady = async (): Promise<boolean> =>
      (await house.logged<{ instance?: string }>('a VM waits')).filter(({ instance }) => instance === sleeper.id).length > run
    await pollUntil('its VM to be made ready', isReady, limited())
    restores.push(await house.ask(sleeper, 'restore'))
  }
  const origins = (await house.logged<{ origin: string }>('VM restored')).map(({ origin }) => origin)
  if (origins.some((origin) => origin !== 'pool')) throw new Error(`Not every VM had been made ready: ${origins.join(', ')}`)
  const loads = (await house.logged<{ operation: string; steps?: string[] }>('operation done'))
    .filter(({ operation }) => operation === 'restore')
    .map(({ steps = [] }) => millisecondsUntil(steps, 'resume'))
  const restore = 'POST /instances/{id}/restore of a guest of 2 GiB whose VM was made ready after it fell asleep'
  return [
    {
      id: 'restore_cont',
      what: `${restore}, from the begin of the operation until QEMU has confirmed that the VM runs, by the log of its steps`,
      ...{ unit: 'ms', target: atMost(15, 'ms'), ours: loads },
    },
    {
      id: 'restore_ready',
      what: `${restore}, until its agent has set it right and answered`,
      ...{ unit: 'ms', target: atMost(120, 'ms'), ours: restores },
    },
  ]
}

/** From steps as the log has them, `name milliseconds` each. */
function millisecondsUntil(steps: readonly string[], last: string): number {
  const names = steps.map((step) => step.split(' ')[0])
  return steps.slice(0, names.lastIndexOf(last) + 1).reduce((sum, step) => sum + Number(step.split(' ')[1]), 0)
}
