/** Instances as the API shows and takes them. */
import { type Static, Type } from 'typebox'
import { InstanceState } from './instance-states.ts'
import { Bandwidth, ByteSize, DateTime, Duration, Env, EnvChange, ImageName, Name, nullable, Platform, Rate, Tags } from './names.ts'

export const HYPERVISORS = ['cloud-hypervisor', 'firecracker', 'qemu', 'qemu-microvm', 'vz', 'fake'] as const
export const HypervisorKind = Type.Enum([...HYPERVISORS], {
  $id: 'HypervisorKind',
  description: 'What runs the VM. `fake` runs none: it is for development',
})
export type HypervisorKind = Static<typeof HypervisorKind>

const strict = { additionalProperties: false } as const
const Port = Type.Integer({ minimum: 1, maximum: 65_535 })

export const PortMapping = Type.Object(
  {
    host_port: Type.Integer({ minimum: 0, maximum: 65_535, description: '0 takes a free one' }),
    guest_port: Port,
    protocol: Type.Optional(Type.Enum(['tcp', 'udp'], { default: 'tcp' })),
    host_ip: Type.Optional(
      Type.String({
        maxLength: 45,
        description: 'Address of the host to listen on; left out, the one that the daemon is configured with (all of them)',
      }),
    ),
  },
  { $id: 'PortMapping', ...strict, description: 'A port of the guest, published on the host' },
)
export type PortMapping = Static<typeof PortMapping>

const MountPath = Type.String({ minLength: 2, maxLength: 4096, pattern: '^/[^\\u0000]*$', description: 'Absolute path in the guest' })

export const VolumeMount = Type.Object(
  {
    volume_id: Type.String({ minLength: 1, maxLength: 128 }),
    mount_path: MountPath,
    readonly: Type.Optional(Type.Boolean({ default: false })),
    overlay: Type.Optional(Type.Boolean({ default: false, description: 'Writes go to a layer of this instance alone; needs readonly' })),
    overlay_size: Type.Optional(ByteSize),
  },
  { $id: 'VolumeMount', ...strict },
)
export type VolumeMount = Static<typeof VolumeMount>

export const SnapshotCompression = Type.Object(
  {
    enabled: Type.Boolean(),
    algorithm: Type.Optional(Type.Enum(['zstd', 'lz4'])),
    level: Type.Optional(Type.Integer({ description: 'zstd 1-19, lz4 0-9' })),
  },
  { $id: 'SnapshotCompressionConfig', ...strict, description: 'How the memory of a sleeping instance is compressed' },
)

export const SnapshotPolicy = Type.Object(
  { compression: Type.Optional(SnapshotCompression), standby_compression_delay: Type.Optional(Duration) },
  { $id: 'SnapshotPolicy', ...strict },
)
export type SnapshotPolicy = Static<typeof SnapshotPolicy>

export const AutoStandbyPolicy = Type.Object(
  {
    enabled: Type.Optional(Type.Boolean({ default: false })),
    idle_timeout: Type.Optional({ ...Duration, description: 'After so long without a connection; needed where it is enabled' }),
    ignore_source_cidrs: Type.Optional(
      Type.Array(Type.String({ maxLength: 64 }), { maxItems: 256, description: 'Clients that do not keep it awake, such as 10.0.0.0/8' }),
    ),
    ignore_destination_ports: Type.Optional(
      Type.Array(Port, { maxItems: 256, description: 'Ports of the guest that do not keep it awake' }),
    ),
  },
  { $id: 'AutoStandbyPolicy', ...strict, description: 'Puts an instance into standby once no one is connected to it' },
)
export type AutoStandbyPolicy = Static<typeof AutoStandbyPolicy>

const AUTO_STANDBY_STATUS = [
  'unsupported',
  'disabled',
  'ineligible',
  'active',
  'idle_countdown',
  'ready_for_standby',
  'standby_requested',
  'error',
]
const AUTO_STANDBY_REASON = [
  'unsupported_platform',
  'policy_missing',
  'policy_disabled',
  'instance_not_running',
  'network_disabled',
  'missing_ip',
  'has_vgpu',
  'active_inbound_connections',
  'idle_timeout_not_elapsed',
  'observer_error',
  'ready_for_standby',
]

