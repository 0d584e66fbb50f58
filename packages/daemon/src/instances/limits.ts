/** Pure checks of what a caller asks for. All throw AppError naming the field. */
import { isDeepStrictEqual } from 'node:util'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import { formatRate, formatSize } from '@dormouse/api/units.ts'
import { canonicalAddress, overlaps } from '../host/host-ports.ts'
import type { PortForward } from '../hypervisors/hypervisor.ts'
import { nameFilter } from '../lib/name-filter.ts'
import type { HealthCheck, Instance, PortRequest, UpdateInstance } from './instance.ts'

export interface Limits {
  readonly maxVcpus: number
  readonly maxMemoryBytes: number
  readonly maxOverlayBytes: number
}

/** Limits of instances whose name fits; what is left out is as for all. */
export interface NameLimits extends Partial<Limits> {
  /** With `*` for any text. */
  readonly pattern: string
}

export interface AllLimits extends Limits {
  /** In order: the first that fits a name counts. */
  readonly nameLimits: readonly NameLimits[]
}

/** What an instance of that name may have. */
export function limitsOf(name: string, { nameLimits, ...general }: AllLimits): Limits {
  const { pattern: _, ...own } = nameLimits.find(({ pattern }) => nameFilter([pattern])(name)) ?? { pattern: '' }
  return { ...general, ...own }
}

/** Throws when what is called `before`, or was taken from it, is more than one that is called `name` may be. */
export function assertAllowedAs(name: string, before: Pick<Instance, 'name' | 'hotplugBytes' | keyof Sizes>, limits: AllLimits): void {
  const [then, now] = [limitsOf(name, limits), limitsOf(before.name, limits)]
  // What it has been given under limits of before is its own.
  if (isDeepStrictEqual(then, now)) return
  checkSizes(before, then)
  checkHotplug(before.hotplugBytes, before.memoryBytes, then)
}

export interface Sizes {
  readonly vcpus: number
  readonly memoryBytes: number
  readonly overlayBytes: number
}

export const DEFAULT_SIZES: Sizes = { vcpus: 2, memoryBytes: 2 ** 30, overlayBytes: 10 * 2 ** 30 }

const MIB = 2 ** 20
// Debian's cloud kernel with its initrd does not come up in less.
const MIN_MEMORY = 128 * MIB
// ext4 with a journal wants some room to be of use.
const MIN_OVERLAY = 32 * MIB

export function checkSizes({ vcpus, memoryBytes, overlayBytes }: Sizes, limits: Limits): void {
  if (!Number.isInteger(vcpus) || vcpus < 1 || vcpus > limits.maxVcpus) {
    throw new AppError('invalid_request', `vcpus must be between 1 and ${limits.maxVcpus}, not ${vcpus}`)
  }
  checkSize('size', 'invalid_size', memoryBytes, MIN_MEMORY, limits.maxMemoryBytes)
  checkSize('overlay_size', 'invalid_overlay_size', overlayBytes, MIN_OVERLAY, limits.maxOverlayBytes)
}

function checkSize(field: string, code: ErrorCode, bytes: number, min: number, max: number): void {
  if (!Number.isSafeInteger(bytes) || bytes < min || bytes > max) {
    throw new AppError(code, `${field} must be between ${formatSize(min)} and ${formatSize(max)}, not ${formatSize(bytes)}`)
  }
  if (bytes % MIB !== 0) throw new AppError(code, `${field} must be a multiple of 1MB, not ${formatSize(bytes)}`)
}

/** Linux gives and takes memory in blocks. */
const HOTPLUG_BLOCK = 128 * MIB
// The guest's kernel describes what is added in what it began with: 16 bytes of a thousand.
const MOST_TIMES_ITS_SIZE = 16

