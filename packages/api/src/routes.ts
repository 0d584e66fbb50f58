/**
 * The route table: every operation of the API as data; where each is found stands in `endpoints.ts`. The server registers it, the OpenAPI document is printed from it and the
 * client is typed by it, so the three cannot disagree.
 *
 * A row with `later` is part of the contract and answers 501 `not_supported` with that sentence until it is built.
 */
import { type TSchema, Type } from 'typebox'
import { AuditEntry, AuditResult } from './audit.ts'
import { Build, BuildEvent, Builder, CreateBuilderRequest } from './builds.ts'
import { Capabilities, Health } from './capabilities.ts'
import { AvailableDevice, CreateDeviceRequest, Device } from './devices.ts'
import type { RouteId } from './endpoints.ts'
import type { ErrorCode } from './errors.ts'
import { Event } from './events.ts'
import { DiskUsage, PruneRequest, PruneResponse } from './garbage.ts'
import { Image, ImageProgress, PruneImagesResponse, PullImageRequest, Push, PushImageRequest, TagImageRequest } from './images.ts'
import { CreateIngressRequest, Ingress } from './ingresses.ts'
import { InstanceState } from './instance-states.ts'
import {
  AttachVolumeRequest,
  AutoStandbyStatus,
  CreateInstanceRequest,
  ForkInstanceRequest,
  Instance,
  InstanceStats,
  LogSource,
  PathInfo,
  StandbyInstanceRequest,
  StartInstanceRequest,
  StopInstanceRequest,
  UpdateInstanceRequest,
  WaitForStateResponse,
} from './instances.ts'
import { Platform, Tags } from './names.ts'
import { MemoryReclaimRequest, MemoryReclaimResponse, Resources } from './resources.ts'
import { SetSnapshotScheduleRequest, SnapshotSchedule } from './schedules.ts'
import { CreateSnapshotRequest, ForkSnapshotRequest, RestoreSnapshotRequest, Snapshot, SnapshotKind } from './snapshots.ts'
import {
  CreateTicketRequest,
  CreateTokenRequest,
  RevokeTokensRequest,
  RevokeTokensResponse,
  type Scope,
  Ticket,
  Token,
  TokenRecord,
} from './tokens.ts'
import { CreateVolumeRequest, UpdateVolumeRequest, Volume, VolumeFromArchiveQuery } from './volumes.ts'

export interface Route {
  readonly tag: string
  readonly summary: string
  /** What a token must allow. `any` takes every token that holds; `open` asks for none; `host` is for the unix socket alone. */
  readonly scope: Scope | 'any' | 'open' | 'host'
  readonly params?: TSchema
  readonly query?: TSchema
  readonly body?: TSchema
  /** Without a body the request means `{}`. */
  readonly bodyOptional?: true
  /** Media types of a raw body, which is streamed and not held. */
  readonly rawBody?: readonly string[]
  readonly status: 101 | 200 | 201 | 202 | 204
  readonly answer?: TSchema
  /** Headers that an answer has beside those that all have, and what they say. */
  readonly headers?: Readonly<Record<string, string>>
  /** `sse`: `answer` is what each data line holds, as JSON. */
  readonly stream?: 'sse' | 'websocket' | 'text'
  /** Beside those that every route may give. */
  readonly errors?: readonly ErrorCode[]
  /** Those of them that are 400 here, because what was asked for cannot be, while elsewhere they are a conflict. */
  readonly badRequests?: readonly ErrorCode[]
  /** Those of them that are 409 here, because it is about how things stand, while elsewhere the request is at fault. */
  readonly conflicts?: readonly ErrorCode[]
  readonly later?: string
}

const Key = Type.String({ minLength: 1, maxLength: 128 })
const id = Type.Object({
  id: Type.String({ minLength: 1, maxLength: 128, description: 'Id, name, or a prefix of the id that only one has' }),
})
const plainId = Type.Object({ id: Key })
const imageName = Type.Object({
  name: Type.String({ minLength: 1, maxLength: 1024, description: 'Reference, tag or digest; slashes percent-encoded' }),
})
const volumeId = Type.Object({ id: Type.String({ minLength: 1, maxLength: 128, description: 'Id, or a name that only one has' }) })
const deviceId = Type.Object({ id: Type.String({ minLength: 1, maxLength: 128, description: 'Id or name' }) })
const instanceVolume = Type.Object({ id: Key, volumeId: Key })
const instanceSnapshot = Type.Object({ id: Key, snapshotId: Key })
const snapshotId = Type.Object({ snapshotId: Key })

