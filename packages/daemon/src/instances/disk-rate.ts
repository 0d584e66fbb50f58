import type { Instance } from './instance.ts'

/** What the disks of the host move, and among how many processors it is shared out. */
export interface DiskIo {
  /** Bytes per second; 0: no one knows. */
  readonly capacityBps: number
  readonly ratio: number
  readonly cpus: number
}

/**
 * Bytes per second that the instance's disks may move together: what was asked for, or the share of its processors. Undefined where
 * neither is known. Pure.
 */
export function diskRateOf({ diskIoBps, vcpus }: Pick<Instance, 'diskIoBps' | 'vcpus'>, host: DiskIo): number | undefined {
  if (diskIoBps !== undefined) return diskIoBps
  const share = Math.floor((vcpus / host.cpus) * host.capacityBps * host.ratio)
  // A share that is small is no reason for a guest that does not come up.
  return host.capacityBps === 0 ? undefined : Math.max(share, LEAST_SHARE)
}

const LEAST_SHARE = 16 << 20
