/**
 * How it stands with an instance that may sleep by itself: what is known of it, and what follows from that at a moment. Pure. Times are
 * those of a clock that no one sets, in milliseconds.
 */
import type { AutoStandbyPolicy, Instance } from '../instances/instance.ts'
import { holdsDevice } from '../instances/vm-spec-of.ts'

export type Reason =
  | 'unsupported_platform'
  | 'policy_missing'
  | 'policy_disabled'
  | 'instance_not_running'
  | 'network_disabled'
  | 'missing_ip'
  | 'has_vgpu'
  | 'active_inbound_connections'
  | 'idle_timeout_not_elapsed'
  | 'observer_error'
  | 'ready_for_standby'

export type Status =
  | 'unsupported'
  | 'disabled'
  | 'ineligible'
  | 'active'
  | 'idle_countdown'
  | 'ready_for_standby'
  | 'standby_requested'
  | 'error'

/** What is known of one that is eligible. */
export interface Idleness {
  readonly idleTimeoutMs: number
  /** Since when no one has been connected, as far as is known; also when it came to run, or its policy was set. */
  readonly idleSince: number
  /** Connections and sessions, when it was last looked. */
  readonly active: number
  readonly holdUntil?: number | undefined
  /** Connections cannot be counted. */
  readonly observerError?: string | undefined
  /** The last nap failed: the next is not before `retryAt`. */
  readonly failure?: { readonly message: string; readonly retryAt: number } | undefined
  readonly isNapping: boolean
}

export interface Outlook {
  readonly status: Status
  readonly reason: Reason
  /** When it goes to sleep if nothing comes between; only while that is counted down to. */
  readonly napAt?: number
}

/** Why it is not watched; undefined when it is. */
export function obstacleOf(instance: Instance, canSleep: boolean): Outlook | undefined {
  const { autoStandby, state, network } = instance
  if (!canSleep) return { status: 'unsupported', reason: 'unsupported_platform' }
  if (autoStandby === undefined) return { status: 'disabled', reason: 'policy_missing' }
  if (!isEnabled(autoStandby)) return { status: 'disabled', reason: 'policy_disabled' }
  if (state !== 'Running') return { status: 'ineligible', reason: 'instance_not_running' }
  if (!network.enabled) return { status: 'ineligible', reason: 'network_disabled' }
  if (network.ip === undefined) return { status: 'ineligible', reason: 'missing_ip' }
  // The contract has this word; of a whole device the same is true.
  if (holdsDevice(instance)) return { status: 'ineligible', reason: 'has_vgpu' }
  return undefined
}

/** One that is on says after how long. */
export const isEnabled = (policy: AutoStandbyPolicy | undefined): policy is AutoStandbyPolicy & { readonly idleTimeoutMs: number } =>
  policy?.enabled === true && policy.idleTimeoutMs !== undefined

/** When it may sleep, if no one comes and what is wrong is no more. */
export const napAtOf = ({ idleSince, idleTimeoutMs, holdUntil = 0, failure }: Idleness): number =>
  Math.max(idleSince + idleTimeoutMs, holdUntil, failure?.retryAt ?? 0)

export function outlookOf(idleness: Idleness, now: number): Outlook {
  const { active, observerError, failure, isNapping } = idleness
  const napAt = napAtOf(idleness)
  if (isNapping) return { status: 'standby_requested', reason: 'ready_for_standby' }
  if (observerError !== undefined) return { status: 'error', reason: 'observer_error' }
  if (active > 0) return { status: 'active', reason: 'active_inbound_connections' }
  if (failure !== undefined) return { status: 'error', reason: 'ready_for_standby', napAt }
  if (now < napAt) return { status: 'idle_countdown', reason: 'idle_timeout_not_elapsed', napAt }
  return { status: 'ready_for_standby', reason: 'ready_for_standby' }
}