export const AutoStandbyStatus = Type.Object(
  {
    supported: Type.Boolean(),
    configured: Type.Boolean(),
    enabled: Type.Boolean(),
    eligible: Type.Boolean(),
    status: Type.Enum(AUTO_STANDBY_STATUS),
    reason: Type.Enum(AUTO_STANDBY_REASON),
    active_inbound_connections: Type.Integer({ description: 'TCP connections that keep it awake, and commands and copies under way' }),
    tracking_mode: Type.String({ description: 'How connections are counted' }),
    idle_timeout: Type.Optional(nullable(Type.String())),
    idle_since: Type.Optional(nullable(DateTime)),
    last_inbound_activity_at: Type.Optional(nullable(DateTime)),
    next_standby_at: Type.Optional(nullable(DateTime)),
    hold_until: Type.Optional(nullable(DateTime)),
    countdown_remaining: Type.Optional(nullable(Type.String())),
    last_error: Type.Optional(nullable(Type.String({ description: 'Why the status is `error`' }))),
  },
  { $id: 'AutoStandbyStatus' },
)
export type AutoStandbyStatus = Static<typeof AutoStandbyStatus>

export const HealthCheck = Type.Object(
  {
    type: Type.Optional(Type.Enum(['none', 'http', 'tcp', 'exec'], { default: 'none' })),
    interval: Type.Optional({ ...Duration, default: '10s', description: 'From the end of a check to the next; 100ms at least' }),
    timeout: Type.Optional({ ...Duration, default: '2s', description: 'How long a check may take; 1h at most' }),
    start_period: Type.Optional({ ...Duration, default: '30s', description: 'From when it is Running; failures in it do not count' }),
    failure_threshold: Type.Optional(Type.Integer({ minimum: 1, default: 3, description: 'Failures in a row that make it unhealthy' })),
    success_threshold: Type.Optional(Type.Integer({ minimum: 1, default: 1, description: 'Successes in a row that make it healthy' })),
    http: Type.Optional(
      Type.Object(
        {
          port: Port,
          path: Type.Optional(Type.String({ maxLength: 2048, default: '/' })),
          scheme: Type.Optional(Type.Enum(['http', 'https'], { default: 'http', description: 'No certificate is verified' })),
          expected_status: Type.Optional(Type.Integer({ minimum: 100, maximum: 599, default: 200 })),
        },
        { ...strict, description: 'A GET to the guest’s own address, asked from within; needs the network enabled' },
      ),
    ),
    tcp: Type.Optional(Type.Object({ port: Port }, strict)),
    exec: Type.Optional(
      Type.Object(
        { command: Type.Array(Type.String(), { minItems: 1 }), working_dir: Type.Optional(Type.String({ maxLength: 4096 })) },
        strict,
      ),
    ),
  },
  { $id: 'HealthCheck', ...strict, description: 'How it is found out whether the workload does what it is there for; given as a whole' },
)
export type HealthCheck = Static<typeof HealthCheck>

export const InstanceHealthStatus = Type.Object(
  {
    status: Type.Enum(['disabled', 'starting', 'healthy', 'unhealthy', 'unknown']),
    consecutive_successes: Type.Integer(),
    consecutive_failures: Type.Integer(),
    last_checked_at: Type.Optional(nullable(DateTime)),
    last_success_at: Type.Optional(nullable(DateTime)),
    last_failure_at: Type.Optional(nullable(DateTime)),
    last_error: Type.Optional(nullable(Type.String())),
  },
  {
    $id: 'InstanceHealthStatus',
    description: 'What the checks have found since it is Running. unknown: there is a check, and it does not run now',
  },
)

