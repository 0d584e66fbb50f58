/**
 * A memory that is compressed while no one needs it, beside zstd's own command on the same file; and what it costs whoever wakes. The guest
 * holds a program of some 100 MB in memory: code, tables and text, as guests have them.
 */
import { link, readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { readManifest } from '../../packages/daemon/src/memory/capture-files.ts'
import { makeBusyboxImage } from '../../test/harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../../test/harness/daemon-process.ts'
import { dormouse } from '../../test/harness/dormouse-command.ts'
import { execOverApi } from '../../test/harness/exec-over-api.ts'
import { importImage } from '../../test/harness/import-image.ts'
import type { Bench } from '../bench.ts'
import { atMostTimesAnchor, type Measurement } from '../promise.ts'

const NAME = 'holds'
const IMAGE = 'bench/busybox:latest'
const MIB = 2 ** 20

export async function measureCompression({ dir, installed, runs, tell }: Bench): Promise<Measurement[]> {
  const place = join(dir, 'compression')
  await using daemon = await startDaemon({ dir: join(place, 'd'), driver: 'qemu', argv: installed.daemon, env: installed.env })
  const { path } = await makeBusyboxImage(join(place, 'image'))
  await importImage(daemon, path, IMAGE)
  const { client } = daemon
  const { id } = await client.post<{ id: string }>('/instances?wait=running', { name: NAME, image: IMAGE, size: '512MB', vcpus: 1 })
  tell('a guest with a program in its memory')
  await execOverApi(daemon.socket, NAME, { command: ['/bin/sh', '-c', 'mkdir -p /ram && mount -t tmpfs none /ram'] })
  const { code, stderr } = await dormouse(['cp', process.execPath, `${NAME}:/ram/program`], { socket: daemon.socket })
  if (code !== 0) throw new Error(`The guest could not be filled: ${stderr}`)

  const times = { compress: [] as number[], zstd: [] as number[], restore: [] as number[], plainRestore: [] as number[] }
  const sizes = { ours: [] as number[], zstd: [] as number[] }
  let plainBytes = 0
  for (let run = 0; run < runs; run += 1) {
    tell(`nap ${run + 1} of ${runs}, with and without compression`)
    await client.post(`/instances/${NAME}/standby`, { compression: { enabled: false } })
    const delta = join(place, 'delta')
    // At once: a base is already being made of it.
    await link(join(await sleepOf(daemon, id), 'delta'), delta)
    times.plainRestore.push(await timed(() => client.post(`/instances/${NAME}/restore`)))
    times.zstd.push(
      await timed(async () => {
        await runCommand(['nice', '-n', '19', 'zstd', '-1', '-q', '-f', delta, '-o', `${delta}.zst`], { step: step() })
        await runCommand(['sync', `${delta}.zst`], { step: step() })
      }),
    )
    sizes.zstd.push((await stat(`${delta}.zst`)).size / MIB)
    await rm(delta)

    await client.post(`/instances/${NAME}/standby`, { compression: { enabled: true, algorithm: 'zstd', level: 1 } })
    times.compress.push(
      await timed(() => pollUntil('it to be compressed', () => isCompressed(daemon, id), step(), { everyMs: 2, upToMs: 5 })),
    )
    const made = await readManifest(await sleepOf(daemon, id))
    sizes.ours.push((made.delta?.bytes ?? 0) / MIB)
    plainBytes = made.delta?.plainBytes ?? 0
    times.restore.push(await timed(() => client.post(`/instances/${NAME}/restore`)))
  }
  const what = `${Math.round(plainBytes / 1e6)} MB that a guest has written`
  return [
    {
      id: 'compress',
      what: `from the answer to a standby until ${what} are compressed (zstd, level 1), flushed and recorded; the anchor is \`nice -n 19 zstd -1\` on the same file, then sync`,
      unit: 'ms',
      target: atMostTimesAnchor(1.5),
      ours: times.compress,
      anchor: times.zstd,
    },
    {
      id: 'compress_size',
      what: `what ${what} take compressed; the anchor is what zstd -1 makes of them`,
      unit: 'MiB',
      target: atMostTimesAnchor(1.1),
      ours: sizes.ours,
      anchor: sizes.zstd,
    },
    {
      id: 'restore_compressed',
      what: `POST /instances/{id}/restore of a sleeper whose ${what} are compressed; the anchor is the same sleeper with the same memory as it was written`,
      unit: 'ms',
      target: atMostTimesAnchor(1.5),
      ours: times.restore,
      anchor: times.plainRestore,
    },
  ]
}

async function sleepOf(daemon: DaemonProcess, id: string): Promise<string> {
  const names = await readdir(daemon.paths.instanceSleepDir(id))
  return daemon.paths.instanceSleep(id, names.find((name) => !name.endsWith('.draft')) ?? '')
}

/** Once what it has replaced is gone, too. */
async function isCompressed(daemon: DaemonProcess, id: string): Promise<boolean> {
  const names = await readdir(daemon.paths.instanceSleepDir(id))
  if (names.length !== 1) return false
  const manifest = await readManifest(daemon.paths.instanceSleep(id, names[0] ?? '')).catch(() => undefined)
  return manifest?.delta?.compression !== undefined
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const from = performance.now()
  await work()
  return performance.now() - from
}

const step = () => ({ signal: AbortSignal.timeout(120_000) })
