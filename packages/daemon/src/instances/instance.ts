import type { InstanceState } from '@dormouse/api/instance-states.ts'
import type { HypervisorName } from '../hypervisors/hypervisor.ts'
import type { AutoStandbyPolicy, HealthCheck, Instance, InstanceEgress, Phases, RestartPolicy } from '../store/instance-record.ts'

export type {
  Attachment,
  AutoStandbyPolicy,
  HealthCheck,
  HealthProbe,
  Instance,
  InstanceId,
  ListInstances,
  Phases,
  RestartHistory,
  RestartPolicy,
} from '../store/instance-record.ts'

/** Durations up to `nowMs`, the current phase included, as the API shows them. */
export function durationsAt(phases: Phases, nowMs: number): Readonly<Partial<Record<Lowercase<InstanceState>, number>>> {
  const key = phases.current.toLowerCase() as Lowercase<InstanceState>
  return { ...phases.durations, [key]: (phases.durations[key] ?? 0) + Math.max(0, nowMs - phases.sinceMs) }
}

/** The phases once `state` begins at `nowMs`. The same state again changes nothing. */
export function enterPhase(phases: Phases, state: InstanceState, nowMs: number): Phases {
  if (phases.current === state) return phases
  return { current: state, sinceMs: nowMs, durations: durationsAt(phases, nowMs) }
}

/** A request to make one. Texts are parsed by the edge; defaults and limits are applied by `instances.ts`. */
export interface CreateInstance {
  readonly name: string
  readonly image: string
  readonly platform?: string
  readonly hypervisor?: HypervisorName
  readonly vcpus?: number
  readonly memoryBytes?: number
  readonly hotplugBytes?: number
  readonly overlayBytes?: number
  readonly diskIoBps?: number
  readonly entrypoint?: readonly string[]
  readonly cmd?: readonly string[]
  readonly env?: Readonly<Record<string, string>>
  readonly tags?: Readonly<Record<string, string>>
  readonly network?: {
    readonly enabled?: boolean
    readonly ports?: readonly PortRequest[]
    readonly bandwidthDownload?: number
    readonly bandwidthUpload?: number
  }
  readonly egress?: Pick<InstanceEgress, 'mode' | 'credentials'>
  readonly volumes?: readonly MountRequest[]
  /** Names or ids of registered devices. */
  readonly devices?: readonly string[]
  readonly gpuProfile?: string
  readonly snapshotPolicy?: Readonly<Record<string, unknown>>
  readonly autoStandby?: AutoStandbyPolicy
  readonly skipGuestAgent?: boolean
  readonly skipKernelHeaders?: boolean
  readonly freshBoot?: boolean
  readonly expiresAtMs?: number
  readonly healthCheck?: HealthCheck
  readonly restartPolicy?: RestartPolicy
}

/** A volume that is wanted. */
export interface MountRequest {
  /** Id, or a name that only one has. */
  readonly volume: string
  readonly mountPath: string
  readonly readOnly: boolean
  /** What is written is the instance's own, at most so much; only of one that is read-only. */
  readonly overlayBytes?: number
}

/** `hostPort` 0 picks a free one. */
export interface PortRequest {
  readonly protocol?: 'tcp' | 'udp'
  readonly hostIp?: string
  readonly hostPort: number
  readonly guestPort: number
}

/** What PATCH changes. Absent leaves as it is; `expiresAtMs: null` takes the expiry away. */
export interface UpdateInstance {
  readonly name?: string
  readonly tags?: Readonly<Record<string, string>>
  readonly env?: Readonly<Record<string, string>>
  readonly snapshotPolicy?: Readonly<Record<string, unknown>>
  readonly autoStandby?: AutoStandbyPolicy
  readonly expiresAtMs?: number | null
  readonly healthCheck?: HealthCheck
  readonly restartPolicy?: RestartPolicy
  readonly network?: {
    readonly ports?: readonly PortRequest[]
    readonly bandwidthDownload?: number
    readonly bandwidthUpload?: number
  }
  readonly vcpus?: number
  readonly memoryBytes?: number
  readonly hotplugBytes?: number
  readonly overlayBytes?: number
  /** 0: as much as its processors' share. */
  readonly diskIoBps?: number
}

export interface WaitResult {
  readonly state: InstanceState
  readonly timedOut: boolean
  /** Why the answer came without the wanted state, in words. */
  readonly reason?: string
  readonly stateError?: string
}

export interface InstanceStats {
  readonly instance: Instance
  readonly cpuSeconds: number
  readonly memoryRssBytes: number
  readonly memoryVmsBytes: number
  readonly networkRxBytes: number
  readonly networkTxBytes: number
}

export type LogSource = 'app' | 'vmm' | 'daemon'

/** A request to make one that goes on from another, or from a snapshot. */
export interface ForkInstance {
  readonly name: string
  /** A source that runs is forked only by who says so. */
  readonly fromRunning?: boolean
  /** The source's own state when absent. */
  readonly target?: 'Stopped' | 'Standby' | 'Running'
  readonly ports?: readonly PortRequest[]
  /** Bytes per second; 0 is no limit, absent is the source's. */
  readonly bandwidthDownload?: number
  readonly bandwidthUpload?: number
}
