import type { PortMapping, Instance as Shown, SnapshotPolicy, VolumeMount } from '@dormouse/api/instances.ts'
import { formatBandwidth, formatRate, formatSize } from '@dormouse/api/units.ts'
import { guestVariablesOf } from '../egress/credentials.ts'
import { durationsAt, type Instance } from '../instances/instance.ts'
import type { Attention } from '../supervision/supervision.ts'
import { presentAttention, presentHealthCheck, presentRestartPolicy } from './present-attention.ts'
import { presentAutoStandbyPolicy } from './present-auto-standby.ts'

const iso = (ms: number): string => new Date(ms).toISOString()
const isoOrNull = (ms: number | undefined): string | null => (ms === undefined ? null : iso(ms))

/** An instance towards the API. What the contract lists as nullable is null when it does not apply; everything else is absent. */
export function presentInstance(instance: Instance, nowMs: number, attention: Attention = {}): Shown {
  return {
    id: instance.id,
    name: instance.name,
    image: instance.image,
    image_digest: instance.imageDigest,
    platform: instance.platform,
    state: instance.state,
    state_error: instance.stateError ?? null,
    ...(instance.operation !== undefined && { operation: instance.operation }),
    created_at: iso(instance.createdAtMs),
    started_at: isoOrNull(instance.startedAtMs),
    stopped_at: isoOrNull(instance.stoppedAtMs),
    expires_at: isoOrNull(instance.expiresAtMs),
    exit_code: instance.exitCode ?? null,
    ...(instance.exitMessage !== undefined && { exit_message: instance.exitMessage }),
    hypervisor: instance.hypervisor,
    vcpus: instance.vcpus,
    size: formatSize(instance.memoryBytes),
    ...(instance.hotplugBytes > 0 && { hotplug_size: formatSize(instance.hotplugBytes) }),
    overlay_size: formatSize(instance.overlayBytes),
    ...(instance.diskIoBps !== undefined && { disk_io_bps: formatRate(instance.diskIoBps) }),
    ...(instance.entrypoint !== undefined && { entrypoint: [...instance.entrypoint] }),
    ...(instance.cmd !== undefined && { cmd: [...instance.cmd] }),
    env: guestVariablesOf(instance.env, instance.egress?.credentials ?? {}),
    ...presentCredentials(instance),
    tags: instance.tags,
    network: presentNetwork(instance),
    volumes: instance.volumes.map(presentMount),
    ...(instance.devices !== undefined && { devices: instance.devices.map(({ name }) => name) }),
    ...(instance.gpu !== undefined && {
      gpu: { profile: instance.gpu.profile, ...(instance.gpu.mdevUuid !== undefined && { mdev_uuid: instance.gpu.mdevUuid }) },
    }),
    ...(instance.skipGuestAgent && { skip_guest_agent: true }),
    ...(instance.freshBoot && { fresh_boot: true }),
    has_snapshot: instance.sleep !== undefined,
    ...(instance.snapshotPolicy !== undefined && { snapshot_policy: instance.snapshotPolicy as SnapshotPolicy }),
    ...(instance.autoStandby !== undefined && { auto_standby: presentAutoStandbyPolicy(instance.autoStandby) }),
    ...(instance.healthCheck !== undefined && { health_check: presentHealthCheck(instance.healthCheck) }),
    ...(instance.restartPolicy !== undefined && { restart_policy: presentRestartPolicy(instance.restartPolicy) }),
    ...presentAttention(attention),
    phase_durations_ms: durationsAt(instance.phases, nowMs) as Record<string, number>,
    current_phase: instance.phases.current.toLowerCase(),
    current_phase_since: iso(instance.phases.sinceMs),
  }
}

const presentMount = ({ volumeId, mountPath, readOnly, overlayBytes }: Instance['volumes'][number]): VolumeMount => ({
  volume_id: volumeId,
  mount_path: mountPath,
  readonly: readOnly,
  ...(overlayBytes !== undefined && { overlay: true, overlay_size: formatSize(overlayBytes) }),
})

/** Which there are and how they are used; no one is told a value. */
function presentCredentials({ egress }: Instance): Pick<Shown, 'credentials'> {
  const all = Object.entries(egress?.credentials ?? {})
  if (all.length === 0) return {}
  const shown = all.map(([name, { source, inject }]) => [
    name,
    {
      source: { env: source },
      inject: inject.map(({ header, format, hosts }) => ({ as: { header, format }, ...(hosts && { hosts: [...hosts] }) })),
    },
  ])
  return { credentials: Object.fromEntries(shown) }
}

function presentNetwork({ network, egress }: Instance): NonNullable<Shown['network']> {
  if (!network.enabled) return { enabled: false, ip: null, mac: null }
  return {
    enabled: true,
    name: 'default',
    ip: network.ip ?? null,
    mac: network.mac ?? null,
    ports: network.ports.map(
      (port): PortMapping => ({ host_port: port.hostPort, guest_port: port.guestPort, protocol: port.protocol, host_ip: port.hostIp }),
    ),
    ...(network.bandwidthDownload !== undefined && { bandwidth_download: formatBandwidth(network.bandwidthDownload) }),
    ...(network.bandwidthUpload !== undefined && { bandwidth_upload: formatBandwidth(network.bandwidthUpload) }),
    ...(egress && { egress: { enabled: true, enforcement: { mode: egress.mode } } }),
  }
}
