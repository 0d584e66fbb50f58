import { readFileSync } from 'node:fs'
import os from 'node:os'
import type { Step } from '../lib/step.ts'
import { runCommand } from './run-command.ts'

/** What of the host decides how VMs are run. Read once at start; `tscKhz` is measured when first asked for. */
export interface HostFacts {
  readonly cpus: number
  readonly cpuModel: string
  readonly memoryBytes: number
  readonly kernel: string
  readonly architecture: string
  readonly isRoot: boolean
}

export const readHostFacts = (): HostFacts => ({
  cpus: os.availableParallelism(),
  cpuModel: os.cpus()[0]?.model.trim() ?? 'unknown',
  // VMs are below the daemon's own cgroup: what that may have is all that there is for them.
  memoryBytes: Math.min(os.totalmem(), process.constrainedMemory() || os.totalmem()),
  kernel: os.release(),
  architecture: os.arch() === 'x64' ? 'x86_64' : os.arch() === 'arm64' ? 'aarch64' : os.arch(),
  isRoot: process.geteuid?.() === 0,
})

/** Memory that could be given to VMs now without swapping, as the kernel estimates it. */
export function readAvailableMemoryBytes(): number {
  const match = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'latin1'))
  return match ? Number(match[1]) * 1024 : os.freemem()
}

export interface MemoryPressure {
  readonly availableBytes: number
  readonly totalBytes: number
  /** How much of the last ten seconds something stood still for want of memory; 0 where the kernel does not say. */
  readonly stalledPercent: number
}

/** `file`: where the kernel tells of stalls; it is absent, or cannot be read, where the kernel does not count them. */
export function readMemoryPressure(file = '/proc/pressure/memory'): MemoryPressure {
  let stalled: string | undefined
  try {
    stalled = /^some avg10=(\d+(?:\.\d+)?)/m.exec(readFileSync(file, 'latin1'))?.[1]
  } catch {
    // Not every kernel counts it.
  }
  return { availableBytes: readAvailableMemoryBytes(), totalBytes: os.totalmem(), stalledPercent: Number(stalled ?? 0) }
}

/** Short of memory: what can wait is in the way of what runs. Pure. */
export const isTight = ({ availableBytes, totalBytes, stalledPercent }: MemoryPressure): boolean =>
  availableBytes < totalBytes / 10 || stalledPercent > 10

/**
 * How fast the time stamp counter runs. A guest kernel under TCG must be told, since it cannot calibrate it on a busy host.
 * "cpu MHz" in /proc/cpuinfo is the frequency of the moment and JavaScript cannot read the counter, so the shim measures it
 * against the monotonic clock.
 */
export async function measureTscKhz(shimPath: string, step: Step): Promise<number> {
  const { stdout } = await runCommand([shimPath, 'tsc'], { step })
  const khz = Number(stdout.trim())
  if (!Number.isSafeInteger(khz) || khz < 100_000 || khz > 100_000_000)
    throw new Error(`The shim measured an impossible TSC frequency: ${stdout.trim()}`)
  return khz
}