const strict = { additionalProperties: false } as const
const page = {
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 10_000, description: 'At most so many; everything when left out' })),
  cursor: Type.Optional(Type.String({ maxLength: 2048, description: 'From the x-next-cursor header of the page before' })),
}
const tagFilter = { tags: Type.Optional(Tags) }
const listQuery = Type.Object({ ...tagFilter, ...page }, strict)
const waitQuery = Type.Object(
  {
    wait: Type.Optional(Type.Enum(['running'], { description: 'Answer only once it is Running, or can no longer become so' })),
    timeout: Type.Optional(Type.String({ maxLength: 64, default: '60s', description: 'How long to wait, at most 5m' })),
  },
  strict,
)

/** Of what has the sizes of another, whose name may have other limits. */
const sizeErrors = ['invalid_size', 'invalid_overlay_size', 'invalid_hotplug_size'] as const

/** What a rate that cannot be read is told by, and a text inside a policy. */
const rateErrors = ['invalid_bandwidth_download', 'invalid_bandwidth_upload'] as const
const textErrors = [
  'invalid_hotplug_size',
  'invalid_disk_io_bps',
  'invalid_auto_standby',
  'invalid_health_check',
  'invalid_restart_policy',
  'invalid_snapshot_policy',
] as const

const ingressLater = 'Ingress is not built yet'
const buildsLater = 'Builds are not built yet'

