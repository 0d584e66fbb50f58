import type { AutoStandbyPolicy as ShownPolicy, AutoStandbyStatus as ShownStatus } from '@dormouse/api/instances.ts'
import { formatDuration } from '@dormouse/api/units.ts'
import type { AutoStandbyStatus } from '../auto-standby/auto-standby.ts'
import type { AutoStandbyPolicy } from '../instances/instance.ts'

/** A policy towards the API, with what was left out. */
export const presentAutoStandbyPolicy = ({ enabled, idleTimeoutMs, ignoreSources, ignorePorts }: AutoStandbyPolicy): ShownPolicy => ({
  enabled,
  ...(idleTimeoutMs !== undefined && { idle_timeout: formatDuration(idleTimeoutMs) }),
  ignore_source_cidrs: [...ignoreSources],
  ignore_destination_ports: [...ignorePorts],
})

export const presentAutoStandbyStatus = (status: AutoStandbyStatus): ShownStatus => ({
  supported: status.isSupported,
  configured: status.policy !== undefined,
  enabled: status.policy?.enabled ?? false,
  eligible: status.isEligible,
  status: status.status,
  reason: status.reason,
  active_inbound_connections: status.active,
  tracking_mode: status.trackingMode,
  idle_timeout: status.policy?.idleTimeoutMs === undefined ? null : formatDuration(status.policy.idleTimeoutMs),
  idle_since: isoOrNull(status.idleSinceMs),
  last_inbound_activity_at: isoOrNull(status.lastActivityMs),
  next_standby_at: isoOrNull(status.napAtMs),
  hold_until: isoOrNull(status.holdUntilMs),
  countdown_remaining: status.remainingMs === undefined ? null : formatDuration(status.remainingMs),
  last_error: status.lastError ?? null,
})

const isoOrNull = (ms: number | undefined): string | null => (ms === undefined ? null : new Date(ms).toISOString())