export const RestartPolicy = Type.Object(
  {
    policy: Type.Optional(
      Type.Enum(['never', 'always', 'on_failure'], {
        default: 'never',
        description: 'on_failure: when its workload ends with another code than 0, its VM is lost, or it is unhealthy; always: with 0 too',
      }),
    ),
    backoff: Type.Optional({ ...Duration, default: '5s', description: 'From its end, or the attempt before, to the next attempt' }),
    max_attempts: Type.Optional(Type.Integer({ minimum: 0, default: 0, description: 'In a row; 0 is no limit' })),
    stable_after: Type.Optional({ ...Duration, default: '10m', description: 'Once it has run for so long, attempts are counted anew' }),
  },
  { $id: 'RestartPolicy', ...strict, description: 'When it is started again without anyone asking; given as a whole' },
)
export type RestartPolicy = Static<typeof RestartPolicy>

export const RestartStatus = Type.Object(
  {
    attempts: Type.Optional(Type.Integer()),
    last_attempt_at: Type.Optional(nullable(DateTime)),
    next_attempt_at: Type.Optional(nullable(DateTime)),
    blocked_reason: Type.Optional(nullable(Type.Enum(['manual_stop', 'max_attempts_exceeded']))),
    last_reason: Type.Optional(nullable(Type.Enum(['health_check_failed']))),
  },
  {
    $id: 'RestartStatus',
    description: 'manual_stop: someone stopped it, and only a start by someone ends that',
  },
)

const Egress = Type.Object(
  {
    enabled: Type.Optional(Type.Boolean({ default: false })),
    enforcement: Type.Optional(
      Type.Object(
        {
          mode: Type.Optional(
            Type.Enum(['all', 'http_https_only'], {
              description: 'What it cannot open by itself: any TCP, which is the default, or ports 80 and 443',
            }),
          ),
        },
        strict,
      ),
    ),
  },
  { ...strict, description: 'What it opens by TCP goes through a proxy on the host, which puts its credentials in' },
)

const Credential = Type.Object(
  {
    source: Type.Object({ env: Type.String({ minLength: 1, maxLength: 256 }) }, strict),
    inject: Type.Array(
      Type.Object(
        {
          as: Type.Object(
            { header: Type.String({ minLength: 1, maxLength: 256 }), format: Type.String({ minLength: 1, maxLength: 1024 }) },
            strict,
          ),
          hosts: Type.Optional(Type.Array(Type.String({ maxLength: 255 }), { maxItems: 64 })),
        },
        strict,
      ),
      { minItems: 1, maxItems: 64 },
    ),
  },
  strict,
)

export const InstanceNetwork = Type.Object({
  enabled: Type.Boolean(),
  name: Type.Optional(Type.String({ description: 'The network it is on' })),
  ip: Type.Optional(nullable(Type.String())),
  mac: Type.Optional(nullable(Type.String())),
  bandwidth_download: Type.Optional(Bandwidth),
  bandwidth_upload: Type.Optional(Bandwidth),
  ports: Type.Optional(Type.Array(PortMapping)),
  egress: Type.Optional(Egress),
})

