/** How long a person waits for the programs themselves, as they are installed: bundled, with a warm page cache. */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { startDaemon } from '../../test/harness/daemon-process.ts'
import type { Bench } from '../bench.ts'
import { atMost, type Measurement } from '../promise.ts'

export async function measureProgramStarts({ dir, installed, runs }: Bench): Promise<Measurement[]> {
  const daemon: number[] = []
  for (let run = 0; run <= runs; run += 1) {
    await using child = await startDaemon({ dir: join(dir, 'start'), argv: installed.daemon, env: installed.env })
    daemon.push(child.startMs)
    await child.stop()
  }
  const env = { PATH: process.env.PATH, HOME: join(dir, 'home') }
  const timed = (program: string, ...args: string[]): number => {
    const from = performance.now()
    const { status, stderr } = spawnSync(program, args, { env, encoding: 'utf8' })
    if (status !== 0) throw new Error(`${program} ended with ${status}: ${stderr}`)
    return performance.now() - from
  }
  const cli = Array.from({ length: runs * 2 + 1 }, () => timed(installed.cli, 'version', '--client'))
  const node = Array.from({ length: runs * 2 + 1 }, () => timed(join(installed.lib, 'node'), '-e', '0'))
  // The first of each fills caches.
  return [
    {
      id: 'daemon_start',
      what: 'from the spawn of the installed daemon, on a data directory of its own, to its first answer over the socket',
      unit: 'ms',
      target: atMost(500, 'ms'),
      ours: daemon.slice(1),
    },
    {
      id: 'cli_start',
      what: "`dormouse version --client` from spawn to exit; the anchor is Node's own start (node -e 0)",
      unit: 'ms',
      target: atMost(80, 'ms'),
      ours: cli.slice(1),
      anchor: node.slice(1),
    },
  ]
}