export const routes = {
  // instances
  listInstances: {
    tag: 'instances',
    summary: 'List instances, newest first',
    scope: 'instance:read',
    query: Type.Object({ state: Type.Optional(InstanceState), ...tagFilter, ...page }, strict),
    status: 200,
    answer: Type.Array(Instance),
  },
  createInstance: {
    tag: 'instances',
    summary: 'Create an instance and start it',
    scope: 'instance:write',
    query: waitQuery,
    body: CreateInstanceRequest,
    status: 201,
    answer: Instance,
    errors: [
      'invalid_size',
      'invalid_overlay_size',
      'invalid_ttl',
      'invalid_expires_at',
      'invalid_platform',
      'image_not_ready',
      'not_found',
      'platform_not_available',
      'name_conflict',
      'port_in_use',
      'invalid_path',
      'conflict',
      'ambiguous',
      'device_not_found',
      'insufficient_resources',
      'rate_limited',
      'not_supported',
      'invalid_name',
      'registry_unauthorized',
      'registry_unavailable',
      'registry_refused',
      'invalid_image',
      'image_too_large',
      'invalid_timeout',
      ...textErrors,
      ...rateErrors,
    ],
  },
  getInstance: {
    tag: 'instances',
    summary: 'Look at an instance',
    scope: 'instance:read',
    params: id,
    status: 200,
    answer: Instance,
    errors: ['not_found', 'ambiguous'],
  },
  updateInstance: {
    tag: 'instances',
    summary: 'Change what can be changed of an instance',
    scope: 'instance:write',
    params: id,
    body: UpdateInstanceRequest,
    status: 200,
    answer: Instance,
    errors: [
      'not_found',
      'ambiguous',
      'name_conflict',
      'invalid_state',
      'instance_expired',
      'invalid_size',
      'invalid_overlay_size',
      'invalid_ttl',
      'invalid_expires_at',
      'port_in_use',
      'not_supported',
      'conflict',
      ...textErrors,
      ...rateErrors,
    ],
  },
  deleteInstance: {
    tag: 'instances',
    summary: 'Stop an instance and delete it with its disk',
    scope: 'instance:delete',
    params: id,
    query: Type.Object(
      { graceful_shutdown: Type.Optional(Type.Boolean({ default: true, description: 'Let the workload end by itself first' })) },
      strict,
    ),
    status: 204,
    errors: ['not_found', 'ambiguous', 'invalid_state'],
  },
  startInstance: {
    tag: 'instances',
    summary: 'Start a stopped instance',
    scope: 'instance:write',
    params: id,
    query: waitQuery,
    body: StartInstanceRequest,
    bodyOptional: true,
    status: 200,
    answer: Instance,
    errors: [
      'not_found',
      'ambiguous',
      'invalid_state',
      'port_in_use',
      'insufficient_resources',
      'invalid_timeout',
      'snapshot_unusable',
      'conflict',
      'device_not_found',
    ],
  },
  stopInstance: {
    tag: 'instances',
    summary: 'Stop an instance: its workload first, then the VM',
    scope: 'instance:write',
    params: id,
    body: StopInstanceRequest,
    bodyOptional: true,
    status: 200,
    answer: Instance,
    errors: ['not_found', 'ambiguous', 'invalid_state', 'invalid_timeout'],
  },
  standbyInstance: {
    tag: 'instances',
    summary: 'Put an instance to sleep with its memory',
    scope: 'instance:write',
    params: id,
    body: StandbyInstanceRequest,
    bodyOptional: true,
    status: 200,
    answer: Instance,
    errors: ['not_found', 'ambiguous', 'invalid_state', 'snapshot_unusable', 'invalid_snapshot_compression', 'invalid_compression_delay'],
  },
  restoreInstance: {
    tag: 'instances',
    summary: 'Wake an instance that is in standby',
    scope: 'instance:write',
    params: id,
    query: waitQuery,
    body: Type.Object({}, strict),
    bodyOptional: true,
    status: 200,
    answer: Instance,
    errors: [
      'not_found',
      'ambiguous',
      'invalid_state',
      'insufficient_resources',
      'snapshot_unusable',
      'port_in_use',
      'invalid_timeout',
      'conflict',
    ],
  },
  forkInstance: {
    tag: 'instances',
    summary: 'Make a second instance that goes on from where this one is',
    scope: 'instance:write',
    params: id,
    query: waitQuery,
    body: ForkInstanceRequest,
    status: 201,
    answer: Instance,
    errors: [
      'not_found',
      'ambiguous',
      'invalid_state',
      'name_conflict',
      'insufficient_resources',
      'snapshot_unusable',
      'port_in_use',
      'invalid_timeout',
      'conflict',
      ...rateErrors,
      ...sizeErrors,
    ],
  },
  getInstanceLogs: {
    tag: 'instances',
    summary: 'Read the log of an instance, and follow it',
    scope: 'instance:read',
    params: id,
    query: Type.Object(
      {
        tail: Type.Optional(
          Type.Integer({ minimum: 0, maximum: 100_000, default: 100, description: 'Begin so many lines before the end' }),
        ),
        follow: Type.Optional(Type.Boolean({ default: false, description: 'Stay and send new lines as they come' })),
        source: Type.Optional(LogSource),
        until: Type.Optional(
          Type.Enum(['stopped'], { description: 'With follow: end once the instance has come to rest and all is sent' }),
        ),
      },
      strict,
    ),
    status: 200,
    answer: Type.String({ description: 'One line' }),
    stream: 'sse',
    errors: ['not_found', 'ambiguous', 'log_not_found'],
  },
  statInstancePath: {
    tag: 'instances',
    summary: 'Look at a path inside the guest',
    scope: 'instance:read',
    params: id,
    query: Type.Object(
      {
        path: Type.String({ minLength: 1, maxLength: 4096 }),
        follow_links: Type.Optional(Type.Boolean({ default: false })),
      },
      strict,
    ),
    status: 200,
    answer: PathInfo,
    errors: [
      'not_found',
      'ambiguous',
      'invalid_state',
      'invalid_path',
      'guest_unavailable',
      'path_not_found',
      'timed_out',
      'dependency_missing',
    ],
  },
  getInstanceStats: {
    tag: 'instances',
    summary: 'What an instance uses now',
    scope: 'instance:read',
    params: id,
    status: 200,
    answer: InstanceStats,
    errors: ['not_found', 'ambiguous'],
  },
  waitForInstance: {
    tag: 'instances',
    summary: 'Wait until an instance is in a state, or can no longer come to it by itself',
    scope: 'instance:read',
    params: id,
    query: Type.Object(
      {
        state: InstanceState,
        timeout: Type.Optional(Type.String({ maxLength: 64, default: '60s', description: 'A duration; more than 5m is taken as 5m' })),
      },
      strict,
    ),
    status: 200,
    answer: WaitForStateResponse,
    errors: ['not_found', 'ambiguous', 'invalid_state', 'invalid_timeout'],
    badRequests: ['invalid_state'],
  },
  execInstance: {
    tag: 'instances',
    summary: 'Run a command inside the guest, over a WebSocket',
    scope: 'instance:write',
    params: id,
    status: 101,
    stream: 'websocket',
    errors: ['not_found', 'ambiguous', 'invalid_state', 'guest_unavailable'],
  },
  copyInstanceFiles: {
    tag: 'instances',
    summary: 'Copy files into or out of the guest, over a WebSocket',
    scope: 'instance:write',
    params: id,
    status: 101,
    stream: 'websocket',
    errors: ['not_found', 'ambiguous', 'invalid_state', 'guest_unavailable'],
  },
  attachVolume: {
    tag: 'instances',
    summary: 'Attach a volume: at once where the hypervisor can, else while Stopped',
    scope: 'instance:write',
    params: instanceVolume,
    body: AttachVolumeRequest,
    status: 200,
    answer: Instance,
    errors: ['not_found', 'ambiguous', 'conflict', 'invalid_path', 'invalid_overlay_size', 'invalid_state', 'insufficient_resources'],
  },
  detachVolume: {
    tag: 'instances',
    summary: 'Detach a volume; refused while something in the guest uses it',
    scope: 'instance:write',
    params: instanceVolume,
    status: 200,
    answer: Instance,
    errors: ['not_found', 'ambiguous', 'in_use', 'invalid_state'],
  },
  getAutoStandbyStatus: {
    tag: 'instances',
    summary: 'Why an idle instance sleeps, or does not; its connections are counted for it',
    scope: 'instance:read',
    params: id,
    status: 200,
    answer: AutoStandbyStatus,
    errors: ['not_found', 'ambiguous'],
  },
  holdAutoStandby: {
    tag: 'instances',
    summary: 'Keep an instance awake for another idle time from now: until `hold_until` it is safe to connect',
    scope: 'instance:write',
    params: id,
    body: Type.Object({}, strict),
    bodyOptional: true,
    status: 200,
    answer: AutoStandbyStatus,
    errors: ['not_found', 'ambiguous', 'instance_in_standby', 'insufficient_resources'],
  },
  getSnapshotSchedule: {
    tag: 'schedules',
    summary: 'Look at the snapshot schedule of an instance',
    scope: 'snapshot:read',
    params: id,
    status: 200,
    answer: SnapshotSchedule,
    errors: ['not_found', 'ambiguous'],
  },
  setSnapshotSchedule: {
    tag: 'schedules',
    summary: 'Set the snapshot schedule of an instance',
    scope: 'snapshot:write',
    params: id,
    body: SetSnapshotScheduleRequest,
    status: 200,
    answer: SnapshotSchedule,
    errors: ['not_found', 'ambiguous'],
  },
  deleteSnapshotSchedule: {
    tag: 'schedules',
    summary: 'Remove the snapshot schedule of an instance',
    scope: 'snapshot:delete',
    params: id,
    status: 204,
    errors: ['not_found', 'ambiguous'],
  },

  // snapshots
  createSnapshot: {
    tag: 'snapshots',
    summary: 'Take a snapshot of an instance',
    scope: 'snapshot:write',
    params: id,
    body: CreateSnapshotRequest,
    status: 201,
    answer: Snapshot,
    errors: ['not_found', 'conflict', 'invalid_snapshot_compression', 'ambiguous', 'name_conflict', 'invalid_state', 'snapshot_unusable'],
  },
  restoreSnapshot: {
    tag: 'snapshots',
    summary: 'Take an instance back to a snapshot of its own',
    scope: 'snapshot:write',
    params: instanceSnapshot,
    body: RestoreSnapshotRequest,
    bodyOptional: true,
    status: 200,
    answer: Instance,
    errors: [
      'not_found',
      'invalid_state',
      'snapshot_unusable',
      'insufficient_resources',
      'not_supported',
      'ambiguous',
      'conflict',
      'in_use',
      'port_in_use',
      'device_not_found',
    ],
  },
  listSnapshots: {
    tag: 'snapshots',
    summary: 'List snapshots, newest first',
    scope: 'snapshot:read',
    query: Type.Object(
      {
        source_instance_id: Type.Optional(Key),
        kind: Type.Optional(SnapshotKind),
        name: Type.Optional(Key),
        ...tagFilter,
        ...page,
      },
      strict,
    ),
    status: 200,
    answer: Type.Array(Snapshot),
  },
  getSnapshot: {
    tag: 'snapshots',
    summary: 'Look at a snapshot',
    scope: 'snapshot:read',
    params: snapshotId,
    status: 200,
    answer: Snapshot,
    errors: ['not_found'],
  },
  deleteSnapshot: {
    tag: 'snapshots',
    summary: 'Delete a snapshot',
    scope: 'snapshot:delete',
    params: snapshotId,
    status: 204,
    errors: ['not_found', 'in_use', 'conflict'],
  },
  forkSnapshot: {
    tag: 'snapshots',
    summary: 'Make an instance of a snapshot',
    scope: 'snapshot:write',
    params: snapshotId,
    query: waitQuery,
    body: ForkSnapshotRequest,
    status: 201,
    answer: Instance,
    errors: [
      'not_found',
      'name_conflict',
      'insufficient_resources',
      'snapshot_unusable',
      'not_supported',
      'invalid_timeout',
      'conflict',
      'in_use',
      'port_in_use',
      ...rateErrors,
      ...sizeErrors,
    ],
  },

  // images
  listImages: {
    tag: 'images',
    summary: 'List images, newest first',
    scope: 'image:read',
    query: listQuery,
    status: 200,
    answer: Type.Array(Image),
  },
  pullImage: {
    tag: 'images',
    summary: 'Pull an image from its registry',
    scope: 'image:write',
    body: PullImageRequest,
    status: 202,
    answer: Image,
    errors: [
      'invalid_name',
      'invalid_platform',
      'not_found',
      'platform_not_available',
      'credential_conflict',
      'registry_unauthorized',
      'registry_unavailable',
      'registry_refused',
      'rate_limited',
      'invalid_image',
      'image_too_large',
      'not_supported',
      'insufficient_resources',
    ],
  },
  importImage: {
    tag: 'images',
    summary: 'Import a docker-archive or oci-archive tar, sent as the body',
    scope: 'image:write',
    query: Type.Object(
      {
        name: Type.Optional(
          Type.String({ minLength: 1, maxLength: 512, description: 'What to call it; else its own name from the archive' }),
        ),
        platform: Type.Optional(Platform),
      },
      strict,
    ),
    rawBody: ['application/x-tar', 'application/octet-stream', 'application/gzip', 'application/zstd'],
    status: 201,
    answer: Image,
    errors: [
      'invalid_name',
      'invalid_image',
      'image_too_large',
      'platform_not_available',
      'invalid_platform',
      'timed_out',
      'dependency_missing',
      'conflict',
    ],
  },
  pruneImages: {
    tag: 'images',
    summary: 'Delete every image that no instance stands on',
    scope: 'image:delete',
    body: Type.Object({}, strict),
    bodyOptional: true,
    status: 200,
    answer: PruneImagesResponse,
  },
  getImage: {
    tag: 'images',
    summary: 'Look at an image',
    scope: 'image:read',
    params: imageName,
    status: 200,
    answer: Image,
    errors: ['not_found', 'invalid_name'],
  },
  deleteImage: {
    tag: 'images',
    summary: 'Delete an image, and its data when no other name has it',
    scope: 'image:delete',
    params: imageName,
    status: 204,
    errors: ['not_found', 'invalid_name', 'in_use', 'conflict', 'ambiguous'],
  },
  tagImage: {
    tag: 'images',
    summary: 'Give an image a second name',
    scope: 'image:write',
    params: imageName,
    body: TagImageRequest,
    status: 200,
    answer: Image,
    errors: ['not_found', 'invalid_name', 'image_not_ready'],
  },
  getImageProgress: {
    tag: 'images',
    summary: 'Follow the pull of an image until it is ready or has failed',
    scope: 'image:read',
    params: imageName,
    status: 200,
    answer: ImageProgress,
    stream: 'sse',
    errors: ['not_found', 'invalid_name'],
  },

  // volumes
  listVolumes: {
    tag: 'volumes',
    summary: 'List volumes, newest first',
    scope: 'volume:read',
    query: listQuery,
    status: 200,
    answer: Type.Array(Volume),
  },
  createVolume: {
    tag: 'volumes',
    summary: 'Create an empty volume',
    scope: 'volume:write',
    body: CreateVolumeRequest,
    status: 201,
    answer: Volume,
    errors: ['already_exists', 'insufficient_resources', 'invalid_size'],
  },
  createVolumeFromArchive: {
    tag: 'volumes',
    summary: 'Create a volume and fill it from a tar, compressed or not, sent as the body',
    scope: 'volume:write',
    query: VolumeFromArchiveQuery,
    rawBody: ['application/gzip', 'application/octet-stream', 'application/x-tar'],
    status: 201,
    answer: Volume,
    errors: ['invalid_archive', 'archive_too_large', 'already_exists', 'insufficient_resources', 'invalid_size'],
  },
  getVolume: {
    tag: 'volumes',
    summary: 'Look at a volume',
    scope: 'volume:read',
    params: volumeId,
    status: 200,
    answer: Volume,
    errors: ['not_found', 'ambiguous'],
  },
  updateVolume: {
    tag: 'volumes',
    summary: 'Make a volume larger',
    scope: 'volume:write',
    params: volumeId,
    body: UpdateVolumeRequest,
    status: 200,
    answer: Volume,
    errors: ['not_found', 'ambiguous', 'invalid_size', 'conflict', 'invalid_state', 'insufficient_resources'],
  },
  deleteVolume: {
    tag: 'volumes',
    summary: 'Delete a volume that no instance has',
    scope: 'volume:delete',
    params: volumeId,
    status: 204,
    errors: ['not_found', 'ambiguous', 'conflict'],
  },

  // devices
  listDevices: {
    tag: 'devices',
    summary: 'List registered devices, newest first',
    scope: 'device:read',
    query: listQuery,
    status: 200,
    answer: Type.Array(Device),
  },
  createDevice: {
    tag: 'devices',
    summary: 'Register a device of the host',
    scope: 'device:write',
    body: CreateDeviceRequest,
    status: 201,
    answer: Device,
    errors: ['invalid_name', 'invalid_pci_address', 'device_not_found', 'conflict'],
  },
  listAvailableDevices: {
    tag: 'devices',
    summary: 'List devices of the host that could be registered',
    scope: 'device:read',
    query: Type.Object(page, strict),
    status: 200,
    answer: Type.Array(AvailableDevice),
  },
  getDevice: {
    tag: 'devices',
    summary: 'Look at a device',
    scope: 'device:read',
    params: deviceId,
    status: 200,
    answer: Device,
    errors: ['not_found'],
  },
  deleteDevice: {
    tag: 'devices',
    summary: 'Unregister a device',
    scope: 'device:delete',
    params: deviceId,
    status: 204,
    errors: ['not_found', 'in_use'],
  },

  // ingresses
  listIngresses: {
    tag: 'ingresses',
    summary: 'List ingresses, newest first',
    scope: 'ingress:read',
    query: listQuery,
    status: 200,
    answer: Type.Array(Ingress),
    later: ingressLater,
  },
  createIngress: {
    tag: 'ingresses',
    summary: 'Lead a host name to an instance',
    scope: 'ingress:write',
    body: CreateIngressRequest,
    status: 201,
    answer: Ingress,
    errors: ['conflict', 'port_in_use'],
    later: ingressLater,
  },
  getIngress: {
    tag: 'ingresses',
    summary: 'Look at an ingress',
    scope: 'ingress:read',
    params: plainId,
    status: 200,
    answer: Ingress,
    errors: ['not_found', 'ambiguous'],
    later: ingressLater,
  },
  deleteIngress: {
    tag: 'ingresses',
    summary: 'Delete an ingress',
    scope: 'ingress:delete',
    params: plainId,
    status: 204,
    errors: ['not_found', 'ambiguous'],
    later: ingressLater,
  },

  // builds
  listBuilds: {
    tag: 'builds',
    summary: 'List builds, newest first',
    scope: 'build:read',
    query: listQuery,
    status: 200,
    answer: Type.Array(Build),
    later: buildsLater,
  },
  createBuild: {
    tag: 'builds',
    summary: 'Build an image from source',
    scope: 'build:write',
    rawBody: ['multipart/form-data'],
    status: 202,
    answer: Build,
    errors: ['not_found'],
    later: buildsLater,
  },
  getBuild: {
    tag: 'builds',
    summary: 'Look at a build',
    scope: 'build:read',
    params: plainId,
    status: 200,
    answer: Build,
    errors: ['not_found'],
    later: buildsLater,
  },
  cancelBuild: {
    tag: 'builds',
    summary: 'Cancel a build',
    scope: 'build:delete',
    params: plainId,
    status: 204,
    errors: ['not_found', 'conflict'],
    later: buildsLater,
  },
  getBuildEvents: {
    tag: 'builds',
    summary: 'Read what a build says, and follow it',
    scope: 'build:read',
    params: plainId,
    query: Type.Object({ follow: Type.Optional(Type.Boolean({ default: false })) }, strict),
    status: 200,
    answer: BuildEvent,
    stream: 'sse',
    errors: ['not_found'],
    later: buildsLater,
  },
  listBuilders: {
    tag: 'builds',
    summary: 'List builders',
    scope: 'build:read',
    query: listQuery,
    status: 200,
    answer: Type.Array(Builder),
    later: buildsLater,
  },
  createBuilder: {
    tag: 'builds',
    summary: 'Create a builder',
    scope: 'build:write',
    body: CreateBuilderRequest,
    status: 201,
    answer: Builder,
    errors: ['conflict'],
    later: buildsLater,
  },
  getBuilder: {
    tag: 'builds',
    summary: 'Look at a builder',
    scope: 'build:read',
    params: plainId,
    status: 200,
    answer: Builder,
    errors: ['not_found'],
    later: buildsLater,
  },
  deleteBuilder: {
    tag: 'builds',
    summary: 'Delete a builder with its cache',
    scope: 'build:delete',
    params: plainId,
    status: 204,
    errors: ['not_found', 'conflict'],
    later: buildsLater,
  },
  pruneBuilder: {
    tag: 'builds',
    summary: 'Empty the cache of a builder',
    scope: 'build:write',
    params: plainId,
    body: Type.Object({}, strict),
    bodyOptional: true,
    status: 202,
    answer: Builder,
    errors: ['not_found', 'conflict'],
    later: buildsLater,
  },

  // pushes
  listPushes: {
    tag: 'images',
    summary: 'List pushes, newest first',
    scope: 'image:read',
    query: Type.Object(page, strict),
    status: 200,
    answer: Type.Array(Push),
  },
  createPush: {
    tag: 'images',
    summary: 'Push an image to a registry; the answer comes at once, GET /pushes/{id} tells how it goes on',
    scope: 'image:write',
    body: PushImageRequest,
    status: 202,
    answer: Push,
    headers: { location: 'Where the push is found', 'retry-after': 'Seconds after which to look at it' },
    errors: ['not_found', 'invalid_name', 'registry_refused', 'invalid_target', 'image_not_ready', 'credential_conflict', 'conflict'],
    conflicts: ['image_not_ready'],
  },
  getPush: {
    tag: 'images',
    summary: 'Look at a push',
    scope: 'image:read',
    params: plainId,
    status: 200,
    answer: Push,
    errors: ['not_found'],
  },

  // the server and its host
  getHealth: {
    tag: 'server',
    summary: 'Is the daemon there',
    scope: 'open',
    status: 200,
    answer: Health,
  },
  getCapabilities: {
    tag: 'server',
    summary: 'What this server can do, and why not more',
    scope: 'resource:read',
    status: 200,
    answer: Capabilities,
  },
  getResources: {
    tag: 'server',
    summary: 'What the host has, what is given away, what is left',
    scope: 'resource:read',
    status: 200,
    answer: Resources,
  },
  reclaimMemory: {
    tag: 'server',
    summary: 'Give memory of the host back that VMs do not need right now; guests go on with what they have',
    scope: 'instance:write',
    body: MemoryReclaimRequest,
    status: 200,
    answer: MemoryReclaimResponse,
    errors: ['conflict'],
  },
  followEvents: {
    tag: 'server',
    summary: 'Follow what happens to all that the token may read; goes on after the event named in Last-Event-ID',
    scope: 'any',
    query: Type.Object(
      {
        after: Type.Optional(Type.Integer({ minimum: 0, description: 'Begin after this event; without it, with the next one' })),
        subject: Type.Optional(
          Type.String({
            maxLength: 512,
            description:
              'Only events about this instance, volume, device or image, by its id or by the name that it has when the stream begins',
          }),
        ),
      },
      strict,
    ),
    status: 200,
    answer: Event,
    stream: 'sse',
  },
  createToken: {
    tag: 'server',
    summary: 'Make a token; only over the unix socket',
    scope: 'host',
    body: CreateTokenRequest,
    bodyOptional: true,
    status: 201,
    answer: Token,
    errors: ['invalid_ttl'],
  },
  getMetrics: {
    tag: 'server',
    summary: 'Figures for Prometheus',
    scope: 'resource:read',
    status: 200,
    stream: 'text',
  },
  listTokens: {
    tag: 'server',
    summary: 'List the tokens that were made here and have not expired, newest first; only over the unix socket',
    scope: 'host',
    query: Type.Object(page, strict),
    status: 200,
    answer: Type.Array(TokenRecord),
  },
  revokeToken: {
    tag: 'server',
    summary: 'Revoke a token: from the next request on it is refused, and its streams end; only over the unix socket',
    scope: 'host',
    params: plainId,
    status: 204,
    errors: ['not_found'],
  },
  revokeTokens: {
    tag: 'server',
    summary: 'Revoke every token of a subject that was issued before a moment, also those made elsewhere; only over the unix socket',
    scope: 'host',
    body: RevokeTokensRequest,
    status: 200,
    answer: RevokeTokensResponse,
  },
  createTicket: {
    tag: 'server',
    summary: 'Make a ticket: what a browser, which can send no header with it, opens one stream with, once, within 30 seconds',
    scope: 'any',
    body: CreateTicketRequest,
    status: 201,
    answer: Ticket,
    errors: ['not_found'],
  },
  listAudit: {
    tag: 'server',
    summary: 'List who changed what, and who was refused, newest first',
    scope: 'audit:read',
    query: Type.Object(
      {
        caller: Type.Optional(Type.String({ maxLength: 128, description: 'Subject of a token, or host' })),
        operation: Type.Optional(Type.String({ maxLength: 64, description: 'Such as stopInstance' })),
        target: Type.Optional(
          Type.String({ maxLength: 1024, description: 'Name or id of the thing itself, as it stood first in the path or in the answer' }),
        ),
        result: Type.Optional(AuditResult),
        since: Type.Optional(Type.String({ maxLength: 64, format: 'date-time', description: 'Not before' })),
        until: Type.Optional(Type.String({ maxLength: 64, format: 'date-time', description: 'Before' })),
        limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000, default: 100 })),
        cursor: page.cursor,
      },
      strict,
    ),
    status: 200,
    answer: Type.Array(AuditEntry),
  },
  getDiskUsage: {
    tag: 'server',
    summary: 'What takes how much of the disk, what of it is shared, and what could go',
    scope: 'resource:read',
    status: 200,
    answer: DiskUsage,
  },
  prune: {
    tag: 'server',
    summary: 'Give up what can be missed on the disk',
    scope: 'resource:write',
    body: PruneRequest,
    bodyOptional: true,
    status: 200,
    answer: PruneResponse,
  },
} as const satisfies Record<RouteId, Route>

export const ROUTE_IDS = Object.keys(routes) as readonly RouteId[]

/** The longest that `wait` waits; more is taken as this. */
export const WAIT_MAX_MS = 300_000
