/** Policies towards the API, and what has become of them. What was left out is told as what it then is. */
import type { Instance as Shown } from '@dormouse/api/instances.ts'
import { formatDuration } from '@dormouse/api/units.ts'
import type { HealthCheck, RestartPolicy } from '../instances/instance.ts'
import type { Attention, HealthStatus, RestartStatus } from '../supervision/supervision.ts'

const isoOrNull = (ms: number | undefined): string | null => (ms === undefined ? null : new Date(ms).toISOString())

export const presentHealthCheck = ({ probe, ...check }: HealthCheck): NonNullable<Shown['health_check']> => ({
  type: probe.kind,
  interval: formatDuration(check.intervalMs),
  timeout: formatDuration(check.timeoutMs),
  start_period: formatDuration(check.startPeriodMs),
  failure_threshold: check.failureThreshold,
  success_threshold: check.successThreshold,
  ...(probe.kind === 'http' && {
    http: { port: probe.port, path: probe.path, scheme: probe.scheme, expected_status: probe.expectedStatus },
  }),
  ...(probe.kind === 'tcp' && { tcp: { port: probe.port } }),
  ...(probe.kind === 'exec' && {
    exec: { command: [...probe.command], ...(probe.workingDir !== undefined && { working_dir: probe.workingDir }) },
  }),
})

export const presentRestartPolicy = (policy: RestartPolicy): NonNullable<Shown['restart_policy']> => ({
  policy: policy.policy,
  backoff: formatDuration(policy.backoffMs),
  max_attempts: policy.maxAttempts,
  stable_after: formatDuration(policy.stableAfterMs),
})

export const presentAttention = ({ health, restart }: Attention): Pick<Shown, 'health_status' | 'restart_status'> => ({
  ...(health !== undefined && { health_status: presentHealthStatus(health) }),
  ...(restart !== undefined && { restart_status: presentRestartStatus(restart) }),
})

const presentRestartStatus = (status: RestartStatus): NonNullable<Shown['restart_status']> => ({
  attempts: status.attempts,
  last_attempt_at: isoOrNull(status.lastAttemptAtMs),
  next_attempt_at: isoOrNull(status.nextAttemptAtMs),
  blocked_reason: status.blockedReason ?? null,
  last_reason: status.lastReason ?? null,
})

const presentHealthStatus = (health: HealthStatus): NonNullable<Shown['health_status']> => ({
  status: health.status,
  consecutive_successes: health.successes,
  consecutive_failures: health.failures,
  last_checked_at: isoOrNull(health.lastCheckedAtMs),
  last_success_at: isoOrNull(health.lastSuccessAtMs),
  last_failure_at: isoOrNull(health.lastFailureAtMs),
  last_error: health.lastError ?? null,
})
