import type { Compression } from '@dormouse/api/compression.ts'
import type { InstanceState, Transition } from '@dormouse/api/instance-states.ts'
import type { Authority } from '../egress/certificates.ts'
import type { Credentials } from '../egress/credentials.ts'
import type { BaseRef, HypervisorName, PortForward, VmHandle } from '../hypervisors/hypervisor.ts'

declare const brand: unique symbol
/** Branded, so that a name is never given for an id. */
export type InstanceId = string & { readonly [brand]: 'InstanceId' }

/** What a worker can be busy with; `create` is no transition, since nothing is there to ask for it. */
export type OperationName = Transition | 'create' | 'update' | 'attach_volume' | 'detach_volume'

/** An instance as it is stored. What was asked for, what it was given, and where it is. */
export interface Instance {
  readonly id: InstanceId
  readonly name: string
  readonly createdAtMs: number

  /** As the caller wrote it. */
  readonly image: string
  /** What it resolved to when the instance was made; every later start uses this one. */
  readonly imageDigest: string
  readonly platform: string
  readonly hypervisor: HypervisorName
  readonly vcpus: number
  readonly memoryBytes: number
  readonly hotplugBytes: number
  readonly overlayBytes: number
  readonly diskIoBps?: number
  readonly network: InstanceNetwork
  /** What it opens by TCP goes through a proxy of its own; absent: it goes by itself. The same for all its life. */
  readonly egress?: InstanceEgress
  /** In place of the image's own. */
  readonly entrypoint?: readonly string[]
  readonly cmd?: readonly string[]
  readonly env: Readonly<Record<string, string>>
  readonly tags: Readonly<Record<string, string>>
  readonly snapshotPolicy?: Readonly<Record<string, unknown>>
  readonly autoStandby?: AutoStandbyPolicy
  readonly skipGuestAgent: boolean
  readonly skipKernelHeaders: boolean
  /** Every start boots from the beginning, instead of waking a golden boot. */
  readonly freshBoot?: boolean
  readonly expiresAtMs?: number
  readonly healthCheck?: HealthCheck
  readonly restartPolicy?: RestartPolicy

  /** The user that its VMM runs as and that owns its disk; absent when the daemon is not root. */
  readonly uid?: number

  readonly state: InstanceState
  /** Why the state is Unknown, or what is amiss with an instance that runs. */
  readonly stateError?: string
  /** Begun and not settled. At a start of the daemon it is what was cut short. */
  readonly operation?: OperationName
  readonly vm?: VmHandle
  readonly startedAtMs?: number
  readonly stoppedAtMs?: number
  readonly exitCode?: number
  readonly exitMessage?: string
  /** The layers of its writable disk as names of files, top first. The first alone is ever written; the others may be shared. */
  readonly disk: readonly string[]
  /** In the order in which they were attached. */
  readonly volumes: readonly Attachment[]
  /** Of the host, and no one else's as long as it is there. */
  readonly devices?: readonly HeldDevice[]
  readonly gpu?: InstanceGpu
  /** What it wakes from; absent unless it is in standby. */
  readonly sleep?: Sleep
  readonly phases: Phases
  /** What has become of its restart policy since someone last started it; absent when nothing has. */
  readonly restarts?: RestartHistory
}

/** How it is found out whether its workload does what it is there for. */
export interface HealthCheck {
  readonly probe: HealthProbe
  /** From the end of a check to the next one. */
  readonly intervalMs: number
  readonly timeoutMs: number
  /** From when it is Running; failures in it are told, and count for nothing. */
  readonly startPeriodMs: number
  /** In a row. */
  readonly failureThreshold: number
  readonly successThreshold: number
}

export type HealthProbe =
  | { readonly kind: 'none' }
  | {
      readonly kind: 'http'
      readonly scheme: 'http' | 'https'
      readonly port: number
      readonly path: string
      readonly expectedStatus: number
    }
  | { readonly kind: 'tcp'; readonly port: number }
  | { readonly kind: 'exec'; readonly command: readonly string[]; readonly workingDir?: string }

