import { AppError } from '@dormouse/api/errors.ts'
import type { Snapshot as Shown } from '@dormouse/api/snapshots.ts'
import { parseDuration } from '@dormouse/api/units.ts'

export interface Compression {
  readonly algorithm: 'zstd' | 'lz4'
  readonly level: number
}

type Asked = NonNullable<Shown['compression']>

const LEVELS = { zstd: { least: 1, most: 19, usual: 1 }, lz4: { least: 0, most: 9, usual: 0 } } as const

/** Undefined when it is not asked for. Throws `invalid_snapshot_compression`. */
export function toCompression(asked: Asked | undefined, kind: 'Standby' | 'Stopped'): Compression | undefined {
  if (asked?.enabled !== true) return undefined
  if (kind === 'Stopped') {
    throw new AppError('invalid_snapshot_compression', 'A snapshot of the kind Stopped has no memory to compress')
  }
  const { algorithm = 'zstd' } = asked
  const { least, most, usual } = LEVELS[algorithm]
  const { level = usual } = asked
  if (!Number.isInteger(level) || level < least || level > most) {
    throw new AppError('invalid_snapshot_compression', `\`compression.level\` is ${level}, but ${algorithm} takes ${least} to ${most}`)
  }
  return { algorithm, level }
}

/** Milliseconds; undefined when it is not asked for. Throws `invalid_compression_delay`. */
export function toCompressionDelay(asked: string | undefined): number | undefined {
  if (asked === undefined || asked === '') return undefined
  const ms = parseDuration(asked)
  if (ms !== undefined && ms >= 0) return Math.ceil(ms)
  throw new AppError('invalid_compression_delay', `\`compression_delay\` is ${JSON.stringify(asked)}, but must be a duration such as 30s`)
}
