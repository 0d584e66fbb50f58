/** A list of a thousand instances, as `dormouse ps` asks for it, from a daemon whose VMs are made up. */
import type { Bench } from '../bench.ts'
import { fullHouse } from '../full-house.ts'
import { atMost, type Measurement } from '../promise.ts'

const COUNT = 1000
const LISTS = 300

export async function measureList(bench: Bench): Promise<Measurement[]> {
  await using daemon = await fullHouse(bench, 'list', COUNT)
  const { client } = daemon
  const ours: number[] = []
  for (let run = 0; run < LISTS; run += 1) {
    const from = performance.now()
    const listed = await client.get<unknown[]>(`/instances?limit=${COUNT}`)
    ours.push(performance.now() - from)
    if (listed.length !== COUNT) throw new Error(`The list holds ${listed.length} instances instead of ${COUNT}`)
  }
  return [
    {
      id: 'list_1000',
      what: `GET /instances with ${COUNT} instances, over the unix socket, to the last byte and parsed; the 99th of 100`,
      unit: 'ms',
      target: atMost(20, 'ms'),
      ours,
      percentile: 99,
    },
  ]
}
