/**
 * What of the host is given out: what rows say, and beyond them what has been admitted and is not on record yet. To judge is to be quick,
 * so that nothing comes between a judgement and its record; the disk, which takes a while, is looked at before.
 */
import { statfs } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'
import { formatSize } from '@dormouse/api/units.ts'
import type { Config } from '../config/config.ts'
import type { Disks } from '../disks/disks.ts'
import type { HostFacts } from '../host/host-facts.ts'
import type { Images } from '../images/images.ts'
import type { LinkCapacity } from '../network/network.ts'
import type { InstanceRows } from '../store/instances.ts'
import type { Volumes } from '../volumes/volumes.ts'
import { admitDemand, type Demand, DISK_RESERVE, demandOf, NOTHING, takesMemory } from './admission.ts'
import type { Instance, InstanceId } from './instance.ts'
import { admitNetwork, networkDemandOf } from './network-admission.ts'
import type { AdmitAs } from './operations/fork.ts'

export interface HostRoomUses {
  readonly rows: InstanceRows
  readonly images: Pick<Images, 'usage'>
  readonly disks: Pick<Disks, 'frozenBytes'>
  readonly volumes: Pick<Volumes, 'demandBytes' | 'sizeBytes'>
  readonly dataDir: string
  readonly limits: Config['limits']
  readonly host: Pick<HostFacts, 'cpus' | 'memoryBytes'>
  readonly linkCapacity: () => LinkCapacity
  /** Frees what can be missed on the disk until `bytes` more are free, or says nothing. */
  readonly makeRoom?: (bytes: number) => Promise<void>
}

/** What the data directory's file system holds, as it was a moment ago. */
export interface DiskRoom {
  readonly totalBytes: number
  readonly freeBytes: number
  readonly imagesBytes: number
  /** Of layers that are shared or kept: they take what they have, and no more. */
  readonly frozenBytes: number
}

/** What it is about to be, `runs` when a VM of it will. */
type Becoming = Parameters<AdmitAs>[1]

export class HostRoom {
  readonly #uses: HostRoomUses
  /** What work that is under way has been admitted to; undefined until it has. */
  readonly #reserved = new Map<InstanceId, Becoming | undefined>()

  constructor(uses: HostRoomUses) {
    this.#uses = uses
  }

  /** What writable disks take of the host's: each up to its full size, and what they share once. */
  async diskBytes(): Promise<number> {
    return this.#uses.rows.demand().overlayBytes + (await this.#uses.disks.frozenBytes())
  }

  /** Memory that is given to no instance, oversubscription included. */
  memoryRoom(): number {
    const { host, limits } = this.#uses
    return host.memoryBytes * limits.memoryRatio - this.#taken().memoryBytes
  }

  /** As the disk is now; when it is short, after room was made. */
  async look(): Promise<DiskRoom> {
    const room = await this.#look()
    const { makeRoom } = this.#uses
    if (room.freeBytes >= DISK_RESERVE || makeRoom === undefined) return room
    // Before anything is refused for want of room.
    await makeRoom(DISK_RESERVE - room.freeBytes)
    return this.#look()
  }

