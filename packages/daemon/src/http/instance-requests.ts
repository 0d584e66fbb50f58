/** What callers write, as the instances room takes it: texts become numbers here, each with its own error code. */
import { isIP } from 'node:net'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import type {
  CreateInstanceRequest,
  ForkInstanceRequest,
  PortMapping,
  UpdateInstanceRequest,
  VolumeMount,
} from '@dormouse/api/instances.ts'
import { WAIT_MAX_MS } from '@dormouse/api/routes.ts'
import type { ForkSnapshotRequest } from '@dormouse/api/snapshots.ts'
import { parseBandwidth, parseDiskRate, parseDuration, parseSize } from '@dormouse/api/units.ts'
import type { CreateInstance, ForkInstance, MountRequest, PortRequest, UpdateInstance } from '../instances/instance.ts'
import { toAutoStandbyPolicy } from './auto-standby-requests.ts'
import { toEgress } from './check-egress.ts'
import { checkPolicies } from './check-policies.ts'
import { toHealthCheck, toRestartPolicy } from './supervision-requests.ts'

export function toCreateInstance(body: CreateInstanceRequest, nowMs: number): CreateInstance {
  checkTexts(body)
  const expiresAtMs = parseExpiry(body, nowMs)
  const memoryBytes = sizeOf(body.size, 'size', 'invalid_size')
  const overlayBytes = sizeOf(body.overlay_size, 'overlay_size', 'invalid_overlay_size')
  const egress = toEgress(body)
  return {
    name: body.name,
    image: body.image,
    ...present('platform', platformOf(body.platform)),
    ...present('hypervisor', body.hypervisor),
    ...present('vcpus', body.vcpus),
    ...present('memoryBytes', memoryBytes),
    ...present('overlayBytes', overlayBytes),
    ...present('hotplugBytes', hotplugOf(body.hotplug_size)),
    // 0 is what it is without it.
    ...present('diskIoBps', diskRate(body.disk_io_bps) || undefined),
    ...present('entrypoint', nonEmpty(body.entrypoint)),
    ...present('cmd', nonEmpty(body.cmd)),
    ...present('env', body.env),
    ...present('tags', body.tags),
    ...(body.network && {
      network: {
        ...present('enabled', body.network.enabled),
        ...present('ports', body.network.ports?.map(toPortRequest)),
        ...bandwidthOf(body.network),
      },
    }),
    ...present('egress', egress),
    ...present(
      'volumes',
      body.volumes?.map((mount, index) => toMountRequest(mount, `volumes[${index}].`)),
    ),
    ...present('devices', nonEmpty(body.devices)),
    ...present('gpuProfile', body.gpu?.profile || undefined),
    ...present('snapshotPolicy', body.snapshot_policy),
    ...(body.auto_standby && { autoStandby: toAutoStandbyPolicy(body.auto_standby) }),
    ...present('skipKernelHeaders', body.skip_kernel_headers),
    ...present('skipGuestAgent', body.skip_guest_agent),
    ...present('freshBoot', body.fresh_boot),
    ...(typeof expiresAtMs === 'number' && { expiresAtMs }),
    ...present('healthCheck', body.health_check && toHealthCheck(body.health_check)),
    ...present('restartPolicy', body.restart_policy && toRestartPolicy(body.restart_policy)),
  }
}

export function toUpdateInstance(body: UpdateInstanceRequest, nowMs: number): UpdateInstance {
  checkTexts(body)
  const expiresAtMs = parseExpiry(body, nowMs)
  const memoryBytes = sizeOf(body.size, 'size', 'invalid_size')
  const overlayBytes = sizeOf(body.overlay_size, 'overlay_size', 'invalid_overlay_size')
  return {
    ...present('name', body.name),
    ...present('tags', body.tags),
    ...present('env', body.env),
    ...present('snapshotPolicy', body.snapshot_policy),
    ...(body.auto_standby && { autoStandby: toAutoStandbyPolicy(body.auto_standby) }),
    ...present('expiresAtMs', expiresAtMs),
    ...present('healthCheck', body.health_check && toHealthCheck(body.health_check)),
    ...present('restartPolicy', body.restart_policy && toRestartPolicy(body.restart_policy)),
    ...(body.network && { network: { ...present('ports', body.network.ports?.map(toPortRequest)), ...bandwidthOf(body.network) } }),
    ...present('vcpus', body.vcpus),
    ...present('memoryBytes', memoryBytes),
    ...present('overlayBytes', overlayBytes),
    ...present('hotplugBytes', hotplugOf(body.hotplug_size)),
    ...present('diskIoBps', diskRate(body.disk_io_bps)),
  }
}

