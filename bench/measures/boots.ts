/** Promises about an instance's coming to life and what goes through its agent, beside machines that plain QEMU boots. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import type { HypervisorName } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import type { Step } from '../../packages/daemon/src/lib/step.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { anchorMachineOf } from '../../test/harness/anchor-machine.ts'
import { makeBusyboxImage, TICKER } from '../../test/harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../../test/harness/daemon-process.ts'
import { execOverApi } from '../../test/harness/exec-over-api.ts'
import { importImage } from '../../test/harness/import-image.ts'
import { rawColdBoot } from '../../test/harness/raw-cold-boot.ts'
import type { Bench } from '../bench.ts'
import { atLeastTimesFaster, atMost, atMostAboveAnchor, type Measurement } from '../promise.ts'

const IMAGE = 'bench/busybox:latest'
const MEMORY_MIB = 512
const EXECS = 60

export async function measureBoots({ dir, installed, runs, tell }: Bench, hypervisor: 'qemu' | 'qemu-microvm'): Promise<Measurement[]> {
  const place = join(dir, hypervisor)
  const env = { ...installed.env, DORMOUSE_POOL_SIZE: '1' }
  await using daemon = await startDaemon({ dir: join(place, 'd'), driver: hypervisor, argv: installed.daemon, env })
  const { path, digest } = await makeBusyboxImage(join(place, 'image'))
  await importImage(daemon, path, IMAGE)
  const rootfs = daemon.paths.imageRootfs(digest)
  const { board, acceleration } = await anchorMachineOf(daemon, hypervisor)
  const raw = (run: number) =>
    rawColdBoot({ dir: join(place, `raw-${run}`), rootfs, argv: TICKER, board, acceleration, vcpus: 1, memoryMib: MEMORY_MIB })

  tell(`${board}: the golden boot`)
  await create(daemon, 'warm-up')
  await daemon.client.delete('/instances/warm-up')

  const ours: number[] = []
  const alone: number[] = []
  const anchor: number[] = []
  for (let run = 0; run < runs; run += 1) {
    tell(`${board}: run ${run + 1} of ${runs}`)
    await untilOneWaits(daemon, hypervisor)
    ours.push(await create(daemon, `run-${run}`))
    await daemon.client.delete(`/instances/run-${run}`)
    // The next one does not wait yet, nor has it been begun.
    alone.push(await create(daemon, `alone-${run}`))
    await daemon.client.delete(`/instances/alone-${run}`)
    // Nothing else is to be made while the other side boots.
    await untilOneWaits(daemon, hypervisor)
    await using boot = await raw(run)
    anchor.push(boot.readyMs)
  }

  await create(daemon, 'exec')
  await untilOneWaits(daemon, hypervisor)
  await using boot = await raw(runs)
  const execs: number[] = []
  const bareExecs: number[] = []
  for (let run = -5; run < EXECS; run += 1) {
    const own = await timed(() => execOverApi(daemon.socket, 'exec', { command: ['/bin/true'] }))
    const bare = await timed(async () => (await boot.guest.exec({ command: ['/bin/true'] }, step())).exit)
    // Under TCG the first runs of each code path are slow, on both sides alike.
    if (run < 0) continue
    execs.push(own)
    bareExecs.push(bare)
  }
  await daemon.client.delete('/instances/exec')
  return [
    {
      id: board === 'q35' ? 'create_to_running' : 'create_to_running_microvm',
      what: `POST /instances?wait=running and an exec of the image's /bin/true, ${board}, ${acceleration}, ${MEMORY_MIB} MiB, golden boot warm and a VM waiting; the anchor is plain QEMU on the same board, kernel, initrd and disks, to the same end`,
      unit: 'ms',
      target: atLeastTimesFaster(10),
      ours,
      anchor,
    },
    {
      id: board === 'q35' ? 'create_to_running_cold_pool' : 'create_to_running_microvm_cold_pool',
      what: `the same just after it, golden boot warm and no VM waiting, ${board}, ${acceleration}, ${MEMORY_MIB} MiB`,
      unit: 'ms',
      target: atLeastTimesFaster(6),
      ours: alone,
      anchor,
    },
    {
      id: 'exec_round_trip',
      what: "exec of /bin/true over the API's WebSocket, from the dial to the exit code; the anchor asks the same agent of a plain QEMU directly",
      unit: 'ms',
      target: atMostAboveAnchor(5, 'ms'),
      ours: execs,
      anchor: bareExecs,
    },
    {
      id: 'daemon_rss',
      what: `the daemon's resident memory after ${runs + 2} instances were made and deleted and ${EXECS} commands run`,
      unit: 'MiB',
      target: atMost(150, 'MiB'),
      ours: [await residentMib(daemon.pid)],
    },
  ]
}

/** Milliseconds from the request to the answer of a second program of the image. */
async function create({ client, socket }: DaemonProcess, name: string): Promise<number> {
  const from = performance.now()
  await client.post('/instances?wait=running', { name, image: IMAGE, size: `${MEMORY_MIB}MB`, vcpus: 1 })
  const { exitCode } = await execOverApi(socket, name, { command: ['/bin/true'] })
  if (exitCode !== 0) throw new Error(`/bin/true ended with ${exitCode} in ${name}`)
  return performance.now() - from
}

async function untilOneWaits({ client, log }: DaemonProcess, hypervisor: HypervisorName): Promise<void> {
  const isOne = async (): Promise<boolean> => {
    const { runtimes } = await client.get<{ runtimes: { name: string; waiting?: number }[] }>('/capabilities')
    return runtimes.some(({ name, waiting }) => name === hypervisor && waiting === 1)
  }
  await pollUntil('a VM to wait', isOne, { signal: AbortSignal.timeout(60_000) }, { everyMs: 50 }).catch(async (cause) => {
    throw new Error(`No VM waits; the daemon's log ends with:\n${(await log()).slice(-2000)}`, { cause })
  })
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const from = performance.now()
  await work()
  return performance.now() - from
}

async function residentMib(pid: number): Promise<number> {
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/status`, 'latin1'))?.[1]
  return Number(kib) / 1024
}

const step = (): Step => ({ signal: AbortSignal.timeout(30_000), log: silentLogger })
