/**
 * What the API costs beyond the work of a VM's own processes. No guest is booted or woken in what is timed, so that some hundred
 * runs of each side, in turns, resolve a millisecond.
 */
import { createServer } from 'node:net'
import { join } from 'node:path'
import type { PortForward } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { NetworkHelper } from '../../packages/daemon/src/hypervisors/network-helper.ts'
import type { Step } from '../../packages/daemon/src/lib/step.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { anchorMachineOf } from '../../test/harness/anchor-machine.ts'
import { makeBusyboxImage, TICKER } from '../../test/harness/busybox-image.ts'
import { startDaemon } from '../../test/harness/daemon-process.ts'
import { importImage } from '../../test/harness/import-image.ts'
import { rawColdBoot } from '../../test/harness/raw-cold-boot.ts'
import type { Bench } from '../bench.ts'
import { atMost, atMostAboveAnchor, type Measurement } from '../promise.ts'

const IMAGE = 'bench/busybox:latest'
const MEMORY_MIB = 512
const WARM_UPS = 20
const RUNS = 200

export async function measureOverheads(bench: Bench): Promise<Measurement[]> {
  return [...(await requestsToAVm(bench)), await createWithoutVm(bench)]
}

async function requestsToAVm({ dir, installed, tell }: Bench): Promise<Measurement[]> {
  const place = join(dir, 'overheads')
  await using daemon = await startDaemon({ dir: join(place, 'd'), driver: 'qemu', argv: installed.daemon, env: installed.env })
  const { path, digest } = await makeBusyboxImage(join(place, 'image'))
  await importImage(daemon, path, IMAGE)
  tell('two machines: one of an instance, one of plain QEMU')
  const { client } = daemon
  const { id } = await client.post<{ id: string }>('/instances?wait=running', {
    name: 'asked',
    image: IMAGE,
    size: `${MEMORY_MIB}MB`,
    vcpus: 1,
  })
  const rootfs = daemon.paths.imageRootfs(digest)
  const machine = await anchorMachineOf(daemon)
  await using raw = await rawColdBoot({ dir: join(place, 'raw'), rootfs, argv: TICKER, ...machine, vcpus: 1, memoryMib: MEMORY_MIB })

  tell(`${RUNS} changes of ports and looks at a path`)
  const helper = new NetworkHelper(daemon.paths.vmRunDir(id))
  const [even, odd, bare] = (await freePorts(3)) as [number, number, number]
  const patch = async (run: number): Promise<void> => {
    const port = { host_ip: HOST, host_port: run % 2 === 0 ? even : odd, guest_port: 80 }
    await client.patch('/instances/asked', { network: { ports: [port] } })
  }
  const { ours: patches, anchor: bareChanges } = await inTurns(patch, () => helper.setPorts([forwardOf(bare)], step()))
  const { ours: looks, anchor: bareLooks } = await inTurns(
    () => client.get('/instances/asked/stat?path=/bin/true'),
    () => raw.guest.stat('/bin/true', { followLinks: false }, step()),
  )
  return [
    {
      id: 'api_overhead',
      what: 'PATCH /instances/{id} that moves a published port of a running VM, recorded and flushed; the anchor gives the same commands to the same network helper of that VM: one port closed, one opened',
      unit: 'ms',
      target: atMostAboveAnchor(5, 'ms'),
      ours: patches,
      anchor: bareChanges,
    },
    {
      id: 'stat_round_trip',
      what: 'GET /instances/{id}/stat of a path in the guest; the anchor asks the same agent of a plain QEMU directly',
      unit: 'ms',
      target: atMostAboveAnchor(5, 'ms'),
      ours: looks,
      anchor: bareLooks,
    },
  ]
}

/** A create whose VM is made up and takes no time: what is left is what the daemon does for one. */
async function createWithoutVm({ dir, installed, tell }: Bench): Promise<Measurement> {
  await using daemon = await startDaemon({ dir: join(dir, 'creates'), driver: 'fake', argv: installed.daemon, env: installed.env })
  const { client } = daemon
  const { path } = await makeBusyboxImage(join(dir, 'creates-image'))
  await importImage(daemon, path, IMAGE)
  tell(`${RUNS} creates without a VM`)
  const ours: number[] = []
  for (let run = -WARM_UPS; run < RUNS; run += 1) {
    const ms = await timed(() => client.post('/instances', { name: `made-${run}`, image: IMAGE, size: '128MB' }))
    await client.delete(`/instances/made-${run}`)
    if (run >= 0) ours.push(ms)
  }
  return {
    id: 'create_overhead',
    what: 'POST /instances to its answer, with a VM that is made up: admission, record and event in two flushed transactions, directories, the disk, logs',
    unit: 'ms',
    target: atMost(5, 'ms'),
    ours,
  }
}

/** Neighbours in time share what the machine was busy with. The first runs are left out: code is compiled in them, on both sides. */
async function inTurns(
  own: (run: number) => Promise<unknown>,
  bare: (run: number) => Promise<unknown>,
): Promise<{ ours: number[]; anchor: number[] }> {
  const ours: number[] = []
  const anchor: number[] = []
  for (let run = -WARM_UPS; run < RUNS; run += 1) {
    const [a, b] = [await timed(() => own(run)), await timed(() => bare(run))]
    if (run < 0) continue
    ours.push(a)
    anchor.push(b)
  }
  return { ours, anchor }
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const from = performance.now()
  await work()
  return performance.now() - from
}

const HOST = '127.0.0.1'

const forwardOf = (hostPort: number): PortForward => ({ protocol: 'tcp', hostIp: HOST, hostPort, guestPort: 80 })

/** Free a moment ago, each another. */
async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer())
  const ports = await Promise.all(
    servers.map(
      (server) =>
        new Promise<number>((resolve, reject) => {
          server.once('error', reject)
          server.listen(0, HOST, () => resolve((server.address() as { port: number }).port))
        }),
    ),
  )
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))))
  return ports
}

const step = (): Step => ({ signal: AbortSignal.timeout(30_000), log: silentLogger })
