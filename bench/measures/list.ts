/** A list of a thousand instances, as `dormouse ps` asks for it, from a daemon whose VMs are made up. */
import { join } from 'node:path'
import { makeBusyboxImage } from '../../test/harness/busybox-image.ts'
import { startDaemon } from '../../test/harness/daemon-process.ts'
import { importImage } from '../../test/harness/import-image.ts'
import type { Bench } from '../bench.ts'
import { atMost, type Measurement } from '../promise.ts'

const COUNT = 1000
const AT_ONCE = 8
const LISTS = 300

export async function measureList({ dir, installed, tell }: Bench): Promise<Measurement[]> {
  // A thousand of them must be admitted, whatever this machine has.
  const env = { ...installed.env, DORMOUSE_MEMORY_RATIO: '10000', DORMOUSE_CPU_RATIO: '10000', DORMOUSE_DISK_RATIO: '10000' }
  await using daemon = await startDaemon({ dir: join(dir, 'list'), driver: 'fake', argv: installed.daemon, env })
  const { client } = daemon
  const { path } = await makeBusyboxImage(join(dir, 'list-image'))
  await importImage(daemon, path, 'bench/list:latest')
  tell(`making ${COUNT} instances`)
  const names = Array.from({ length: COUNT }, (_, index) => `listed-${index}`)
  const next = names.values()
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      for (const name of next) await client.post('/instances', { name, image: 'bench/list:latest', size: '128MB' })
    }),
  )
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
