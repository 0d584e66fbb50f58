import { AppError } from '@dormouse/api/errors.ts'
import { isLive } from '@dormouse/api/instance-states.ts'
import { formatRate, formatSize } from '@dormouse/api/units.ts'
import type { Instance } from './instance.ts'

/** What an instance takes of the host; see `demandOf`. */
export interface Demand {
  readonly vcpus: number
  readonly memoryBytes: number
  /** Overlays at their full size, although they are sparse; of what is taken the images too. */
  readonly diskBytes: number
  /** Rates that were asked for. Shares that are given to those who ask for none are limits, not promises: they take nothing. */
  readonly diskIoBps: number
}

export const NOTHING: Demand = { vcpus: 0, memoryBytes: 0, diskBytes: 0, diskIoBps: 0 }

/** What the host has, and how many times it may be given out. */
export interface Room {
  readonly host: number
  readonly ratio: number
}

export interface Capacity {
  readonly vcpus: Room
  readonly memoryBytes: Room
  /** Of the data directory's file system. */
  readonly diskBytes: Room
  /** Absent where no one knows. */
  readonly diskIoBps?: Room
  /** Really free there now. */
  readonly diskFreeBytes: number
}

/** A VM runs for it, may run or is about to, so its memory and processors are taken. */
export const takesMemory = ({ state, vm }: Pick<Instance, 'state' | 'vm'>): boolean => isLive(state) || vm !== undefined

/** What a machine takes while it runs. Pure. */
export const demandOf = ({
  vcpus,
  memoryBytes,
  hotplugBytes,
  diskIoBps = 0,
}: Pick<Instance, 'vcpus' | 'memoryBytes' | 'hotplugBytes' | 'diskIoBps'>): Demand => ({
  ...NOTHING,
  vcpus,
  memoryBytes: memoryBytes + hotplugBytes,
  diskIoBps,
})

/** Overlays are sparse and fill as guests write; below this nothing new is begun, so that those that run keep room. */
export const DISK_RESERVE = 512 << 20

/** In the order in which they are looked at. */
const RESOURCES = [
  ['vcpus', 'CPU', (count: number) => `${Math.floor(count)}`, (count: number) => `${count} vCPUs`],
  ['memoryBytes', 'memory', (bytes: number) => mib(bytes), undefined],
  ['diskBytes', 'disk', (bytes: number) => mib(bytes), undefined],
  ['diskIoBps', 'disk I/O', (rate: number) => formatRate(Math.floor(rate / 2 ** 20) * 2 ** 20), undefined],
] as const

/**
 * Throws `insufficient_resources` naming the first thing that is short: what was asked for, what is free, of how much, and how that
 * comes of what the host has. Pure; `taken` counts what runs and what is about to.
 */
export function admitDemand(what: string, demand: Demand, taken: Demand, capacity: Capacity): void {
  for (const [name, of, show, ask = show] of RESOURCES) {
    const room = capacity[name]
    if (room === undefined || demand[name] === 0) continue
    const limit = room.host * room.ratio
    const free = Math.max(0, limit - taken[name])
    // Whole vCPUs are given out.
    if (demand[name] <= (name === 'vcpus' ? Math.floor(free) : free)) continue
    const whole = room.ratio === 1 ? show(limit) : `${show(limit)} (${show(room.host)} × ${room.ratio})`
    throw shortage(`There is not enough ${of} for ${what}: it needs ${ask(demand[name])}, ${show(free)} of ${whole} is left`, {
      ...{ resource: name, asked: demand[name], free, limit, ratio: room.ratio },
    })
  }
  if (capacity.diskFreeBytes < DISK_RESERVE) {
    const { diskFreeBytes: free } = capacity
    throw shortage(
      `There is not enough disk space for ${what}: it needs ${mib(DISK_RESERVE)}, ${mib(free)} of the data directory is left`,
      { resource: 'diskFreeBytes', asked: DISK_RESERVE, free },
    )
  }
}

const shortage = (message: string, detail: Readonly<Record<string, unknown>>): AppError =>
  new AppError('insufficient_resources', message, {
    hint: 'Stop or remove other instances, ask for less, or raise the oversubscription ratios',
    detail,
  })

const mib = (bytes: number): string => formatSize(Math.floor(bytes / 2 ** 20) * 2 ** 20)
