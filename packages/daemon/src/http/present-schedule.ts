import type { SnapshotSchedule as Shown } from '@dormouse/api/schedules.ts'
import { formatDuration } from '@dormouse/api/units.ts'
import type { SnapshotSchedule } from '../schedules/schedules.ts'

/** A schedule towards the API. What the contract lists as nullable is null when it does not apply. */
export function presentSchedule(schedule: SnapshotSchedule): Shown {
  const { maxCount, maxAgeMs } = schedule.retention
  return {
    instance_id: schedule.instanceId,
    interval: formatDuration(schedule.intervalMs),
    retention: { max_count: maxCount, ...(maxAgeMs !== undefined && { max_age: formatDuration(maxAgeMs) }) },
    name_prefix: schedule.namePrefix ?? null,
    metadata: schedule.metadata,
    next_run_at: iso(schedule.nextRunAtMs),
    last_run_at: schedule.lastRunAtMs === undefined ? null : iso(schedule.lastRunAtMs),
    last_snapshot_id: schedule.lastSnapshotId ?? null,
    last_error: schedule.lastError ?? null,
    created_at: iso(schedule.createdAtMs),
    updated_at: iso(schedule.updatedAtMs),
  }
}

const iso = (ms: number): string => new Date(ms).toISOString()