/** `memoryBytes` is what it begins with. */
export function checkHotplug(hotplugBytes: number, memoryBytes: number, limits: Limits): void {
  if (hotplugBytes === 0) return
  if (!Number.isSafeInteger(hotplugBytes) || hotplugBytes < 0 || hotplugBytes % HOTPLUG_BLOCK !== 0) {
    throw new AppError(
      'invalid_hotplug_size',
      `hotplug_size must be a multiple of ${formatSize(HOTPLUG_BLOCK)}, not ${formatSize(hotplugBytes)}`,
    )
  }
  if (memoryBytes + hotplugBytes > limits.maxMemoryBytes) {
    throw new AppError('invalid_hotplug_size', `size and hotplug_size together must not be more than ${formatSize(limits.maxMemoryBytes)}`)
  }
  if (hotplugBytes > MOST_TIMES_ITS_SIZE * memoryBytes) {
    throw new AppError(
      'invalid_hotplug_size',
      `hotplug_size must not be more than ${MOST_TIMES_ITS_SIZE} times size, ${formatSize(memoryBytes)}`,
    )
  }
}

// A guest that reads its programs more slowly than this does not come up in time.
const MIN_DISK_RATE = MIB

export function checkDiskRate(bytesPerSecond: number): void {
  if (Number.isSafeInteger(bytesPerSecond) && bytesPerSecond >= MIN_DISK_RATE && bytesPerSecond <= MAX_DISK_RATE) return
  const bounds = `between ${formatRate(MIN_DISK_RATE)} and ${formatRate(MAX_DISK_RATE)}`
  throw new AppError('invalid_disk_io_bps', `disk_io_bps must be ${bounds}, not ${formatRate(bytesPerSecond)}`)
}

/** More than any disk moves, and less than what VMMs count with. */
const MAX_DISK_RATE = 2 ** 40

const NAME = /^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/

export function checkName(name: string): void {
  if (name.length > 63 || !NAME.test(name)) {
    throw new AppError(
      'invalid_name',
      `${JSON.stringify(name.slice(0, 80))} is no name: lower-case letters, digits and dashes, at most 63, a letter or digit at both ends`,
    )
  }
}

const MAX_ENV_BYTES = 256 * 1024
// execve(2): a word holds 128 KiB with its NUL, and so does a variable with its name.
const MAX_WORD_BYTES = 128 * 1024 - 1
// An authority of 32 KiB, and the variables by which programs find it and the proxy, go to the guest in one request with it.
const EGRESS_BYTES = 64 * 1024

/** Names without `=` and NUL, values without NUL, and all of it small enough for one exec, beside what a way out by a proxy needs. */
export function checkEnv(env: Readonly<Record<string, string>>, { hasEgress }: { readonly hasEgress: boolean }): void {
  const most = hasEgress ? MAX_ENV_BYTES - EGRESS_BYTES : MAX_ENV_BYTES
  let bytes = 0
  for (const [key, value] of Object.entries(env)) {
    if (key === '' || /[=\0]/.test(key) || value.includes('\0')) {
      throw new AppError('invalid_request', `${JSON.stringify(key.slice(0, 80))} cannot be an environment variable`)
    }
    const own = Buffer.byteLength(key) + Buffer.byteLength(value) + 1
    if (own > MAX_WORD_BYTES) {
      throw new AppError(
        'invalid_request',
        `The environment variable ${key.slice(0, 80)} is larger than a program can be given: ${MAX_WORD_BYTES} bytes with its name`,
        {
          hint: 'Put what is large into a file: dormouse cp, or a volume',
        },
      )
    }
    bytes += own + 1
  }
  if (bytes > most) throw new AppError('invalid_request', `The environment is larger than ${formatSize(most)}`)
}

/** Throws `invalid_request` for a word that no program can be given. */
export function checkCommand({
  entrypoint = [],
  cmd = [],
}: {
  readonly entrypoint?: readonly string[]
  readonly cmd?: readonly string[]
}): void {
  for (const word of [...entrypoint, ...cmd]) {
    if (Buffer.byteLength(word) <= MAX_WORD_BYTES) continue
    throw new AppError('invalid_request', `A word of the command is larger than a program can be given: ${MAX_WORD_BYTES} bytes`, {
      hint: 'Put what is large into a file: dormouse cp, or a volume',
    })
  }
}

