/** Policies towards the API, and what has become of them. What was left out is told as what it then is. */
import type { Instance as Shown } from '@dormouse/api/instances.ts'
import { formatDuration } from '@dormouse/api/units.ts'
import type { RestartPolicy } from '../instances/instance.ts'
import type { Attention, RestartStatus } from '../supervision/supervision.ts'

const isoOrNull = (ms: number | undefined): string | null => (ms === undefined ? null : new Date(ms).toISOString())

export const presentRestartPolicy = (policy: RestartPolicy): NonNullable<Shown['restart_policy']> => ({
  policy: policy.policy,
  backoff: formatDuration(policy.backoffMs),
  max_attempts: policy.maxAttempts,
  stable_after: formatDuration(policy.stableAfterMs),
})

export const presentAttention = ({ restart }: Attention): Pick<Shown, 'restart_status'> => ({
  ...(restart !== undefined && { restart_status: presentRestartStatus(restart) }),
})

const presentRestartStatus = (status: RestartStatus): NonNullable<Shown['restart_status']> => ({
  attempts: status.attempts,
  last_attempt_at: isoOrNull(status.lastAttemptAtMs),
  next_attempt_at: isoOrNull(status.nextAttemptAtMs),
  blocked_reason: status.blockedReason ?? null,
  last_reason: status.lastReason ?? null,
})
