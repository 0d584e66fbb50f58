/**
 * The room's head: looks after instances that no one is looking after. It follows what is on record of each, and asks for what follows of
 * it by the same door as everyone; the worker looks again before it does it.
 */
import type { OwnDoings } from '../audit/audit.ts'
import type { Events } from '../events/events.ts'
import type { Instance, InstanceId } from '../instances/instance.ts'
import type { Instances } from '../instances/instances.ts'
import { attemptsAt, restartOutlook } from '../instances/restart-policy.ts'
import { hostPassing, type Passing } from '../lib/agenda.ts'
import type { Logger } from '../log.ts'
import type { Database } from '../store/database.ts'
import { HealthChecks, type HealthStatus } from './health-checks.ts'
import { Restarts } from './restarts.ts'

export type { HealthStatus } from './health-checks.ts'

export interface SupervisionUses {
  readonly db: Database
  readonly instances: Pick<Instances, 'find' | 'list' | 'observe' | 'restartByPolicy'>
  readonly events: Pick<Events, 'listen' | 'record'>
  readonly audit: Pick<OwnDoings, 'perform'>
  readonly log: Logger
  readonly passing?: Passing
}

/** What is known of an instance beside its record. */
export interface Attention {
  /** Of one that has a health check. */
  readonly health?: HealthStatus
  readonly restart?: RestartStatus
}

/** Of one that has a restart policy. */
export interface RestartStatus {
  readonly attempts: number
  readonly lastAttemptAtMs?: number
  readonly nextAttemptAtMs?: number
  readonly blockedReason?: 'manual_stop' | 'max_attempts_exceeded'
  readonly lastReason?: 'health_check_failed'
}

export class Supervision implements AsyncDisposable {
  readonly #uses: SupervisionUses
  readonly #health: HealthChecks
  readonly #restarts: Restarts
  #listening: Disposable | undefined

  constructor(uses: SupervisionUses) {
    this.#uses = uses
    const { db, events, instances, audit, log, passing = hostPassing } = uses
    this.#health = new HealthChecks({ db, events, instances, log, passing, onChange: (id) => this.#restarts.look(id) })
    const unhealthySinceMs = (id: InstanceId): number | undefined => this.#health.unhealthySinceMs(id)
    this.#restarts = new Restarts({
      log,
      passing,
      find: (id) => instances.find(id),
      restart: ({ id, name }) =>
        audit.perform({ operation: 'restartInstance', target: { id, name }, subjectId: id }, () =>
          instances.restartByPolicy(id, { unhealthySinceMs: () => unhealthySinceMs(id) }),
        ),
      unhealthySinceMs,
    })
  }

  /** Takes up what the last daemon has left, and follows what happens from now on. Once, after the instances are recovered. */
  recover(): void {
    this.#listening = this.#uses.events.listen(({ kind, subject }) => {
      if (kind.startsWith('instance.')) this.#look(subject as InstanceId)
    })
    for (const instance of this.#uses.instances.list()) {
      this.#health.look(instance.id, instance, { isFound: true })
      this.#restarts.look(instance.id)
    }
  }

  /** What the API shows of it beside its record. Reads memory only. */
  of(instance: Instance, nowMs: number): Attention {
    const { id, healthCheck, restartPolicy } = instance
    if (healthCheck === undefined && restartPolicy === undefined) return NOTHING
    return {
      ...(healthCheck !== undefined && { health: this.#health.statusOf(instance) }),
      ...(restartPolicy !== undefined && { restart: restartStatusOf(instance, nowMs, this.#health.unhealthySinceMs(id)) }),
    }
  }

  /** Begins nothing more; resolves when what it asked for has been done or refused. Repeat is harmless. */
  async close(): Promise<void> {
    this.#listening?.[Symbol.dispose]()
    await Promise.all([this.#health.close(), this.#restarts.close()])
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #look(id: InstanceId): void {
    this.#health.look(id, this.#uses.instances.find(id))
    this.#restarts.look(id)
  }
}

const NOTHING: Attention = {}

function restartStatusOf(instance: Instance, nowMs: number, unhealthySinceMs?: number): RestartStatus {
  const { lastAttemptAtMs, lastReason } = instance.restarts ?? {}
  const outlook = restartOutlook(instance, { nowMs, ...(unhealthySinceMs !== undefined && { unhealthySinceMs }) })
  return {
    attempts: attemptsAt(instance, nowMs),
    ...(lastAttemptAtMs !== undefined && { lastAttemptAtMs }),
    ...(outlook.kind === 'due' && { nextAttemptAtMs: outlook.atMs }),
    ...(outlook.kind === 'blocked' && { blockedReason: outlook.reason }),
    ...(lastReason !== undefined && { lastReason }),
  }
}
