import { usageFailure } from '../failure.ts'

/** `zstd`, `zstd:3`, `lz4:0`, or `off` whatever the policy says. The daemon knows which levels there are. */
export function parseCompression(text: string): { enabled: boolean; algorithm?: 'zstd' | 'lz4'; level?: number } {
  if (text === 'off') return { enabled: false }
  const match = /^(zstd|lz4)(?::(\d{1,3}))?$/.exec(text)
  if (!match) throw usageFailure(`${JSON.stringify(text)} is no compression`, 'Write it as zstd, zstd:3, lz4 or off')
  const algorithm = match[1] === 'lz4' ? 'lz4' : 'zstd'
  return { enabled: true, algorithm, ...(match[2] !== undefined && { level: Number(match[2]) }) }
}
