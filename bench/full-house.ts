/** A daemon with very many instances, none of which is a VM. */
import { join } from 'node:path'
import { makeBusyboxImage } from '../test/harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../test/harness/daemon-process.ts'
import { importImage } from '../test/harness/import-image.ts'
import type { Bench } from './bench.ts'

const IMAGE = 'bench/list:latest'
const AT_ONCE = 8

export async function fullHouse({ dir, installed, tell }: Bench, name: string, count: number): Promise<DaemonProcess> {
  // All of them must be admitted, whatever this machine has.
  const env = { ...installed.env, DORMOUSE_MEMORY_RATIO: '10000', DORMOUSE_CPU_RATIO: '10000', DORMOUSE_DISK_RATIO: '10000' }
  await using undo = new AsyncDisposableStack()
  const daemon = undo.use(await startDaemon({ dir: join(dir, name), driver: 'fake', argv: installed.daemon, env }))
  const { path } = await makeBusyboxImage(join(dir, `${name}-image`))
  await importImage(daemon, path, IMAGE)
  tell(`making ${count} instances`)
  const names = Array.from({ length: count }, (_, index) => `listed-${index}`).values()
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      for (const one of names) await daemon.client.post('/instances', { name: one, image: IMAGE, size: '128MB' })
    }),
  )
  undo.move()
  return daemon
}