export const Instance = Type.Object(
  {
    id: Type.String({ description: 'Made by the daemon, 24 characters of the form of a CUID2' }),
    name: Type.String(),
    image: Type.String({ description: 'The image as it was asked for' }),
    image_digest: Type.Optional(Type.String({ description: 'The image it was made of; every later start uses this one' })),
    platform: Type.Optional(Type.String()),
    state: InstanceState,
    state_error: Type.Optional(nullable(Type.String({ description: 'Why the state is Unknown' }))),
    operation: Type.Optional(Type.String({ description: 'What is being done to it now' })),
    created_at: DateTime,
    started_at: Type.Optional(nullable(DateTime)),
    stopped_at: Type.Optional(nullable(DateTime)),
    expires_at: nullable(DateTime),
    exit_code: Type.Optional(nullable(Type.Integer({ description: 'Of the workload, once it has ended' }))),
    exit_message: Type.Optional(Type.String({ description: 'How the workload ended, in words' })),
    hypervisor: Type.Optional(HypervisorKind),
    vcpus: Type.Optional(Type.Integer()),
    size: Type.Optional(Type.String({ description: 'Memory' })),
    hotplug_size: Type.Optional(Type.String({ description: 'Memory beyond its size, which can be changed while it runs' })),
    overlay_size: Type.Optional(Type.String({ description: 'Writable disk' })),
    disk_io_bps: Type.Optional(Type.String({ description: 'What its disks may move together, where that was asked for' })),
    entrypoint: Type.Optional(Type.Array(Type.String(), { description: 'Given in place of the image’s own' })),
    cmd: Type.Optional(Type.Array(Type.String(), { description: 'Given in place of the image’s own' })),
    env: Type.Optional(
      Type.Record(Type.String(), Type.String(), { description: 'As its guest has it: of a credential `mock-NAME`, and no source of one' }),
    ),
    credentials: Type.Optional(
      Type.Record(Type.String(), Credential, { description: 'By the variable that its guest sees; the values are told to no one' }),
    ),
    tags: Type.Optional(Type.Record(Type.String(), Type.String())),
    network: Type.Optional(InstanceNetwork),
    volumes: Type.Optional(Type.Array(VolumeMount)),
    devices: Type.Optional(Type.Array(Type.String(), { description: 'Names of the devices of the host that it has' })),
    gpu: Type.Optional(
      Type.Object({
        profile: Type.Optional(Type.String({ description: 'What of a GPU it has while it runs' })),
        mdev_uuid: Type.Optional(Type.String({ description: 'Of the mediated device, while it runs' })),
      }),
    ),
    skip_guest_agent: Type.Optional(Type.Boolean({ description: 'No one enters its guest: no exec, cp or stat; absent where they may' })),
    fresh_boot: Type.Optional(Type.Boolean({ description: 'Every start boots from the beginning; absent where they need not' })),
    has_snapshot: Type.Optional(Type.Boolean({ description: 'Does it have a sleeping state to restore' })),
    snapshot_policy: Type.Optional(SnapshotPolicy),
    auto_standby: Type.Optional(AutoStandbyPolicy),
    health_check: Type.Optional(HealthCheck),
    health_status: Type.Optional(InstanceHealthStatus),
    restart_policy: Type.Optional(RestartPolicy),
    restart_status: Type.Optional(RestartStatus),
    phase_durations_ms: Type.Optional(
      Type.Record(Type.String(), Type.Integer(), { description: 'Time spent in each state so far, by its name in lower case' }),
    ),
    current_phase: Type.Optional(Type.String()),
    current_phase_since: Type.Optional(DateTime),
  },
  { $id: 'Instance' },
)
export type Instance = Static<typeof Instance>

const Argv = Type.Array(Type.String({ maxLength: 131_072, pattern: '^[^\\u0000]*$' }), { maxItems: 4096 })

const NetworkRequest = Type.Object(
  {
    enabled: Type.Optional(Type.Boolean({ default: true })),
    ports: Type.Optional(Type.Array(PortMapping, { maxItems: 64, description: 'Guest ports to publish on the host' })),
    bandwidth_download: Type.Optional(Bandwidth),
    bandwidth_upload: Type.Optional(Bandwidth),
    egress: Type.Optional(Egress),
  },
  strict,
)

