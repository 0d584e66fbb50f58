import type { HealthCheck } from '../instances/instance.ts'
import type { HealthVerdict } from '../store/health-verdicts.ts'

/** How a check ended. */
export type CheckResult =
  | { readonly kind: 'success' }
  | { readonly kind: 'failure'; readonly error: string }
  /** It says nothing of the workload: the guest could not be asked this, or not now. */
  | { readonly kind: 'inconclusive'; readonly error: string }

/** Nothing has been found yet. */
export const UNTRIED: HealthVerdict = { status: 'starting', successes: 0, failures: 0 }

export interface JudgedAt {
  readonly nowMs: number
  readonly isStarting: boolean
}

/** What is to be thought of it after one more check. Pure. */
export function judge(
  before: HealthVerdict,
  result: CheckResult,
  { failureThreshold, successThreshold }: Pick<HealthCheck, 'failureThreshold' | 'successThreshold'>,
  { nowMs, isStarting }: JudgedAt,
): HealthVerdict {
  const { lastError: _last, unhealthySinceMs, ...rest } = before
  switch (result.kind) {
    case 'success': {
      const successes = before.successes + 1
      const isWell = successes >= successThreshold
      return {
        ...{ ...rest, successes, failures: 0, lastCheckedAtMs: nowMs, lastSuccessAtMs: nowMs },
        ...(isWell && { status: 'healthy' }),
        ...(!isWell && unhealthySinceMs !== undefined && { unhealthySinceMs }),
      }
    }
    case 'failure': {
      const failures = isStarting ? before.failures : before.failures + 1
      const isUnwell = failures >= failureThreshold
      return {
        ...{ ...rest, successes: 0, failures, lastCheckedAtMs: nowMs, lastFailureAtMs: nowMs, lastError: result.error },
        ...(isUnwell && { status: 'unhealthy', unhealthySinceMs: unhealthySinceMs ?? nowMs }),
        ...(!isUnwell && unhealthySinceMs !== undefined && { unhealthySinceMs }),
      }
    }
    case 'inconclusive':
      return { ...before, lastError: result.error }
  }
}
