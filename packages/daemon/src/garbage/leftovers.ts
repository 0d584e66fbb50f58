/**
 * What a daemon began to make and did not: drafts, and files that no row names. The start of the daemon removes what its predecessor left;
 * this finds what was left since, where a failure could not be cleared away either. Who makes something writes to it, so what no one has
 * written to for a day is no one's.
 */
import { rm } from 'node:fs/promises'
import { join, relative } from 'node:path'
import { changedAtMs, DiskBlocks, namesIn } from '../host/disk-blocks.ts'
import type { Paths } from '../paths.ts'
import type { Collected, CollectFiles } from './collected.ts'

/** The longest that anything is made without a byte being written. */
export const QUIET_MS = 24 * 3_600_000

/** What rows name. */
export interface Named {
  /** By id, the sleeping state that counts. */
  readonly sleeps: ReadonlyMap<string, string | undefined>
  /** Directories. */
  readonly snapshots: ReadonlySet<string>
  readonly layers: { has(name: string): boolean }
}

export interface LeftoversUses {
  readonly paths: Paths
  /** Asked anew before anything is removed. */
  readonly named: () => Named
}

interface Place {
  readonly dir: string
  readonly isOwned: (name: string, named: Named) => boolean
}

export async function collectLeftovers(
  { paths, named }: LeftoversUses,
  { olderThanMs, dryRun, signal, nowMs }: CollectFiles,
): Promise<Collected> {
  const names: string[] = []
  let bytes = 0
  const first = named()
  for (const { dir, isOwned } of placesOf(paths, first)) {
    for (const name of await namesIn(dir)) {
      signal.throwIfAborted()
      if (isOwned(name, first)) continue
      const path = join(dir, name)
      const changed = await changedAtMs(path)
      if (changed === undefined || nowMs - changed < Math.max(QUIET_MS, olderThanMs)) continue
      const own = await new DiskBlocks().of(path)
      // Looking took its time.
      if (isOwned(name, named())) continue
      if (!dryRun) await rm(path, { recursive: true, force: true })
      names.push(relative(paths.dataDir, path))
      bytes += own.bytes
    }
  }
  return { names, bytes }
}

/** Where drafts lie that are no room's own to look after: those of memory are. */
function placesOf(paths: Paths, { sleeps }: Named): Place[] {
  // As files are written atomically: see host/files.ts.
  const isWhole = (name: string): boolean => !/\.[0-9a-f]{12}\.draft$/.test(name)
  return [
    { dir: paths.dataDir, isOwned: isWhole },
    { dir: paths.cacheDir, isOwned: isWhole },
    { dir: paths.imageDraftsDir, isOwned: () => false },
    { dir: paths.diskTemplatesDir, isOwned: (name) => !name.startsWith('draft-') },
    { dir: paths.pointsDir, isOwned: () => false },
    { dir: paths.snapshotsDir, isOwned: (name, { snapshots }) => snapshots.has(join(paths.snapshotsDir, name)) },
    { dir: paths.disksDir, isOwned: (name, { layers }) => layers.has(name) },
    { dir: paths.instancesDir, isOwned: (name, now) => now.sleeps.has(name) },
    ...[...sleeps.keys()].map((id) => ({
      dir: paths.instanceSleepDir(id),
      // One that is gone takes its directory along itself.
      isOwned: (name: string, now: Named) => !now.sleeps.has(id) || now.sleeps.get(id) === name,
    })),
  ]
}