/** `where` it stands in the request. */
export function toMountRequest(mount: VolumeMount, where = ''): MountRequest {
  const { volume_id: volume, mount_path: mountPath, readonly: readOnly = false, overlay = false, overlay_size } = mount
  const overlayBytes = sizeOf(overlay_size, `${where}overlay_size`, 'invalid_overlay_size')
  if (overlay && !readOnly) {
    throw new AppError('invalid_request', `\`${where}overlay\` is for a volume that is shared: it needs \`readonly\``)
  }
  if (overlay && overlayBytes === undefined) throw new AppError('invalid_overlay_size', `\`${where}overlay\` needs an \`overlay_size\``)
  if (!overlay && overlayBytes !== undefined) throw new AppError('invalid_overlay_size', `\`${where}overlay_size\` needs \`overlay\``)
  return { volume, mountPath, readOnly, ...present('overlayBytes', overlayBytes) }
}

export function toForkInstance(body: ForkInstanceRequest | ForkSnapshotRequest): ForkInstance {
  const network = 'network' in body ? (body.network ?? {}) : {}
  checkBandwidth(network)
  return {
    name: body.name,
    ...('from_running' in body ? present('fromRunning', body.from_running) : {}),
    ...present('target', body.target_state),
    ...present('ports', network.ports?.map(toPortRequest)),
    ...bandwidthOf(network),
  }
}

/** Milliseconds of `timeout`, whole ones since timers take no other; what is longer than the daemon waits becomes as long as it waits. */
export function waitLimitMs(timeout: string | undefined): number {
  const ms = parseDuration(timeout ?? '60s')
  if (ms === undefined || ms <= 0) {
    throw new AppError('invalid_timeout', `\`timeout\` is ${JSON.stringify(timeout)}, but must be a duration above 0 such as 90s or 2m`)
  }
  return Math.min(Math.ceil(ms), WAIT_MAX_MS)
}

/** Of a stop. Undefined: as configured. */
export function graceMs(timeout: string | undefined): number | undefined {
  if (timeout === undefined || timeout === '') return undefined
  const ms = parseDuration(timeout)
  if (ms === undefined || ms < 0)
    throw new AppError('invalid_timeout', `\`timeout\` is ${JSON.stringify(timeout)}, but must be a duration such as 10s`)
  return Math.min(Math.ceil(ms), WAIT_MAX_MS)
}

function present<K extends string, V>(key: K, value: V | undefined): { [P in K]?: V } {
  return (value === undefined ? {} : { [key]: value }) as { [P in K]?: V }
}

/** The text has been checked. */
const hotplugOf = (text: string | undefined): number | undefined => (text?.trim() ? parseSize(text) : undefined)

/** The text has been checked. */
const diskRate = (text: string | undefined): number | undefined => (text?.trim() ? parseDiskRate(text) : undefined)

const nonEmpty = (list: readonly string[] | undefined): readonly string[] | undefined => (list?.length ? list : undefined)

const MIB = 2 ** 20

/** In whole MiB, upwards: VMs and disks have no smaller parts. An empty text means the default. */
function sizeOf(text: string | undefined, field: string, code: ErrorCode): number | undefined {
  if (text === undefined || text.trim() === '') return undefined
  const bytes = parseSize(text)
  if (bytes === undefined || bytes <= 0) {
    throw new AppError(code, `\`${field}\` is ${JSON.stringify(text)}, but must be a size such as 512MB or 1.5GB`)
  }
  return Math.ceil(bytes / MIB) * MIB
}

type Rates = Pick<CreateInstanceRequest, 'hotplug_size' | 'disk_io_bps' | 'network' | 'volumes'>

