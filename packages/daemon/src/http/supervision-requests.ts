/** Policies as requests write them, with what is left out filled in. Their texts have been checked. */
import type { HealthCheck as AskedCheck, RestartPolicy as AskedPolicy } from '@dormouse/api/instances.ts'
import { parseDuration } from '@dormouse/api/units.ts'
import type { HealthCheck, HealthProbe, RestartPolicy } from '../instances/instance.ts'

const ms = (text: string | undefined, otherwise: string): number => Math.ceil(parseDuration(text ?? otherwise) ?? 0)

export const toRestartPolicy = ({ policy = 'never', backoff, max_attempts = 0, stable_after }: AskedPolicy): RestartPolicy => ({
  policy,
  backoffMs: ms(backoff, '5s'),
  maxAttempts: max_attempts,
  stableAfterMs: ms(stable_after, '10m'),
})

// What is still being waited for then is no check.
const TIMEOUT_MAX_MS = 3_600_000

export const toHealthCheck = (check: AskedCheck): HealthCheck => ({
  probe: toProbe(check),
  intervalMs: ms(check.interval, '10s'),
  timeoutMs: Math.min(TIMEOUT_MAX_MS, Math.max(1, ms(check.timeout, '2s'))),
  startPeriodMs: ms(check.start_period, '30s'),
  failureThreshold: check.failure_threshold ?? 3,
  successThreshold: check.success_threshold ?? 1,
})

/** What its type does not speak of is left out. */
function toProbe({ type = 'none', http, tcp, exec }: AskedCheck): HealthProbe {
  if (type === 'http' && http) {
    const { port, path = '/', scheme = 'http', expected_status: expectedStatus = 200 } = http
    return { kind: 'http', scheme, port, path, expectedStatus }
  }
  if (type === 'tcp' && tcp) return { kind: 'tcp', port: tcp.port }
  if (type === 'exec' && exec) {
    return { kind: 'exec', command: exec.command, ...(exec.working_dir !== undefined && { workingDir: exec.working_dir }) }
  }
  return { kind: 'none' }
}
