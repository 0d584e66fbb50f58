/** What the server needs of the rooms below: no more than it calls, so that a test can hand in less than a daemon. */

import type { Readable, Writable } from 'node:stream'
import type { Compression } from '@dormouse/api/compression.ts'
import type { Image, ImageProgress, PruneImagesResponse, PullImageRequest, Push, PushImageRequest } from '@dormouse/api/images.ts'
import type { Capability, InstanceState } from '@dormouse/api/instance-states.ts'
import type { PathInfo } from '@dormouse/api/instances.ts'
import type { Resources } from '@dormouse/api/resources.ts'
import type { AuditedRequest, AuditFacts, AuditFilter, AuditRow } from '../audit/audit.ts'
import type { AutoStandbyStatus } from '../auto-standby/auto-standby.ts'
import type { AvailableFunction, RegisterDevice, SeenDevice } from '../devices/devices.ts'
import type { CollectedKind, CollectGarbage, DiskUsageReport } from '../garbage/garbage.ts'
import type { CgroupsAnswer } from '../host/cgroups.ts'
import type { HostFacts } from '../host/host-facts.ts'
import type { HypervisorName, HypervisorProbe } from '../hypervisors/hypervisor.ts'
import type { Registry } from '../images/registry/registry.ts'
import type {
  CreateInstance,
  ForkInstance,
  Instance,
  InstanceId,
  InstanceStats,
  ListInstances,
  LogSource,
  MountRequest,
  UpdateInstance,
  WaitResult,
} from '../instances/instance.ts'
import type { LogBatch } from '../instances/log-lines.ts'
import type { Reclaimed, ReclaimRequest } from '../instances/memory-reclaim.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import type { SetSchedule, SnapshotSchedule } from '../schedules/schedules.ts'
import type { ListSnapshots, Snapshot } from '../snapshots/snapshots.ts'
import type { RecordedEvent } from '../store/events.ts'
import type { Attention } from '../supervision/supervision.ts'
import type { CreateVolume, Holder, Volume } from '../volumes/volumes.ts'
import type { TokensDoor } from './auth.ts'

export interface ServerUses {
  readonly instances: InstancesDoor
  readonly images: ImagesDoor
  readonly registry: RegistryDoor
  readonly snapshots: SnapshotsDoor
  readonly volumes: VolumesDoor
  readonly devices: DevicesDoor
  readonly schedules: SchedulesDoor
  readonly autoStandby: AutoStandbyDoor
  readonly supervision: SupervisionDoor
  readonly garbage: GarbageDoor
  readonly events: EventsDoor
  readonly host: HostDoor
  /** What tokens are signed with. */
  readonly secret: Uint8Array
  readonly tokens: TokensDoor
  readonly audit: AuditDoor
  /** Origins whose pages may ask, beside the server's own. */
  readonly allowedOrigins: readonly string[]
  readonly version: string
  readonly log: Logger
}

export interface InstancesDoor {
  create(request: CreateInstance): Promise<Instance>
  /** Newest first. */
  list(filter: ListInstances): readonly Instance[]
  /** By id, name or unique prefix of an id. Throws `not_found` and `ambiguous`. */
  resolve(text: string): Instance
  get(id: InstanceId): Instance
  start(id: InstanceId, options: { entrypoint?: readonly string[]; cmd?: readonly string[] }): Promise<Instance>
  stop(id: InstanceId, options: { force?: boolean; graceMs?: number }): Promise<Instance>
  standby(id: InstanceId, options: StandbyAsked): Promise<Instance>
  restore(id: InstanceId): Promise<Instance>
  fork(id: InstanceId, request: ForkInstance): Promise<Instance>
  forkSnapshot(snapshot: Snapshot, request: ForkInstance, hypervisor?: HypervisorName): Promise<Instance>
  snapshot(id: InstanceId, request: SnapshotAsked): Promise<Snapshot>
  restoreSnapshot(id: InstanceId, snapshot: Snapshot, target?: ForkInstance['target'], hypervisor?: HypervisorName): Promise<Instance>
  update(id: InstanceId, change: UpdateInstance): Promise<Instance>
  delete(id: InstanceId, options: { graceful?: boolean }): Promise<unknown>
  attachVolume(id: InstanceId, mount: MountRequest): Promise<Instance>
  detachVolume(id: InstanceId, volume: string): Promise<Instance>
  /** Attached or not. */
  growVolume(volume: string, bytes: number): Promise<Volume>
  wait(id: InstanceId, options: { state: InstanceState; timeoutMs: number; signal?: AbortSignal }): Promise<WaitResult>
  stats(id: InstanceId): Promise<InstanceStats>
  /** Throws `conflict` while another one is under way. */
  reclaimMemory(request: ReclaimRequest): Promise<Reclaimed>
  readonly room: {
    /** What writable disks take of the host's, each up to its full size. */
    diskBytes(): Promise<number>
  }
  /** Lines, in batches. Throws `log_not_found` when there is no such log and none is to come. */
  logs(id: InstanceId, options: LogOptions): Promise<AsyncIterable<LogBatch>>
  /** Throws `invalid_state` unless Running. */
  guest(id: InstanceId, step: Step, operation: 'exec' | 'copy' | 'stat'): Promise<GuestDoor>
}