export const CreateInstanceRequest = Type.Object(
  {
    name: Name,
    image: ImageName,
    platform: Type.Optional(Platform),
    hypervisor: Type.Optional(HypervisorKind),
    vcpus: Type.Optional(Type.Integer({ minimum: 1, maximum: 1024, default: 2 })),
    size: Type.Optional(Type.String({ maxLength: 32, default: '1GB', description: 'Memory, such as 512MB' })),
    hotplug_size: Type.Optional({
      ...ByteSize,
      description: 'Memory beyond its size, in blocks of 128MB: added once it runs, and from then on changed while it runs',
    }),
    overlay_size: Type.Optional(Type.String({ maxLength: 32, default: '10GB', description: 'Writable disk; takes space as it fills' })),
    disk_io_bps: Type.Optional({
      ...Rate,
      description: 'What its disks may read and write together, such as 100MB/s; its processors’ share when left out',
    }),
    entrypoint: Type.Optional(Argv),
    cmd: Type.Optional(Argv),
    env: Type.Optional(Env),
    tags: Type.Optional(Tags),
    network: Type.Optional(NetworkRequest),
    volumes: Type.Optional(Type.Array(VolumeMount, { maxItems: 23 })),
    devices: Type.Optional(
      Type.Array(Type.String({ maxLength: 128 }), {
        maxItems: 32,
        description: 'Registered devices of the host, by name or id; at most 8, and its own until it is deleted',
      }),
    ),
    gpu: Type.Optional(
      Type.Object(
        {
          profile: Type.Optional(
            Type.String({ maxLength: 128, description: 'A part of a GPU, such as L40S-1Q, made with each start; `/resources` lists them' }),
          ),
        },
        strict,
      ),
    ),
    credentials: Type.Optional(
      Type.Record(Type.String({ pattern: '^[^=\\u0000]{1,256}$' }), Credential, {
        additionalProperties: false,
        description:
          'By the variable that the guest sees, which says `mock-NAME`: the value of `source.env` stays on the host, and is put into what is asked of `hosts`. Needs `network.egress`',
      }),
    ),
    ttl: Type.Optional(Type.String({ maxLength: 64, description: 'Deleted this long after it was made; 0s is never' })),
    expires_at: Type.Optional(DateTime),
    snapshot_policy: Type.Optional(SnapshotPolicy),
    auto_standby: Type.Optional(AutoStandbyPolicy),
    health_check: Type.Optional(HealthCheck),
    restart_policy: Type.Optional(RestartPolicy),
    skip_kernel_headers: Type.Optional(Type.Boolean({ description: 'Taken and without effect: modules come with the guest kernel' })),
    skip_guest_agent: Type.Optional(
      Type.Boolean({
        default: false,
        description: 'No one enters the guest: exec, cp, stat and health checks that run a program are refused, of it and of its forks',
      }),
    ),
    fresh_boot: Type.Optional(
      Type.Boolean({ default: false, description: 'Every start boots from the beginning, with a kernel that draws secrets of its own' }),
    ),
  },
  { $id: 'CreateInstanceRequest', ...strict },
)
export type CreateInstanceRequest = Static<typeof CreateInstanceRequest>

export const UpdateInstanceRequest = Type.Object(
  {
    name: Type.Optional(Name),
    tags: Type.Optional(Tags),
    env: Type.Optional(EnvChange),
    network: Type.Optional(
      Type.Object(
        {
          ports: Type.Optional(Type.Array(PortMapping, { maxItems: 64 })),
          bandwidth_download: Type.Optional(Bandwidth),
          bandwidth_upload: Type.Optional(Bandwidth),
        },
        strict,
      ),
    ),
    vcpus: Type.Optional(Type.Integer({ minimum: 1, maximum: 1024, description: 'While Stopped' })),
    size: Type.Optional(Type.String({ maxLength: 32, description: 'Memory; while Stopped' })),
    hotplug_size: Type.Optional({
      ...ByteSize,
      description: 'Memory beyond its size; while Stopped, or while Running if it was started with some',
    }),
    overlay_size: Type.Optional(Type.String({ maxLength: 32, description: 'Writable disk, can only grow; while Stopped' })),
    disk_io_bps: Type.Optional({
      ...Rate,
      description: 'What its disks may read and write together, at once; 0 for its processors’ share',
    }),
    ttl: Type.Optional(Duration),
    expires_at: Type.Optional(DateTime),
    snapshot_policy: Type.Optional(SnapshotPolicy),
    auto_standby: Type.Optional(AutoStandbyPolicy),
    health_check: Type.Optional(HealthCheck),
    restart_policy: Type.Optional(RestartPolicy),
  },
  { $id: 'UpdateInstanceRequest', ...strict, minProperties: 1 },
)
export type UpdateInstanceRequest = Static<typeof UpdateInstanceRequest>

export const StartInstanceRequest = Type.Object(
  { entrypoint: Type.Optional(Argv), cmd: Type.Optional(Argv) },
  {
    $id: 'StartInstanceRequest',
    ...strict,
    description: 'What is given is kept for later starts; what is left out or empty stays as it was',
  },
)
export type StartInstanceRequest = Static<typeof StartInstanceRequest>

