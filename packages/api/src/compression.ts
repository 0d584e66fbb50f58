/** How the memory of a sleeping instance is compressed: the algorithms and their levels. */
import type { Static } from 'typebox'
import type { SnapshotCompression } from './instances.ts'

export interface Compression {
  readonly algorithm: 'zstd' | 'lz4'
  readonly level: number
}

const LEVELS = { zstd: { least: 1, most: 19, usual: 1 }, lz4: { least: 0, most: 9, usual: 0 } } as const

/** What was asked for, its defaults filled in; `off` when it is asked that nothing be compressed. */
export function compressionOf({ enabled, algorithm = 'zstd', level }: Static<typeof SnapshotCompression>): Compression | 'off' {
  return enabled ? { algorithm, level: level ?? LEVELS[algorithm].usual } : 'off'
}

/** Why there is no such compression, as in "is 20, but …"; undefined when there is. */
export function wrongLevelOf({ algorithm, level }: Compression): string | undefined {
  const { least, most } = LEVELS[algorithm]
  return Number.isInteger(level) && level >= least && level <= most ? undefined : `is ${level}, but ${algorithm} takes ${least} to ${most}`
}
