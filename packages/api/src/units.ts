/** Sizes, rates and durations as the API writes them. What is printed can be sent back. */

const UNITS = ['B', 'KB', 'MB', 'GB', 'TB', 'PB', 'EB'] as const
const SIZE = /^(\d+(?:\.\d+)?)\s*(b|[kmgtpe](?:i?b)?)?$/i
// 'Kb', 'Mb' .. are bits everywhere else; taking them for bytes would be off by eight.
const BITS = /\d\s*[KMGTPE]b$/

/** Bytes of `1GB`, `1.5 gib`, `512m`, `4096`, to the nearest whole one; units are powers of 1024. Undefined when it is no size, or one that a double cannot count. */
export function parseSize(text: string): number | undefined {
  const trimmed = text.trim()
  const match = SIZE.exec(trimmed)
  if (!match || BITS.test(trimmed)) return undefined
  const unit = (match[2] ?? 'b')[0]?.toUpperCase() ?? 'B'
  const bytes = Number(match[1]) * 1024 ** UNITS.findIndex((name) => name[0] === unit)
  const whole = Math.round(bytes)
  return Number.isSafeInteger(whole) ? whole : undefined
}

/** The largest unit in which `bytes` is a whole number: 1073741824 → `1GB`, 1610612736 → `1536MB`, 1 → `1B`. */
export function formatSize(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value !== 0 && value % 1024 === 0 && unit < UNITS.length - 1) {
    value /= 1024
    unit++
  }
  return `${value}${UNITS[unit]}`
}

const BIT_RATE = /^(\d+(?:\.\d+)?)\s*([kmg]?)bps$/

/** Bytes per second of `1Gbps` (decimal bits) or `125MB/s` (1024-based bytes). The text is lower-cased first, so `125Mb/s` is bytes. */
export function parseBandwidth(text: string): number | undefined {
  const lower = text.trim().toLowerCase()
  const bits = BIT_RATE.exec(lower)
  if (bits) {
    const bytes = Math.round((Number(bits[1]) * 1000 ** ' kmg'.indexOf(bits[2] || ' ')) / 8)
    return Number.isSafeInteger(bytes) ? bytes : undefined
  }
  return parseSize(lower.replace(/\/s$/, ''))
}

/** Bytes per second of `100MB/s`, `100MBps` or `100MB`. */
export const parseDiskRate = (text: string): number | undefined => parseSize(text.trim().replace(/(\/s|ps)$/i, ''))

export const formatRate = (bytesPerSecond: number): string => `${formatSize(bytesPerSecond)}/s`

/** As `parseBandwidth` reads it: whole units of bits where it is none of bytes, so that `10Mbps` is told as such. */
export function formatBandwidth(bytesPerSecond: number): string {
  const bits = bytesPerSecond * 8
  const unit = bytesPerSecond % 1024 === 0 ? undefined : (['G', 'M', 'K'] as const).find((one) => bits % BITS_OF[one] === 0)
  return unit === undefined ? formatRate(bytesPerSecond) : `${bits / BITS_OF[unit]}${unit}bps`
}

const BITS_OF = { G: 1e9, M: 1e6, K: 1e3 } as const

const DURATION_UNIT_MS: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3,
  μs: 1e-3,
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
}
const DURATION = /^([+-]?)((?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+$/
const DURATION_PART = /(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)/g

// Go counts nanoseconds in 64 bits: some 292 years.
const DURATION_MAX_MS = 9_223_372_036_854

/** Milliseconds of a Go duration (`300ms`, `1.5h`, `2h45m`, `0`). Undefined when it is none, or longer than Go's longest. Source: Go's time.ParseDuration. */
export function parseDuration(text: string): number | undefined {
  if (text === '0') return 0
  const match = DURATION.exec(text)
  if (!match) return undefined
  let ms = 0
  for (const [, amount, unit] of text.matchAll(DURATION_PART)) ms += Number(amount) * (DURATION_UNIT_MS[unit ?? ''] ?? Number.NaN)
  if (!(ms <= DURATION_MAX_MS)) return undefined
  return match[1] === '-' ? -ms : ms
}

/** A duration as Go prints it, to the microsecond: 300000 → `5m0s`, 1500 → `1.5s`, 250 → `250ms`, 0 → `0s`. */
export function formatDuration(ms: number): string {
  if (ms === 0) return '0s'
  if (ms < 0) return `-${formatDuration(-ms)}`
  if (ms < 1) return `${trim(ms * 1000)}µs`
  if (ms < 1000) return `${trim(ms)}ms`
  const hours = Math.floor(ms / 3_600_000)
  const minutes = Math.floor((ms % 3_600_000) / 60_000)
  const seconds = trim((ms % 60_000) / 1000)
  if (hours > 0) return `${hours}h${minutes}m${seconds}s`
  return minutes > 0 ? `${minutes}m${seconds}s` : `${seconds}s`
}

const trim = (value: number): string => String(Number(value.toFixed(6)))