/** The ports as a driver takes them; each host port once. `hostPort` 0 stays 0 here. */
export function portsOf(requests: readonly PortRequest[], defaultIp: string): PortForward[] {
  const ports = requests.map(({ protocol = 'tcp', hostIp = defaultIp, hostPort, guestPort }) => ({
    protocol,
    hostIp: canonicalAddress(hostIp),
    hostPort,
    guestPort,
  }))
  for (const [index, port] of ports.entries()) {
    if (!isPort(port.guestPort) || (port.hostPort !== 0 && !isPort(port.hostPort))) {
      throw new AppError('invalid_request', `${port.hostPort}:${port.guestPort} is no pair of ports`)
    }
    const twin = ports.slice(0, index).find((other) => port.hostPort !== 0 && overlaps(port, other))
    if (twin) throw new AppError('invalid_request', `The host port ${port.hostPort}/${port.protocol} is asked for twice`)
  }
  return ports
}

/** What is asked for over what is there, in bytes per second; 0 takes the limit away. */
export function bandwidthOf(
  { bandwidthDownload, bandwidthUpload }: Rates,
  before: Rates = {},
): { readonly bandwidthDownload?: number; readonly bandwidthUpload?: number } {
  const down = checkRate('bandwidth_download', 'invalid_bandwidth_download', bandwidthDownload ?? before.bandwidthDownload)
  const up = checkRate('bandwidth_upload', 'invalid_bandwidth_upload', bandwidthUpload ?? before.bandwidthUpload)
  return { ...(down === undefined ? {} : { bandwidthDownload: down }), ...(up === undefined ? {} : { bandwidthUpload: up }) }
}

interface Rates {
  readonly bandwidthDownload?: number | undefined
  readonly bandwidthUpload?: number | undefined
}

// Below, one large frame takes seconds; above, no card is as fast.
const MIN_RATE = 8 * 1024
const MAX_RATE = 2 ** 40

function checkRate(field: string, code: ErrorCode, rate: number | undefined): number | undefined {
  if (rate === undefined || rate === 0) return undefined
  if (!Number.isSafeInteger(rate) || rate < MIN_RATE || rate > MAX_RATE) {
    throw new AppError(
      code,
      `network.${field} must be between ${formatRate(MIN_RATE)} and ${formatRate(MAX_RATE)}, not ${formatRate(rate)}`,
    )
  }
  return rate
}

const isPort = (port: number): boolean => Number.isInteger(port) && port >= 1 && port <= 65_535

/** What only an instance with a network can have. */
export function assertNoNetwork({ ports, ...rates }: NonNullable<UpdateInstance['network']>): void {
  if (ports?.length) throw new AppError('invalid_request', 'Ports can be published only with the network enabled')
  if (Object.keys(bandwidthOf(rates)).length > 0) {
    throw new AppError('invalid_request', 'Bandwidth can be limited only with the network enabled')
  }
}

/**
 * Throws `invalid_request` for a check that cannot be made of such an instance: of a port without a network, and of a program in a guest
 * that lets no one run one.
 */
export function assertCheckable(
  { probe }: HealthCheck,
  { hasNetwork, skipGuestAgent }: { hasNetwork: boolean; skipGuestAgent: boolean },
): void {
  if (!hasNetwork && (probe.kind === 'http' || probe.kind === 'tcp')) {
    throw new AppError('invalid_request', `A health check of the type ${probe.kind} needs the network enabled`, {
      hint: 'Use one of the type exec, which runs a command in the guest',
    })
  }
  if (skipGuestAgent && probe.kind === 'exec') {
    throw new AppError('invalid_request', '`health_check.exec` runs a program in the guest, and `skip_guest_agent` lets no one do that', {
      hint: 'Check a port with health_check.http or health_check.tcp, or make the instance without skip_guest_agent',
    })
  }
}
