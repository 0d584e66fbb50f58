/**
 * The room's head: looks after instances that no one is looking after. It follows what is on record of each, and asks for what follows of
 * it by the same door as everyone; the worker looks again before it does it.
 */
import type { Events } from '../events/events.ts'
import type { Instance, InstanceId } from '../instances/instance.ts'
import type { Instances } from '../instances/instances.ts'
import { attemptsAt, restartOutlook } from '../instances/restart-policy.ts'
import { hostPassing, type Passing } from '../lib/agenda.ts'
import type { Logger } from '../log.ts'
import { Restarts } from './restarts.ts'

export interface SupervisionUses {
  readonly instances: Pick<Instances, 'find' | 'list' | 'restartByPolicy'>
  readonly events: Pick<Events, 'listen'>
  readonly log: Logger
  readonly passing?: Passing
}

/** What is known of an instance beside its record. */
export interface Attention {
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
  readonly #restarts: Restarts
  #listening: Disposable | undefined

  constructor(uses: SupervisionUses) {
    this.#uses = uses
    this.#restarts = new Restarts({
      log: uses.log,
      passing: uses.passing ?? hostPassing,
      find: (id) => uses.instances.find(id),
      restart: (id) => uses.instances.restartByPolicy(id, { unhealthySinceMs: () => undefined }),
      unhealthySinceMs: () => undefined,
    })
  }

  /** Takes up what the last daemon has left, and follows what happens from now on. Once, after the instances are recovered. */
  recover(): void {
    this.#listening = this.#uses.events.listen(({ kind, subject }) => {
      if (kind.startsWith('instance.')) this.#look(subject as InstanceId)
    })
    for (const { id } of this.#uses.instances.list()) this.#look(id)
  }

  of(instance: Instance, nowMs: number): Attention {
    return instance.restartPolicy === undefined ? {} : { restart: restartStatusOf(instance, nowMs) }
  }

  /** Begins nothing more; resolves when what it asked for has been done or refused. Repeat is harmless. */
  async close(): Promise<void> {
    this.#listening?.[Symbol.dispose]()
    await this.#restarts.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #look(id: InstanceId): void {
    this.#restarts.look(id)
  }
}

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
