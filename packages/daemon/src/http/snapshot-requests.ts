import { type Compression, compressionOf, wrongLevelOf } from '@dormouse/api/compression.ts'
import { AppError } from '@dormouse/api/errors.ts'
import type { Snapshot as Shown } from '@dormouse/api/snapshots.ts'
import { parseDuration } from '@dormouse/api/units.ts'

type Asked = NonNullable<Shown['compression']>

/** Undefined when the request does not say. Throws `invalid_snapshot_compression`. */
export function toCompression(asked: Asked | undefined, kind: 'Standby' | 'Stopped'): Compression | 'off' | undefined {
  const compression = asked && compressionOf(asked)
  if (compression === undefined || compression === 'off') return compression
  if (kind === 'Stopped') {
    throw new AppError('invalid_snapshot_compression', 'A snapshot of the kind Stopped has no memory to compress')
  }
  const wrong = wrongLevelOf(compression)
  if (wrong !== undefined) throw new AppError('invalid_snapshot_compression', `\`compression.level\` ${wrong}`)
  return compression
}

/** Milliseconds; undefined when it is not asked for. Throws `invalid_compression_delay`. */
export function toCompressionDelay(asked: string | undefined): number | undefined {
  if (asked === undefined || asked === '') return undefined
  const ms = parseDuration(asked)
  if (ms !== undefined && ms >= 0) return Math.ceil(ms)
  throw new AppError('invalid_compression_delay', `\`compression_delay\` is ${JSON.stringify(asked)}, but must be a duration such as 30s`)
}