export interface SupervisionDoor {
  of(instance: Instance, nowMs: number): Attention
}

export interface StandbyAsked {
  readonly compression?: Compression | 'off'
  readonly compressionDelayMs?: number
}

export interface SnapshotAsked {
  readonly kind: Snapshot['kind']
  readonly name?: string
  readonly tags: Readonly<Record<string, string>>
  readonly isScheduled: boolean
  readonly compression?: Compression | 'off'
}

export interface SnapshotsDoor {
  list(filter: ListSnapshots): readonly Snapshot[]
  get(id: string): Snapshot
  hold(id: string): { readonly snapshot: Snapshot } & Disposable
  delete(id: string): Promise<void>
}

export interface VolumesDoor {
  /** Newest first. */
  list(filter: { tags?: Readonly<Record<string, string>> }): readonly Volume[]
  /** By id or name. Throws `not_found` and `ambiguous`. */
  resolve(text: string): Volume
  /** Who has it; who has any, without an id. */
  holders(id?: string): readonly Holder[]
  create(request: CreateVolume): Promise<Volume>
  createFromArchive(request: CreateVolume, source: AsyncIterable<Uint8Array>, step: Pick<Step, 'signal'>): Promise<Volume>
  delete(id: string): Promise<void>
  /** What they may take of the host's disk. */
  demandBytes(): number
}

export interface DevicesDoor {
  /** Newest first. */
  list(filter: { tags?: Readonly<Record<string, string>> }): Promise<readonly SeenDevice[]>
  /** By id or name. Throws `not_found`. */
  get(text: string): Promise<SeenDevice>
  listAvailable(): Promise<readonly AvailableFunction[]>
  register(request: RegisterDevice): Promise<SeenDevice>
  /** Throws `in_use`. */
  delete(text: string): unknown
  /** Undefined when there are none. */
  gpus(): Promise<Resources['gpu'] | undefined>
}

export interface LogOptions {
  readonly source: LogSource
  readonly tail: number
  /** In place of `tail`: everything from the place that a batch has named. */
  readonly from?: string
  readonly follow: boolean
  readonly untilStopped: boolean
  readonly signal: AbortSignal
}

export interface ImagesDoor {
  list(filter: { tags?: Readonly<Record<string, string>> }): readonly Image[]
  getImage(name: string): Image
  /** Is its registry on the host's own loopback, and not listed by the configuration? */
  leadsToLoopback(name: string): boolean
  pull(request: PullImageRequest): Promise<Image>
  importUpload(source: AsyncIterable<Uint8Array>, options: { name?: string; platform?: string }, step: Step): Promise<Image>
  tag(name: string, target: string): Image | Promise<Image>
  remove(name: string): void | Promise<void>
  prune(): PruneImagesResponse | Promise<PruneImagesResponse>
  progress(name: string, options: { signal: AbortSignal }): AsyncIterable<ImageProgress> | Promise<AsyncIterable<ImageProgress>>
  /** Bytes on disk: compressed layers, and root file systems. */
  usageByKind(): Promise<{ readonly layersBytes: number; readonly rootfsBytes: number }>
  push(request: PushImageRequest): Promise<Push>
  /** Newest first. */
  pushes(): readonly Push[]
  getPush(id: string): Push
}

/** What other programs push images to, and pull them from. Refuses by `RegistryError`. */
export type RegistryDoor = Pick<
  Registry,
  'repositories' | 'tags' | 'manifest' | 'findBlob' | 'beginUpload' | 'upload' | 'mount' | 'putManifest' | 'deleteManifest' | 'deleteBlob'
>

