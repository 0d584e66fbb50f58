import { AppError } from '@dormouse/api/errors.ts'
import { isLive } from '@dormouse/api/instance-states.ts'
import { formatSize } from '@dormouse/api/units.ts'
import type { Instance } from './instance.ts'

/** What the host has to give, oversubscription included. */
export interface Capacity {
  readonly vcpus: number
  readonly memoryBytes: number
  /** Of the data directory's file system, oversubscription included. */
  readonly diskBytes: number
  /** Really free there now. */
  readonly diskFreeBytes: number
}

export interface Demand {
  readonly vcpus: number
  readonly memoryBytes: number
  /** Overlays at their full size, although they are sparse; of `taken` the images too. */
  readonly diskBytes: number
}

/** A VM runs for it, may run or is about to, so its memory and processors are taken. */
export const takesMemory = ({ state, vm }: Pick<Instance, 'state' | 'vm'>): boolean => isLive(state) || vm !== undefined

/** Overlays are sparse and fill as guests write; below this nothing new is begun, so that those that run keep room. */
export const DISK_RESERVE = 512 << 20

/** Throws `insufficient_resources` naming the first thing that is short. Pure; `taken` counts what runs and what is about to. */
export function admitDemand(what: string, demand: Demand, taken: Demand, capacity: Capacity): void {
  const short = shortageOf(demand, taken, capacity)
  if (short === undefined) return
  throw new AppError(
    'insufficient_resources',
    `There is not enough ${short.of} for ${what}: it needs ${short.needs}, ${short.left} of ${short.whole} is left`,
    {
      hint: 'Stop or remove other instances, ask for less, or raise the oversubscription ratios',
    },
  )
}

interface Shortage {
  readonly of: string
  readonly needs: string
  readonly left: string
  readonly whole: string
}

function shortageOf(demand: Demand, taken: Demand, capacity: Capacity): Shortage | undefined {
  const vcpusLeft = Math.max(0, Math.floor(capacity.vcpus - taken.vcpus))
  if (demand.vcpus > vcpusLeft) {
    return { of: 'CPU', needs: `${demand.vcpus} vCPUs`, left: `${vcpusLeft}`, whole: `${Math.floor(capacity.vcpus)}` }
  }
  const memoryLeft = Math.max(0, capacity.memoryBytes - taken.memoryBytes)
  if (demand.memoryBytes > memoryLeft) {
    return { of: 'memory', needs: mib(demand.memoryBytes), left: mib(memoryLeft), whole: mib(capacity.memoryBytes) }
  }
  const diskLeft = Math.max(0, capacity.diskBytes - taken.diskBytes)
  if (demand.diskBytes > diskLeft) {
    return { of: 'disk', needs: mib(demand.diskBytes), left: mib(diskLeft), whole: mib(capacity.diskBytes) }
  }
  if (capacity.diskFreeBytes < DISK_RESERVE) {
    return { of: 'disk space', needs: mib(DISK_RESERVE), left: mib(capacity.diskFreeBytes), whole: 'the data directory' }
  }
  return undefined
}

const mib = (bytes: number): string => formatSize(Math.floor(bytes / 2 ** 20) * 2 ** 20)
