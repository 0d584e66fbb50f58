import { AppError } from '@dormouse/api/errors.ts'
import type { SetSnapshotScheduleRequest } from '@dormouse/api/schedules.ts'
import { parseDuration } from '@dormouse/api/units.ts'
import type { SetSchedule } from '../schedules/schedules.ts'

const SHORTEST_MS = 60_000

/** What callers write, as the schedules room takes it: whole milliseconds, upwards. */
export function toSetSchedule({ interval, retention, name_prefix, metadata }: SetSnapshotScheduleRequest): SetSchedule {
  const intervalMs = durationOf('interval', interval)
  if (intervalMs < SHORTEST_MS) throw wrong('interval', interval, 'a duration of at least 1m')
  const { max_count: maxCount = 0, max_age } = retention
  const maxAgeMs = max_age === undefined ? 0 : durationOf('retention.max_age', max_age)
  if (maxCount === 0 && maxAgeMs === 0) {
    throw new AppError('invalid_request', '`retention` keeps everything for ever: give `max_count`, `max_age` or both, above 0')
  }
  return {
    intervalMs,
    retention: { maxCount, ...(maxAgeMs > 0 && { maxAgeMs }) },
    ...(typeof name_prefix === 'string' && { namePrefix: name_prefix }),
    metadata: metadata ?? {},
  }
}

function durationOf(field: string, text: string): number {
  const ms = parseDuration(text)
  if (ms === undefined || ms < 0) throw wrong(field, text, 'a duration such as 90m, 24h or 1h30m')
  return Math.ceil(ms)
}

const wrong = (field: string, text: string, what: string): AppError =>
  new AppError('invalid_request', `\`${field}\` is ${JSON.stringify(text)}, but must be ${what}`)
