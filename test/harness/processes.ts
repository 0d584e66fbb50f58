import { readdir, readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { Cgroups } from '../../packages/daemon/src/host/cgroups.ts'
import { cgroupNameOf } from '../../packages/daemon/src/hypervisor-set.ts'

export interface FoundProcess {
  readonly pid: number
  readonly argv: readonly string[]
}

/** Every process whose command line names something below `dir`: the VMMs, shims and helpers of a scratch daemon, or what it left behind. */
export async function processesNaming(dir: string): Promise<FoundProcess[]> {
  const found: FoundProcess[] = []
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) continue
    // Gone between the listing and the look, or a zombie: its command line is empty.
    const argv = await readFile(`/proc/${name}/cmdline`, 'utf8').then(
      (text) => text.split('\0').slice(0, -1),
      () => [],
    )
    if (argv.some((word) => word.includes(dir))) found.push({ pid: Number(name), argv })
  }
  return found
}

/** Ends them all at once, and those that appear meanwhile. For cleaning up; says how many there were. */
export async function endProcessesNaming(dir: string): Promise<number> {
  const ended = new Set<number>()
  for (let round = 0; round < 50; round += 1) {
    const found = await processesNaming(dir)
    if (found.length === 0) break
    for (const { pid } of found) {
      ended.add(pid)
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // It ended by itself.
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  // Of a daemon that runs on this directory, or has this run directory.
  for (const place of [dir, dirname(dir)]) {
    await using cgroups = cgroupsOf(place)
    for (const name of cgroups.list()) await cgroups.remove(name)
  }
  return ended.size
}

/** Those of the VMs of the daemon on `dir`, as this process sees them. */
export const cgroupsOf = (dir: string): Cgroups => Cgroups.prepare(cgroupNameOf(join(dir, 'run/golden')))
