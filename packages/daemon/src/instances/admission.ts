import { AppError } from '@dormouse/api/errors.ts'
import { formatSize } from '@dormouse/api/units.ts'

/** What the host has to give, oversubscription included. */
export interface Capacity {
  readonly vcpus: number
  readonly memoryBytes: number
  /** Free on the data directory's filesystem now. */
  readonly diskFreeBytes: number
}

export interface Demand {
  readonly vcpus: number
  readonly memoryBytes: number
}

// Overlays are sparse and fill as guests write; below this nothing new is begun, so that those that run keep room.
const DISK_RESERVE = 512 << 20

/** Throws `insufficient_resources` naming the first thing that is short. Pure; `taken` counts what runs and what is about to. */
export function admitDemand(what: string, demand: Demand, taken: Demand, capacity: Capacity): void {
  const short = shortageOf(demand, taken, capacity)
  if (short === undefined) return
  throw new AppError(
    'insufficient_resources',
    `There is not enough ${short.of} for ${what}: it needs ${short.needs}, ${short.left} of ${short.whole} is left`,
    {
      hint: 'Stop other instances, ask for less, or raise the oversubscription ratios',
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
  if (capacity.diskFreeBytes < DISK_RESERVE) {
    return { of: 'disk space', needs: mib(DISK_RESERVE), left: mib(capacity.diskFreeBytes), whole: 'the data directory' }
  }
  return undefined
}

const mib = (bytes: number): string => formatSize(Math.floor(bytes / 2 ** 20) * 2 ** 20)
