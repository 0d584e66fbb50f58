/** Small values of the command line. What the API judges better (names, limits) is left to it. */
import { parseDuration, parseSize } from '@dormouse/api/units.ts'
import { usageFailure } from '../failure.ts'

/** For options that may be given more than once. */
export const collect = (value: string, previous: readonly string[] = []): string[] => [...previous, value]

/** `key=value` pairs; undefined when there are none. */
export function parseTags(specs: readonly string[]): Record<string, string> | undefined {
  if (specs.length === 0) return undefined
  return Object.fromEntries(
    specs.map((spec) => {
      const equals = spec.indexOf('=')
      if (equals < 1) throw usageFailure(`The tag ${JSON.stringify(spec)} is not key=value`)
      return [spec.slice(0, equals), spec.slice(equals + 1)]
    }),
  )
}

/** A size such as `512m` or `1.5GB`, in the form the API takes. A bare number is bytes, as everywhere. */
export function parseSizeOption(text: string): string {
  if (parseSize(text) === undefined) throw usageFailure(`${JSON.stringify(text)} is not a size`, 'Write it as 512m, 2g or 1.5GB')
  return text.trim()
}

const GIB = 2 ** 30

/** Whole GB of a size, upwards: volumes come in no other. */
export function parseGigabytes(text: string): number {
  const bytes = parseSize(text)
  if (bytes === undefined || bytes <= 0) throw usageFailure(`${JSON.stringify(text)} is not a size`, 'Write it as 10g')
  return Math.ceil(bytes / GIB)
}

/** Milliseconds of `90s`, `1h30m`, `7d`, `2w`; a bare number is seconds, as Docker and systemd take it. */
export function parseDurationOption(text: string): number {
  const inHours = text.replaceAll(/(\d+(?:\.\d+)?)([dw])/g, (_, amount, unit) => `${Number(amount) * (unit === 'd' ? 24 : 168)}h`)
  const ms = /^\d+(\.\d+)?$/.test(text) ? Number(text) * 1000 : parseDuration(inHours)
  if (ms === undefined || ms < 0 || !Number.isFinite(ms)) {
    throw usageFailure(`${JSON.stringify(text)} is not a duration`, 'Write it as 30s, 5m, 1h30m or 7d')
  }
  return ms
}

export function parseCount(text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 1) throw usageFailure(`${JSON.stringify(text)} is not a whole number above 0`)
  return value
}

// The API gives no more.
const TAIL_MAX = 100_000

/** How many log lines: a number, or `all`. */
export function parseTail(text: string): number {
  if (text === 'all') return TAIL_MAX
  const value = Number(text)
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value))
    throw usageFailure(`${JSON.stringify(text)} is not a number of lines`, 'Give a number, or all')
  return Math.min(value, TAIL_MAX)
}

/** One of `choices`, whatever its case: `running` is `Running`. */
export function parseChoice<Choice extends string>(text: string, choices: readonly Choice[], what: string): Choice {
  const found = choices.find((choice) => choice.toLowerCase() === text.toLowerCase())
  if (found === undefined) throw usageFailure(`${JSON.stringify(text)} is not a ${what}`, `Give one of: ${choices.join(', ')}`)
  return found
}
