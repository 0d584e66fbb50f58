import type { Database } from './database.ts'
import type { HealthCheck, InstanceId } from './instance-record.ts'

/** What the checks of an instance have found since it is Running. */
export interface HealthVerdict {
  readonly status: 'starting' | 'healthy' | 'unhealthy'
  /** In a row. */
  readonly successes: number
  readonly failures: number
  readonly lastCheckedAtMs?: number
  readonly lastSuccessAtMs?: number
  readonly lastFailureAtMs?: number
  /** Of the last check, when it failed. */
  readonly lastError?: string
  readonly unhealthySinceMs?: number
}

/** What a verdict is of: another check, or another life, has none of it. */
export interface Window {
  readonly instanceId: InstanceId
  readonly runningSinceMs: number
  readonly check: HealthCheck
}

/** The rows of `health_verdicts`. Each goes with its instance. */
export class HealthVerdictRows {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  /** Writes over what is there of the instance. */
  put({ instanceId, runningSinceMs, check }: Window, verdict: HealthVerdict): void {
    this.#db
      .prepare('INSERT OR REPLACE INTO health_verdicts (instance_id, running_since_ms, health_check, verdict) VALUES (?, ?, ?, ?)')
      .run(instanceId, runningSinceMs, JSON.stringify(check), JSON.stringify(verdict))
  }

  find({ instanceId, runningSinceMs, check }: Window): HealthVerdict | undefined {
    const row = this.#db
      .prepare('SELECT verdict FROM health_verdicts WHERE instance_id = ? AND running_since_ms = ? AND health_check = ?')
      .get(instanceId, runningSinceMs, JSON.stringify(check))
    return row === undefined ? undefined : (JSON.parse(String(row.verdict)) as HealthVerdict)
  }
}
