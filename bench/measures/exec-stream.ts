/** How fast bytes come out of a guest by exec, beside the same agent asked directly, and what the daemon holds of them. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { CHANNEL, type ExecNotice } from '@dormouse/api/streams.ts'
import WebSocket from 'ws'
import { anchorMachineOf } from '../../test/harness/anchor-machine.ts'
import { makeBusyboxImage, TICKER } from '../../test/harness/busybox-image.ts'
import { startDaemon } from '../../test/harness/daemon-process.ts'
import { importImage } from '../../test/harness/import-image.ts'
import { rawColdBoot } from '../../test/harness/raw-cold-boot.ts'
import { limited } from '../anchors/bare-guest.ts'
import type { Bench } from '../bench.ts'
import { atMost, atMostTimesAnchor, type Measurement } from '../promise.ts'

const IMAGE = 'bench/busybox:latest'
const MEMORY_MIB = 512
const STREAM_MIB = 16
const COMMAND = ['/bin/dd', 'if=/dev/zero', 'bs=64k', `count=${STREAM_MIB * 16}`]
/** So long a reader stands still while a guest would write without end. */
const STILL_MS = 3000

export async function measureExecStream({ dir, installed, runs, tell }: Bench): Promise<Measurement[]> {
  const place = join(dir, 'exec-stream')
  await using daemon = await startDaemon({ dir: join(place, 'd'), driver: 'qemu', argv: installed.daemon, env: installed.env })
  const { path, digest } = await makeBusyboxImage(join(place, 'image'))
  await importImage(daemon, path, IMAGE)
  tell('two machines: one of an instance, one of plain QEMU')
  await daemon.client.post('/instances?wait=running', { name: 'stream', image: IMAGE, size: `${MEMORY_MIB}MB`, vcpus: 1 })
  const rootfs = daemon.paths.imageRootfs(digest)
  const machine = await anchorMachineOf(daemon)
  await using raw = await rawColdBoot({ dir: join(place, 'raw'), rootfs, argv: TICKER, ...machine, vcpus: 1, memoryMib: MEMORY_MIB })
  const bare = async (): Promise<number> => {
    const run = await raw.guest.exec({ command: COMMAND }, limited())
    let bytes = 0
    run.stdout.on('data', (chunk: Buffer) => {
      bytes += chunk.length
    })
    run.stderr.resume()
    await run.exit
    return bytes
  }

  const ours: number[] = []
  const anchor: number[] = []
  for (let run = -1; run < runs; run += 1) {
    tell(`exec_stream: run ${run + 1} of ${runs}`)
    const own = await timed(() => streamed(daemon.socket, COMMAND))
    const other = await timed(bare)
    if (run < 0) continue
    ours.push(own / STREAM_MIB)
    anchor.push(other / STREAM_MIB)
  }
  tell('exec_stream_memory: a reader who stands still')
  const grown = await grownBy(daemon)
  return [
    {
      id: 'exec_stream',
      what: `a MiB out of a guest by exec, of ${STREAM_MIB} that dd writes, ${machine.acceleration}; the anchor asks the same agent of a plain QEMU directly`,
      unit: 'ms',
      target: atMostTimesAnchor(1.25),
      ours,
      anchor,
    },
    {
      id: 'exec_stream_memory',
      what: `what the daemon's memory grows by while a command writes without end to a reader who stands still for ${STILL_MS / 1000} s`,
      unit: 'MiB',
      target: atMost(16, 'MiB'),
      ours: [grown],
    },
  ]
}

/** Bytes of standard output, the command having ended well. */
function streamed(socket: string, command: readonly string[]): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  const connection = dial(socket, command)
  let bytes = 0
  connection.on('message', (data: Buffer, isBinary: boolean) => {
    if (isBinary) bytes += data[0] === CHANNEL.stdout ? data.length - 1 : 0
    else {
      const notice = JSON.parse(data.toString()) as ExecNotice
      if ('exitCode' in notice && notice.exitCode === 0) resolve(bytes)
      else reject(new Error(`The command ended with ${data}`))
    }
  })
  connection.on('error', reject)
  return promise
}

function dial(socket: string, command: readonly string[]): WebSocket {
  const connection = new WebSocket(`ws+unix:${socket}:/instances/stream/exec`, { perMessageDeflate: false })
  connection.on('open', () => connection.send(JSON.stringify({ command, separate_streams: true })))
  return connection
}

async function grownBy({ socket, pid }: { readonly socket: string; readonly pid: number }): Promise<number> {
  const before = await rssMib(pid)
  const connection = dial(socket, ['/bin/cat', '/dev/zero'])
  await new Promise((resolve) => connection.once('message', resolve))
  connection.pause()
  await sleep(STILL_MS)
  const after = await rssMib(pid)
  connection.terminate()
  return Math.max(0, after - before)
}

async function rssMib(pid: number): Promise<number> {
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/status`, 'latin1'))?.[1]
  return Number(kib) / 1024
}

async function timed(work: () => Promise<number>): Promise<number> {
  const from = performance.now()
  const bytes = await work()
  if (bytes !== STREAM_MIB * 2 ** 20) throw new Error(`${bytes} bytes came instead of ${STREAM_MIB} MiB`)
  return performance.now() - from
}