/** When it is started again without anyone asking. */
export interface RestartPolicy {
  readonly policy: 'never' | 'always' | 'on_failure'
  /** From its end, or from the attempt before, to the next one. */
  readonly backoffMs: number
  /** In a row; 0 is no limit. */
  readonly maxAttempts: number
  /** Once it has run for so long, attempts are counted anew. */
  readonly stableAfterMs: number
}

export interface RestartHistory {
  readonly attempts: number
  readonly lastAttemptAtMs?: number
  /** How long it had been Running in all its life when the last attempt began. */
  readonly ranMs?: number
  /** An attempt has begun: it is to be started, or, once a start has been tried, to be tried again when its time has come. */
  readonly owed?: 'start' | 'retry'
  /** Someone stopped it: nothing but a start by someone ends that. */
  readonly isHeld?: true
  readonly lastReason?: 'health_check_failed'
}

/** When it is put into standby without anyone asking. */
export interface AutoStandbyPolicy {
  readonly enabled: boolean
  /** Once no one has been connected for so long. There in every policy that is enabled. */
  readonly idleTimeoutMs?: number
  /** Who does not count: networks, and ports of the guest. */
  readonly ignoreSources: readonly string[]
  readonly ignorePorts: readonly number[]
}

export interface HeldDevice {
  readonly id: string
  readonly name: string
  readonly address: string
}

/** A part of a GPU. */
export interface InstanceGpu {
  readonly profile: string
  /** While its VM runs: a mediated device, or the virtual function that has become it. */
  readonly mdevUuid?: string
  readonly address?: string
}

/** A volume as an instance has it. */
export interface Attachment {
  readonly volumeId: string
  readonly volumeName: string
  readonly mountPath: string
  readonly readOnly: boolean
  /** It is mounted for writing all the same, and what is written is the instance's own, at most so much. */
  readonly overlayBytes?: number
  /** Of the disk in the guest. */
  readonly bytes: number
  /** Where the disk sits: the same for as long as it is attached, since a sleeping guest knows it there. */
  readonly slot: number
  /**
   * Its layers, top first. The first alone is ever written, and by this instance alone: it is the volume's own, or lies over those that
   * readers share.
   */
  readonly disk: readonly string[]
  /** It is on its way into a VM that runs, or out of it. */
  readonly moving?: 'in' | 'out'
}

/** A sleeping state on disk (`memory/capture-files.ts`), and what it stands on. */
export interface Sleep {
  /** Names its directory; a new one with every nap, and with every change of how it is kept. */
  readonly generation: string
  readonly base: BaseRef
  /** It was another instance's: the guest has to be given its name and addresses before it goes on. */
  readonly isForeign?: boolean
  /** It is to be compressed, not before `atMs`. Absent when it is, or is not to be. */
  readonly compress?: Compression & { readonly atMs: number }
  /** It was put to sleep to give memory back, and is to go on: whoever finds it so wakes it. */
  readonly wakes?: boolean
  /** Its agent did not answer, so that its workload runs on before it can be told anything: no one else may wake from it. */
  readonly isUnfrozen?: boolean
}

export interface InstanceNetwork {
  readonly enabled: boolean
  readonly mac?: string
  readonly ip?: string
  readonly ports: readonly PortForward[]
  readonly bandwidthDownload?: number
  readonly bandwidthUpload?: number
}

/** The real values are in `env`, and stay on the host. */
export interface InstanceEgress {
  /** What it may not open by itself: anything, or web servers at their usual ports. */
  readonly mode: 'all' | 'http_https_only'
  readonly credentials: Credentials
  /** Its own, and that of its forks: who is frozen has read it already. Good for the hosts of the credentials alone. */
  readonly authority: Authority
}

/** How long it was in each state, in ms, and since when it is in the one it is in. */
export interface Phases {
  readonly current: InstanceState
  readonly sinceMs: number
  readonly durations: Readonly<Partial<Record<Lowercase<InstanceState>, number>>>
}

export interface ListInstances {
  readonly state?: InstanceState
  readonly tags?: Readonly<Record<string, string>>
}