export interface SchedulesDoor {
  /** Throws `not_found` when the instance has none. */
  get(instance: Instance): SnapshotSchedule
  put(instance: Instance, wanted: SetSchedule): SnapshotSchedule
  /** Throws `not_found` when the instance has none. */
  delete(instance: Instance): void
}

export interface AutoStandbyDoor {
  /** Connections are counted for it. */
  status(id: InstanceId): Promise<AutoStandbyStatus>
  /** Throws `instance_in_standby`. */
  hold(id: InstanceId): Promise<AutoStandbyStatus>
  /** Keeps it awake until it is disposed of. */
  beginSession(id: InstanceId): Disposable
}

export interface GarbageDoor {
  usage(): Promise<DiskUsageReport>
  collect(wanted: CollectGarbage): Promise<readonly CollectedKind[]>
}

export interface EventsDoor {
  /** 0 when nothing has happened yet. */
  latestId(): number
  subscribe(options: { after?: number; signal?: AbortSignal }): AsyncIterable<readonly RecordedEvent[]>
}

export interface AuditDoor {
  begin(facts: AuditFacts, about?: { readonly resourceId?: string }): AuditedRequest
  refuse(facts: AuditFacts, outcome: { readonly status: number; readonly code: string }): void
  skip(): void
  /** Newest first. */
  list(filter: AuditFilter): readonly (AuditRow & { readonly id: number })[]
}

export interface HostDoor {
  readonly facts: HostFacts
  readonly defaultHypervisor: HypervisorName
  /** Each driver with what it can do and whether this host lets it. */
  readonly hypervisors: readonly {
    readonly name: HypervisorName
    readonly capabilities: ReadonlySet<Capability>
    /** Releases of its VMM that it works with, where only some are. */
    readonly versions?: readonly string[]
    /** How many VMs wait for starts, where any ever do. */
    readonly waiting?: () => number | undefined
    probe(): Promise<HypervisorProbe>
  }[]
  /** How guests reach the world. */
  readonly network: { readonly model: 'nat' | 'bridge'; readonly gateway?: string; readonly subnet?: string }
  /** Capacity times this may be given away. */
  readonly ratios: {
    readonly cpu: number
    readonly memory: number
    readonly disk: number
    readonly network: number
    readonly diskIo: number
  }
  /** What the link outwards carries. */
  link(): { readonly bytesPerSecond: number | undefined; readonly source: string }
  /** What limits each VM's processes. */
  readonly cgroups: CgroupsAnswer
  /** Bytes per second; 0: no one knows. */
  readonly diskIoBps: number
  /** Of the file system that holds the data. */
  disk(): Promise<{ readonly totalBytes: number; readonly freeBytes: number }>
  /** How it stands with memory now. */
  pressure(): { readonly availableBytes: number; readonly isTight: boolean }
}

/** The part of a guest that callers reach through the API. */
export interface GuestDoor {
  exec(request: ExecAsked, step: Step): Promise<GuestExecDoor>
  stat(path: string, options: { followLinks: boolean }, step: Step): Promise<PathInfo>
  /** One file, or one directory without its contents. */
  copyTo(request: CopyAsked, source: AsyncIterable<Uint8Array>, step: Step): Promise<{ bytesWritten: number }>
  copyFrom(path: string, options: { followLinks: boolean }, step: Step): AsyncIterable<CopyEntryDoor>
}

export interface ExecAsked {
  readonly command: string[]
  readonly tty?: boolean
  readonly env?: Record<string, string>
  readonly cwd?: string
  readonly user?: string
  readonly timeoutMs?: number
  readonly rows?: number
  readonly cols?: number
}

export interface GuestExecDoor {
  readonly stdin: Writable
  readonly stdout: Readable
  readonly stderr: Readable
  readonly exit: Promise<{ readonly code: number; readonly message: string }>
  /** Both resolve once they are on their way; a guest that reads nothing holds up who asks for more. */
  resize(rows: number, cols: number): void | Promise<void>
  /** Rejects with `invalid_request` for a name that is none. */
  signal(name: string): void | Promise<void>
  kill(): void
}

export interface CopyAsked {
  readonly path: string
  readonly isDir: boolean
  readonly mode: number
  readonly uid?: number
  readonly gid?: number
}

export type CopyEntryDoor =
  | {
      readonly kind: 'header'
      readonly path: string
      readonly mode: number
      readonly isDir: boolean
      readonly linkTarget?: string
      readonly size: number
      readonly mtime: number
      readonly uid?: number
      readonly gid?: number
    }
  | { readonly kind: 'data'; readonly bytes: Uint8Array }
  | { readonly kind: 'end' }
