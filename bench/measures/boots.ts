/** Promises about an instance's coming to life and what goes through its agent, beside machines that its VMM boots by hand. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import type { Step } from '../../packages/daemon/src/lib/step.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { anchorMachineOf } from '../../test/harness/anchor-machine.ts'
import { makeBusyboxImage, TICKER } from '../../test/harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../../test/harness/daemon-process.ts'
import { execOverApi } from '../../test/harness/exec-over-api.ts'
import { importImage } from '../../test/harness/import-image.ts'
import type { Booted } from '../anchors/by-hand.ts'
import type { Bench } from '../bench.ts'
import { assertHere, type BenchedDriver, networkOf } from '../drivers.ts'
import { atLeastTimesFaster, atMost, atMostAboveAnchor, type Measurement } from '../promise.ts'

const IMAGE = 'bench/busybox:latest'
const MEMORY_MIB = 512
const EXECS = 60

export async function measureBoots({ dir, installed, runs, tell }: Bench, driver: BenchedDriver): Promise<Measurement[]> {
  const { name, suffix, hasPool, byHand, targets } = driver
  const place = join(dir, name)
  const env = { ...installed.env, DORMOUSE_POOL_SIZE: hasPool ? '1' : '0' }
  await using daemon = await startDaemon({ dir: join(place, 'd'), driver: name, argv: installed.daemon, env })
  await assertHere(daemon, driver)
  const { path, digest } = await makeBusyboxImage(join(place, 'image'))
  await importImage(daemon, path, IMAGE)
  const { acceleration } = await anchorMachineOf(daemon, name)
  const house: House = { daemon, driver }
  const boot = (run: number) =>
    byHand.boot(daemon, { dir: join(place, `raw-${run}`), rootfs: daemon.paths.imageRootfs(digest), argv: TICKER, memoryMib: MEMORY_MIB })

  tell(`${name}: the golden boot`)
  await create(house, 'warm-up')
  await daemon.client.delete('/instances/warm-up')

  const ours: number[] = []
  const alone: number[] = []
  const anchor: number[] = []
  for (let run = 0; run < runs; run += 1) {
    tell(`${name}: run ${run + 1} of ${runs}`)
    await untilOneWaits(house)
    ours.push(await create(house, `run-${run}`))
    await daemon.client.delete(`/instances/run-${run}`)
    if (hasPool) {
      // The next one does not wait yet, nor has it been begun.
      alone.push(await create(house, `alone-${run}`))
      await daemon.client.delete(`/instances/alone-${run}`)
      // Nothing else is to be made while the other side boots.
      await untilOneWaits(house)
    }
    await using bare = await boot(run)
    anchor.push(bare.readyMs)
  }
  const machine = `${name}, ${acceleration}, ${MEMORY_MIB} MiB`
  return [
    {
      id: `create_to_running${suffix}`,
      what: `POST /instances?wait=running and an exec of the image's /bin/true, ${machine}, golden boot warm${hasPool ? ' and a VM waiting' : ''}; the anchor is ${byHand.says.boot}`,
      ...{ unit: 'ms', target: targets.create, ours, anchor },
    },
    ...(alone.length === 0 ? [] : [coldPool(suffix, machine, alone, anchor)]),
    ...(name === 'qemu' ? await execs(house, () => boot(runs), runs) : []),
  ]
}

interface House {
  readonly daemon: DaemonProcess
  readonly driver: BenchedDriver
}

const coldPool = (suffix: string, machine: string, ours: number[], anchor: number[]): Measurement => ({
  id: `create_to_running${suffix}_cold_pool`,
  what: `the same just after it, golden boot warm and no VM waiting, ${machine}`,
  ...{ unit: 'ms', target: atLeastTimesFaster(6), ours, anchor },
})

async function execs(house: House, boot: () => Promise<Booted>, runs: number): Promise<Measurement[]> {
  const { daemon } = house
  await create(house, 'exec')
  await untilOneWaits(house)
  await using bare = await boot()
  const ours: number[] = []
  const anchor: number[] = []
  for (let run = -5; run < EXECS; run += 1) {
    const own = await timed(() => execOverApi(daemon.socket, 'exec', { command: ['/bin/true'] }))
    const plain = await timed(async () => (await bare.guest.exec({ command: ['/bin/true'] }, step())).exit)
    // Under TCG the first runs of each code path are slow, on both sides alike.
    if (run < 0) continue
    ours.push(own)
    anchor.push(plain)
  }
  await daemon.client.delete('/instances/exec')
  return [
    {
      id: 'exec_round_trip',
      what: "exec of /bin/true over the API's WebSocket, from the dial to the exit code; the anchor asks the same agent of a plain QEMU directly",
      ...{ unit: 'ms', target: atMostAboveAnchor(5, 'ms'), ours, anchor },
    },
    {
      id: 'daemon_rss',
      what: `the daemon's resident memory after ${runs + 2} instances were made and deleted and ${EXECS} commands run`,
      ...{ unit: 'MiB', target: atMost(150, 'MiB'), ours: [await residentMib(daemon.pid)] },
    },
  ]
}

/** Milliseconds from the request to the answer of a second program of the image. */
async function create({ daemon: { client, socket }, driver }: House, name: string): Promise<number> {
  const from = performance.now()
  await client.post('/instances?wait=running', { name, image: IMAGE, size: `${MEMORY_MIB}MB`, vcpus: 1, ...networkOf(driver) })
  const { exitCode } = await execOverApi(socket, name, { command: ['/bin/true'] })
  if (exitCode !== 0) throw new Error(`/bin/true ended with ${exitCode} in ${name}`)
  return performance.now() - from
}

/** Where one ever does. */
async function untilOneWaits({ daemon: { client, log }, driver: { name: hypervisor, hasPool } }: House): Promise<void> {
  if (!hasPool) return
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