/** What is not built is understood all the same, so that a mistake is told as one and not as a thing that this version lacks. */
function checkTexts(body: Rates & Parameters<typeof checkPolicies>[0]): void {
  const { hotplug_size, disk_io_bps, network, volumes = [] } = body
  checkText('hotplug_size', hotplug_size, parseSize, 'invalid_hotplug_size', 'size such as 512MB')
  checkText('disk_io_bps', disk_io_bps, parseDiskRate, 'invalid_disk_io_bps', 'rate such as 100MB/s')
  if (network) checkBandwidth(network)
  for (const [index, { overlay_size }] of volumes.entries()) sizeOf(overlay_size, `volumes[${index}].overlay_size`, 'invalid_overlay_size')
  checkPolicies(body)
}

interface BandwidthTexts {
  readonly bandwidth_download?: string
  readonly bandwidth_upload?: string
}

function checkBandwidth({ bandwidth_download, bandwidth_upload }: BandwidthTexts): void {
  const what = 'rate such as 1Gbps or 125MB/s'
  checkText('network.bandwidth_download', bandwidth_download, parseBandwidth, 'invalid_bandwidth_download', what)
  checkText('network.bandwidth_upload', bandwidth_upload, parseBandwidth, 'invalid_bandwidth_upload', what)
}

/** Bytes per second; 0 is no limit. The texts in it have been checked. */
function bandwidthOf({ bandwidth_download, bandwidth_upload }: BandwidthTexts): { bandwidthDownload?: number; bandwidthUpload?: number } {
  const rate = (text: string | undefined): number | undefined => (text === undefined ? undefined : (parseBandwidth(text) ?? 0))
  return { ...present('bandwidthDownload', rate(bandwidth_download)), ...present('bandwidthUpload', rate(bandwidth_upload)) }
}

function checkText(
  field: string,
  text: string | undefined,
  parse: (text: string) => number | undefined,
  code: ErrorCode,
  what: string,
): void {
  if (text === undefined || text.trim() === '' || parse(text) !== undefined) return
  throw new AppError(code, `\`${field}\` is ${JSON.stringify(text)}, but must be a ${what}`)
}

const PLATFORMS = ['linux/amd64', 'linux/arm64']

function platformOf(text: string | undefined): string | undefined {
  if (text === undefined || PLATFORMS.some((platform) => text === platform || text.startsWith(`${platform}/`))) return text
  throw new AppError('invalid_platform', `\`platform\` is ${text}, but must be one of ${PLATFORMS.join(', ')}`)
}

function toPortRequest(port: PortMapping): PortRequest {
  // A zone is of one host's links, and would be left out without a word.
  if (port.host_ip !== undefined && (!isIP(port.host_ip) || port.host_ip.includes('%'))) {
    throw new AppError('invalid_request', `\`host_ip\` of port ${port.guest_port} is no IP address: ${JSON.stringify(port.host_ip)}`)
  }
  return {
    hostPort: port.host_port,
    guestPort: port.guest_port,
    ...present('protocol', port.protocol),
    ...present('hostIp', port.host_ip),
  }
}

/** The last moment that everyone can write: years have four digits. */
const LATEST_MS = Date.parse('9999-12-31T23:59:59.999Z')

/** When it ends: undefined leaves it as it is, null is never. */
function parseExpiry(body: { readonly ttl?: string; readonly expires_at?: string }, nowMs: number): number | null | undefined {
  if (body.ttl !== undefined && body.expires_at !== undefined) {
    throw new AppError('invalid_request', '`ttl` and `expires_at` exclude each other: give one of them')
  }
  if (body.ttl !== undefined) {
    const ms = parseDuration(body.ttl)
    if (ms === undefined || ms < 0) {
      throw new AppError(
        'invalid_ttl',
        `\`ttl\` is ${JSON.stringify(body.ttl)}, but must be a duration such as 90m, at most 292 years; 0s is never`,
      )
    }
    return ms === 0 ? null : nowMs + Math.ceil(ms)
  }
  if (body.expires_at === undefined) return undefined
  const at = Date.parse(body.expires_at)
  if (!Number.isFinite(at) || at > LATEST_MS) throw new AppError('invalid_expires_at', `\`expires_at\` is no time: ${body.expires_at}`)
  if (at <= nowMs) throw new AppError('invalid_expires_at', `\`expires_at\` is in the past: ${body.expires_at}`)
  return at
}