export const StopInstanceRequest = Type.Object(
  {
    force: Type.Optional(Type.Boolean({ default: false, description: 'Kill it at once' })),
    timeout: Type.Optional(Type.String({ maxLength: 64, description: 'How long the workload may take to end by itself, such as 10s' })),
  },
  { $id: 'StopInstanceRequest', ...strict },
)
export type StopInstanceRequest = Static<typeof StopInstanceRequest>

export const StandbyInstanceRequest = Type.Object(
  { compression: Type.Optional(SnapshotCompression), compression_delay: Type.Optional(Duration) },
  { $id: 'StandbyInstanceRequest', ...strict },
)

export const TargetState = Type.Enum(['Stopped', 'Standby', 'Running'])

export const ForkInstanceRequest = Type.Object(
  {
    name: Name,
    from_running: Type.Optional(Type.Boolean({ default: false })),
    target_state: Type.Optional(TargetState),
    network: Type.Optional(
      Type.Object(
        {
          ports: Type.Optional(Type.Array(PortMapping, { maxItems: 64 })),
          bandwidth_download: Type.Optional(Bandwidth),
          bandwidth_upload: Type.Optional(Bandwidth),
        },
        { ...strict, description: 'Ports are its own; a bandwidth that is left out is its source’s' },
      ),
    ),
  },
  { $id: 'ForkInstanceRequest', ...strict },
)
export type ForkInstanceRequest = Static<typeof ForkInstanceRequest>

export const AttachVolumeRequest = Type.Object(
  {
    mount_path: MountPath,
    readonly: Type.Optional(Type.Boolean({ default: false })),
    overlay: Type.Optional(Type.Boolean({ default: false, description: 'Writes go to a layer of this instance alone; needs readonly' })),
    overlay_size: Type.Optional(ByteSize),
  },
  { $id: 'AttachVolumeRequest', ...strict },
)
export type AttachVolumeRequest = Static<typeof AttachVolumeRequest>

export const PathInfo = Type.Object(
  {
    exists: Type.Boolean(),
    is_dir: Type.Optional(Type.Boolean()),
    is_file: Type.Optional(Type.Boolean()),
    is_symlink: Type.Optional(Type.Boolean()),
    link_target: Type.Optional(nullable(Type.String())),
    mode: Type.Optional(Type.Integer({ description: 'Permission bits' })),
    size: Type.Optional(Type.Integer()),
    error: Type.Optional(nullable(Type.String({ description: 'Why it could not be looked at; absence is no error' }))),
  },
  { $id: 'PathInfo' },
)
export type PathInfo = Static<typeof PathInfo>

export const InstanceStats = Type.Object(
  {
    instance_id: Type.String(),
    instance_name: Type.String(),
    cpu_seconds: Type.Number({ description: 'Used by the VMM process since it began' }),
    memory_rss_bytes: Type.Integer(),
    memory_vms_bytes: Type.Integer(),
    network_rx_bytes: Type.Integer({ description: 'As the guest sees it' }),
    network_tx_bytes: Type.Integer({ description: 'As the guest sees it' }),
    allocated_vcpus: Type.Integer(),
    allocated_memory_bytes: Type.Integer(),
    memory_utilization_ratio: Type.Optional(nullable(Type.Number())),
  },
  { $id: 'InstanceStats' },
)
export type InstanceStats = Static<typeof InstanceStats>

export const WaitForStateResponse = Type.Object(
  {
    state: InstanceState,
    timed_out: Type.Boolean(),
    state_error: Type.Optional(nullable(Type.String())),
    reason: Type.Optional(Type.String({ description: 'Why the answer came without the wanted state, in words' })),
  },
  { $id: 'WaitForStateResponse' },
)
export type WaitForStateResponse = Static<typeof WaitForStateResponse>

export const LOG_SOURCES = ['app', 'vmm', 'hypeman', 'daemon'] as const
export const LogSource = Type.Enum([...LOG_SOURCES], {
  default: 'app',
  description: 'app: what the workload wrote; vmm: the VMM and the guest kernel; daemon (or hypeman): our own lines about it',
})
export type LogSource = Static<typeof LogSource>
