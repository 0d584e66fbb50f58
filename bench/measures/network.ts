/** Promises about a bridge, in a network namespace made for it: what an instance's place costs, and how much passes. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import type { Bench } from '../bench.ts'
import type { NetworkFigures } from '../network-inside.ts'
import { atMostTimesAnchor, type Measurement } from '../promise.ts'

export async function measureNetwork({ dir, installed, runs, tell }: Bench): Promise<Measurement[]> {
  if (process.geteuid?.() !== 0) {
    tell('a bridge is for root alone: left out')
    return []
  }
  const place = join(dir, 'network')
  await mkdir(place, { recursive: true })
  const program = join(import.meta.dirname, '../network-inside.ts')
  const config = JSON.stringify({ argv: installed.daemon, env: installed.env })
  // What is below /sys is of the namespace in which it was mounted.
  const script = 'mount -t sysfs none /sys && ip link set lo up && exec "$@"'
  const { stdout } = await runCommand(
    ['unshare', '--net', '--mount', 'sh', '-c', script, 'sh', process.execPath, program, place, `${runs}`, config],
    { step: { signal: AbortSignal.timeout(900_000) }, env: { PATH: process.env.PATH ?? '', LC_ALL: 'C.UTF-8' } },
  )
  const figures = JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as NetworkFigures
  return [
    {
      id: 'net_setup',
      what: 'the step "attach" of a create on a bridge, two processes started: its rules, and a TAP that is an isolated port; the anchor makes as much by five calls of ip and nft, one after the other',
      ...{ unit: 'ms', target: atMostTimesAnchor(1), ours: figures.setup, anchor: figures.setupByHand },
    },
    {
      id: 'net_throughput',
      what: '32 MiB by TCP from a neighbour of the host to a guest, by nc; the anchor is plain QEMU with a TAP on a bridge of its own, the same board, kernel and guest',
      ...{ unit: 'ms', target: atMostTimesAnchor(1.2), ours: figures.download, anchor: figures.bareDownload },
    },
    {
      id: 'net_throughput_up',
      what: 'the same from the guest to the neighbour',
      ...{ unit: 'ms', target: atMostTimesAnchor(1.2), ours: figures.upload, anchor: figures.bareUpload },
    },
  ]
}
