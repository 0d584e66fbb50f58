/**
 * What takes how much of the disk, by kind: blocks that are really there, each counted once. It is looked at file by file, off the event
 * loop; what comes or goes meanwhile is counted as it is met. Blocks that a file system shares between files (reflinks) count in each:
 * nothing tells of them.
 */
import { statfs } from 'node:fs/promises'
import { join } from 'node:path'
import type { DiskKind } from '@dormouse/api/garbage.ts'
import { changedAtMs, DiskBlocks, namesIn } from '../host/disk-blocks.ts'
import type { GarbageUses } from './garbage.ts'
import { QUIET_MS } from './leftovers.ts'
import { isOldLog } from './old-logs.ts'

export interface KindUsage {
  readonly kind: DiskKind
  readonly partOf?: 'images'
  readonly count: number
  readonly inUse: number
  readonly bytes: number
  readonly sharedBytes: number
  readonly reclaimableBytes: number
}

export interface DiskUsageReport {
  readonly totalBytes: number
  readonly freeBytes: number
  readonly kinds: readonly KindUsage[]
  readonly measuredAtMs: number
}

type Counted = Omit<KindUsage, 'kind' | 'partOf'>
type Counter = { -readonly [K in keyof Counted]: Counted[K] }

const nothing = (): Counter => ({ count: 0, inUse: 0, bytes: 0, sharedBytes: 0, reclaimableBytes: 0 })

export async function measureDisk(uses: GarbageUses, nowMs: number): Promise<DiskUsageReport> {
  const { paths, images } = uses
  const { blocks, bavail, bsize } = await statfs(paths.dataDir)
  const met = new DiskBlocks()
  const { images: whole, layers, rootfs } = await images.diskUsage()
  const memory = await memoryOf(uses)
  const sleeping = await sleepingOf(uses, met)
  const disks = await disksOf(uses, met)
  const kinds: KindUsage[] = [
    { kind: 'images', ...whole },
    { kind: 'layers', partOf: 'images', ...layers },
    { kind: 'rootfs', partOf: 'images', ...rootfs },
    { kind: 'golden_boots', ...memory.golden },
    { kind: 'memory_bases', ...memory.bases },
    { kind: 'deltas', ...sleeping.deltas },
    { kind: 'overlays', ...disks.overlay },
    { kind: 'volumes', ...disks.volume },
    { kind: 'snapshots', ...(await snapshotsOf(uses, met, disks.snapshot)) },
    { kind: 'logs', ...sleeping.logs },
    { kind: 'drafts', ...(await draftsOf(uses, met, nowMs)) },
    { kind: 'other', ...(await otherOf(uses, met)) },
  ]
  return { totalBytes: blocks * bsize, freeBytes: bavail * bsize, kinds, measuredAtMs: Date.now() }
}

async function memoryOf({ memory, instances, snapshots }: GarbageUses): Promise<{ golden: Counted; bases: Counted }> {
  const users = new Map<string, number>()
  for (const base of [
    ...instances.list().flatMap(({ vm, sleep }) => [vm?.machine?.base, sleep?.base]),
    ...snapshots.list().map(({ base }) => base),
  ]) {
    if (base !== undefined) users.set(base, (users.get(base) ?? 0) + 1)
  }
  const counted = { golden: nothing(), bases: nothing() }
  for (const { ref, bytes, isNeeded } of await memory.list()) {
    const of = counted[ref.startsWith('golden/') ? 'golden' : 'bases']
    of.count++
    of.bytes += bytes
    if (isNeeded) of.inUse++
    else of.reclaimableBytes += bytes
    if ((users.get(ref) ?? 0) > 1) of.sharedBytes += bytes
  }
  return counted
}

/** Sleeping states, and logs: what lies in the directories of instances. */
async function sleepingOf({ paths, instances }: GarbageUses, met: DiskBlocks): Promise<{ deltas: Counted; logs: Counted }> {
  const [deltas, logs] = [nothing(), nothing()]
  for (const { id, sleep } of instances.list()) {
    if (sleep !== undefined) {
      deltas.count++
      deltas.inUse++
    }
    const { bytes, sharedBytes } = await met.of(paths.instanceSleepDir(id))
    deltas.bytes += bytes
    deltas.sharedBytes += sharedBytes
    const dir = paths.instanceLogsDir(id)
    for (const name of await namesIn(dir)) {
      const log = await met.of(join(dir, name))
      logs.count++
      logs.bytes += log.bytes
      if (isOldLog(name)) logs.reclaimableBytes += log.bytes
      else logs.inUse++
    }
  }
  return { deltas, logs }
}

async function disksOf({ paths, layers, instances, volumes }: GarbageUses, met: DiskBlocks) {
  const counted = { overlay: nothing(), volume: nothing(), snapshot: nothing() }
  const uses = layers.uses()
  for (const name of await namesIn(paths.disksDir)) {
    const use = uses.get(name)
    // One that no row names is a draft, or about to be named.
    if (use === undefined) continue
    const { bytes } = await met.of(paths.disk(name))
    counted[use.kind].bytes += bytes
    if (use.users > 1) counted[use.kind].sharedBytes += bytes
  }
  counted.overlay.count = counted.overlay.inUse = instances.list().length
  const all = volumes.list()
  const attached = new Set(instances.list().flatMap((instance) => instance.volumes.map(({ volumeId }) => volumeId)))
  counted.volume.count = all.length
  counted.volume.inUse = attached.size
  return counted
}

/** Their memories; and of disks what nothing else stands on any more. */
async function snapshotsOf({ paths, snapshots }: GarbageUses, met: DiskBlocks, disks: Counted): Promise<Counted> {
  const counted = { ...disks }
  for (const { id, generation } of snapshots.list()) {
    const { bytes, sharedBytes } = await met.of(paths.snapshotDir(id, generation))
    counted.count++
    counted.inUse++
    counted.bytes += bytes
    counted.sharedBytes += sharedBytes
  }
  return counted
}

async function draftsOf({ paths, layers, snapshots }: GarbageUses, met: DiskBlocks, nowMs: number): Promise<Counted> {
  const counted = nothing()
  const kept = new Set(snapshots.list().map(({ id, generation }) => paths.snapshotDir(id, generation)))
  const uses = layers.uses()
  const drafts: string[] = []
  for (const dir of [paths.imageDraftsDir, paths.pointsDir]) for (const name of await namesIn(dir)) drafts.push(join(dir, name))
  for (const name of await namesIn(paths.snapshotsDir)) {
    if (!kept.has(join(paths.snapshotsDir, name))) drafts.push(join(paths.snapshotsDir, name))
  }
  for (const name of await namesIn(paths.disksDir)) if (!uses.has(name)) drafts.push(paths.disk(name))
  for (const path of drafts) {
    const { bytes } = await met.of(path)
    const isOld = nowMs - ((await changedAtMs(path)) ?? nowMs) >= QUIET_MS
    counted.count++
    counted.bytes += bytes
    if (isOld) counted.reclaimableBytes += bytes
    else counted.inUse++
  }
  return counted
}

/** The database, the ballast, and what was learned of the host. */
async function otherOf({ paths }: GarbageUses, met: DiskBlocks): Promise<Counted> {
  const counted = nothing()
  for (const path of [paths.database, `${paths.database}-wal`, `${paths.database}-shm`, paths.ballast, paths.cacheDir]) {
    const { bytes } = await met.of(path)
    counted.count++
    counted.inUse++
    counted.bytes += bytes
  }
  return counted
}