  async #look(): Promise<DiskRoom> {
    const { images, disks, dataDir } = this.#uses
    const [{ blocks, bavail, bsize }, imagesBytes, frozenBytes] = await Promise.all([statfs(dataDir), images.usage(), disks.frozenBytes()])
    return { totalBytes: blocks * bsize, freeBytes: bavail * bsize, imagesBytes, frozenBytes }
  }

  /** Throws `insufficient_resources`. `by` is whose demand it is, when its processors and memory may be among those that are taken. */
  admit(name: string, demand: Demand, room: DiskRoom, by?: Instance): void {
    const { limits, host } = this.#uses
    const taken = this.#taken(by)
    const own = by !== undefined && takesMemory(by) ? demandOf(by) : NOTHING
    admitDemand(
      name,
      demand,
      {
        vcpus: taken.vcpus - own.vcpus,
        memoryBytes: taken.memoryBytes - own.memoryBytes,
        diskBytes: taken.overlayBytes + this.#uses.volumes.demandBytes() + room.frozenBytes + room.imagesBytes,
        diskIoBps: taken.diskIoBps - own.diskIoBps,
      },
      {
        vcpus: { host: host.cpus, ratio: limits.cpuRatio },
        memoryBytes: { host: host.memoryBytes, ratio: limits.memoryRatio },
        diskBytes: { host: room.totalBytes, ratio: limits.diskRatio },
        ...(limits.diskIoBps === 0 ? {} : { diskIoBps: { host: limits.diskIoBps, ratio: limits.diskIoRatio } }),
        diskFreeBytes: room.freeBytes,
      },
    )
  }

  /** Throws `insufficient_resources`. `by` is whose it is, when its share may be among what is taken. */
  admitNetwork(name: string, wanted: Pick<Instance['network'], 'bandwidthDownload' | 'bandwidthUpload'>, by?: Instance): void {
    const { rows, linkCapacity, limits } = this.#uses
    const isTaker = (one: Instance): boolean => takesMemory(one) || this.#reserved.get(one.id)?.runs === true
    const taken = rows.list().filter((one) => one.id !== by?.id && isTaker(one))
    const { bytesPerSecond } = linkCapacity()
    admitNetwork(
      name,
      networkDemandOf(wanted),
      taken.reduce((sum, { network }) => sum + networkDemandOf(network), 0),
      bytesPerSecond === undefined ? undefined : bytesPerSecond * limits.networkRatio,
    )
  }

  /** Looks at the disk; what it gives judges whether so many bytes more may be given out. Throws `insufficient_resources`. */
  async admitDisk(what: string, bytes: number): Promise<() => void> {
    const room = await this.look()
    return () => this.admit(what, { ...NOTHING, diskBytes: bytes }, room)
  }

  /** The same for what makes volumes larger, or more. */
  async admitVolume(what: string, bytes: number): Promise<() => void> {
    const judge = await this.admitDisk(what, bytes)
    return () => {
      this.assertVolumes(what, bytes)
      judge()
    }
  }

  /** Throws `insufficient_resources` when all volumes together would be larger than they may be. */
  assertVolumes(what: string, bytes: number): void {
    const { maxVolumesBytes } = this.#uses.limits
    if (maxVolumesBytes === undefined || bytes === 0) return
    const free = Math.max(0, maxVolumesBytes - this.#uses.volumes.sizeBytes())
    if (bytes <= free) return
    throw new AppError(
      'insufficient_resources',
      `Volumes may have ${formatSize(maxVolumesBytes)} together: ${formatSize(free)} is left, and ${what} needs ${formatSize(bytes)}`,
      {
        hint: 'Delete volumes, or have the limit raised (DORMOUSE_MAX_TOTAL_VOLUME_STORAGE)',
        detail: { resource: 'volumeBytes', asked: bytes, free, limit: maxVolumesBytes },
      },
    )
  }

  /** For one that becomes another than its record says: what it takes now makes room for what it will. */
  readonly admitAs: AdmitAs = async ({ instance }, then) => {
    const room = await this.look()
    const diskBytes = Math.max(0, then.overlayBytes - instance.overlayBytes)
    return () => {
      this.admit(instance.name, { ...(then.runs ? demandOf(then) : NOTHING), diskBytes }, room, instance)
      if (then.runs) this.admitNetwork(instance.name, instance.network, instance)
      // Until its row says so itself.
      if (this.#reserved.has(instance.id)) this.#reserved.set(instance.id, then)
    }
  }

  /** What is admitted within `work` counts from then on, although it is recorded later; `then` counts at once. */
  async reserving(id: InstanceId, work: () => Promise<void>, then?: Becoming): Promise<void> {
    this.#reserved.set(id, then ?? this.#reserved.get(id))
    try {
      await work()
    } finally {
      this.#reserved.delete(id)
    }
  }

  /** What rows say is taken, and beyond it what has been admitted and is not on record yet; but for `by`. */
  #taken(by?: Instance): ReturnType<InstanceRows['demand']> {
    let { vcpus, memoryBytes, overlayBytes, diskIoBps } = this.#uses.rows.demand()
    for (const [id, then] of this.#reserved) {
      const row = this.#uses.rows.find(id)
      if (then === undefined || row === undefined || id === by?.id) continue
      const now = takesMemory(row) ? demandOf(row) : NOTHING
      const more = then.runs ? demandOf(then) : NOTHING
      vcpus += Math.max(0, more.vcpus - now.vcpus)
      memoryBytes += Math.max(0, more.memoryBytes - now.memoryBytes)
      diskIoBps += Math.max(0, more.diskIoBps - now.diskIoBps)
      overlayBytes += Math.max(0, then.overlayBytes - row.overlayBytes)
    }
    return { vcpus, memoryBytes, overlayBytes, diskIoBps }
  }
}
