/**
 * What the daemon is told: environment (`DORMOUSE_*`) over the file (JSON, `/etc/dormouse/config.json` or `DORMOUSE_CONFIG`) over
 * the defaults here. Every setting has one line in `SETTINGS`; an unknown or malformed one stops the start with a sentence.
 */
import { X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { type Compression, compressionOf, wrongLevelOf } from '@dormouse/api/compression.ts'
import { AppError } from '@dormouse/api/errors.ts'
import { parseBandwidth, parseDiskRate, parseDuration, parseSize } from '@dormouse/api/units.ts'
import type { HypervisorName } from '../hypervisors/hypervisor.ts'
import { parseSubnet4, parseSubnet6 } from '../lib/subnet.ts'
import { LOG_LEVELS, type LogLevel } from '../log.ts'

export interface Config {
  readonly dataDir: string
  readonly runDir: string
  /** Where `build/` or an installed copy of it is: guest, kernel, shim. Undefined: beside the program. */
  readonly assetsDir: string | undefined
  readonly logLevel: LogLevel
  readonly listen: {
    readonly socket: string
    /** Octal file mode of the socket: who may connect needs no token. */
    readonly socketMode: number
    /** Undefined turns TCP off. */
    readonly tcp: { readonly host: string; readonly port: number } | undefined
  }
  readonly jwtSecretFile: string
  /** Pages of these may use the API from a browser. */
  readonly allowedOrigins: readonly string[]
  readonly audit: {
    /** So many rows, beside those of refused requests, which are bounded by themselves. */
    readonly keep: number
    readonly maxAgeMs: number
  }
  readonly hypervisor: HypervisorName
  readonly limits: {
    readonly maxVcpus: number
    readonly maxMemoryBytes: number
    readonly maxOverlayBytes: number
    /** Those of instances whose name fits a pattern, the first of them that does; what is left out is as for all. */
    readonly nameLimits: readonly NameLimits[]
    /** Of all volumes together. */
    readonly maxVolumesBytes: number | undefined
    /** Capacity times this is what admission gives out. */
    readonly cpuRatio: number
    readonly memoryRatio: number
    readonly diskRatio: number
    readonly networkRatio: number
    /** Bytes per second that the disks of the host are taken to move; 0: no one knows, and only what is asked for is limited. */
    readonly diskIoBps: number
    readonly diskIoRatio: number
  }
  readonly instances: {
    readonly stopGraceMs: number
    readonly deleteGraceMs: number
    /** How long a guest may take from the start of its VM until its workload has been started. */
    readonly bootLimitMs: number
    /** One user id for each VM, from here on; used when the daemon is root. */
    readonly uidBase: number
    readonly uidCount: number
    readonly logMaxBytes: number
  }
  readonly images: {
    readonly maxImageBytes: number
    readonly maxEntries: number
    readonly allowPrivateRegistries: boolean
    readonly insecureRegistries: readonly string[]
    /** `docker.io=mirror.example,…` */
    readonly registryMirrors: Readonly<Record<string, string>>
    /** A docker config.json with logins. */
    readonly keychain: { readonly file: string; readonly isNamed: boolean } | undefined
    readonly rootfsCompression: 'lz4' | 'zstd'
    readonly maxConcurrentPulls: number
    /** Of the data directory's file system, that images may take before a pull is refused. */
    readonly maxStorageShare: number
    /** Free there, below which a pull is refused. */
    readonly minFreeBytes: number
  }
  readonly network: {
    /** Given to guests; empty: the host's own resolvers, as far as a guest can reach them. */
    readonly dns: readonly string[]
    /** The host address that published ports listen on. */
    readonly publishAddress: string
    /** Whether guests reach the host at its own addresses. Its loopback is closed to them either way. */
    readonly allowHostAccess: boolean
    readonly kind: 'user' | 'bridged'
    readonly bridge: string
    readonly subnet: string
    readonly subnet6: string
    /** The only device that guests on the bridge may leave by; undefined: any. */
    readonly uplink: string | undefined
    /** Bytes per second that admission gives out, in place of the uplink's speed. */
    readonly bandwidthBps: number | undefined
  }
  readonly egress: {
    /** Authorities, in PEM, by whom proxies verify hosts beside those that Node trusts. */
    readonly trusted: readonly string[]
  }
  /** Programs of other VMMs. */
  readonly vmms: {
    /** Where those are looked for that no setting names; directories, parted as in PATH. */
    readonly searchPath: string
    readonly firecracker: string | undefined
    readonly cloudHypervisor: string | undefined
  }
  /** How long a guest may take to boot with KVM before this host is said not to have it. */
  readonly kvmProbeLimitMs: number
  readonly golden: {
    readonly enabled: boolean
    /** Of all of them together, on disk. */
    readonly maxGoldenBytes: number
    readonly maxGoldenBoots: number
  }
  readonly garbage: {
    readonly enabled: boolean
    readonly intervalMs: number
    /** Files that no row speaks of are younger than this on their way to one. */
    readonly minAgeMs: number
    /** Logs of the boot before. */
    readonly keepLogsMs: number
    /** Below so much free space garbage is collected at once. */
    readonly lowDiskBytes: number
    readonly autoDelete: {
      readonly enabled: boolean
      readonly unusedForMs: number
      /** With `*` for any text. */
      readonly names: readonly string[]
    }
  }
  /** Whether each VM gets a cgroup, where the host lets it. */
  readonly cgroups: { readonly enabled: boolean }
  readonly snapshots: {
    /** Of sleepers and snapshots that neither their request nor their policy says anything of. */
    readonly compression: Compression | undefined
    /** How fast sleeping states are consolidated, read and written together; 0: as fast as it goes. */
    readonly consolidationBytesPerSecond: number
    /** How many idle instances are put to sleep at the same time. */
    readonly maxConcurrentAutoStandbys: number
  }
  /** Where the names of vendors and devices are; the first that is there is read. */
  readonly devices: { readonly pciIdsFiles: readonly string[] }
  /** How many VMs wait for creates and starts, of all kinds together; 0: none. */
  readonly pool: { readonly size: number }
  /** `<operation>:<step>`: the daemon kills itself there. For the crash tests; see docs/lifecycle.md. */
  readonly crashAt: string | undefined
  /** The same: it stands still at each of these until SIGCONT. */
  readonly stopAt: readonly string[]
}

type Settings = { -readonly [key in keyof typeof SETTINGS]: (typeof SETTINGS)[key] extends Setting<infer T> ? T : never }
interface NameLimits {
  /** With `*` for any text. */
  readonly pattern: string
  readonly maxVcpus?: number
  readonly maxMemoryBytes?: number
  readonly maxOverlayBytes?: number
}

interface Setting<T> {
  readonly parse: (text: string) => T | undefined
  readonly expects: string
  readonly byDefault: T
}

const parseList = (value: string): string[] =>
  value
    .split(',')
    .map((item) => item.trim())
    .filter((item) => item !== '')

const positive = (value: number | undefined): number | undefined =>
  value !== undefined && value > 0 && Number.isFinite(value) ? value : undefined

const setting = <T>(byDefault: T, expects: string, parse: (text: string) => T | undefined): Setting<T> => ({ byDefault, expects, parse })
const text = (byDefault: string) => setting(byDefault, 'a text', (value) => value)
const optionalText = () => setting<string | undefined>(undefined, 'a text', (value) => value)
const size = (byDefault: string) => setting(parseSize(byDefault) ?? 0, 'a size such as 32GB', parseSize)
const rate = (byDefault: string) => setting(parseDiskRate(byDefault) ?? 0, 'a rate such as 200MB/s, or 0 for no limit', parseDiskRate)
/** 24 days. A timer of Node that is told 20 hours more fires at once, and the work around a wait adds to it. */
const DURATION_MAX_MS = 24 * 24 * 3_600_000
const duration = (byDefault: string) =>
  setting(parseDuration(byDefault) ?? 0, 'a duration such as 5s, at most 24 days', (value) => {
    const ms = positive(parseDuration(value))
    // Timers take whole milliseconds.
    return ms !== undefined && ms <= DURATION_MAX_MS ? Math.ceil(ms) : undefined
  })
/** No timer waits for it, so it may be longer. */
const age = (byDefault: string) =>
  setting(parseDuration(byDefault) ?? 0, 'a duration such as 720h', (value) => {
    const ms = parseDuration(value)
    return ms !== undefined && ms >= 0 && Number.isFinite(ms) ? ms : undefined
  })
const integer = (byDefault: number) =>
  setting(byDefault, 'a whole number above 0', (value) => (/^\d+$/.test(value) ? positive(Number(value)) : undefined))
const count = (byDefault: number) =>
  setting(byDefault, 'a whole number, 0 or more', (value) => (/^\d{1,4}$/.test(value) ? Number(value) : undefined))
const ratio = (byDefault: number) => setting(byDefault, 'a number above 0', (value) => positive(Number(value)))
function share(value: string): number | undefined {
  const number = positive(Number(value))
  return number === undefined || number > 1 ? undefined : number
}
const flag = (byDefault: boolean) => setting(byDefault, 'true or false', parseFlag)
const choice = <const T extends string>(byDefault: T, options: readonly T[]) =>
  setting<T>(byDefault, `one of ${options.join(', ')}`, (value) => options.find((option) => option === value))
const list = (byDefault: readonly string[]) => setting(byDefault, 'a list, parted by commas', parseList)
const addresses = (byDefault: readonly string[]) =>
  setting(byDefault, 'IP addresses, parted by commas', (value) =>
    parseList(value).every((item) => isIP(item)) ? parseList(value) : undefined,
  )

/** Those that this build can run; the API knows more. */
const HYPERVISORS = ['qemu', 'qemu-microvm', 'firecracker', 'cloud-hypervisor', 'fake'] as const satisfies readonly HypervisorName[]

/** By the name of the environment variable without `DORMOUSE_`; in the file the same name in lower case. */
const SETTINGS = {
  DATA_DIR: text('/var/lib/dormouse'),
  RUN_DIR: text('/run/dormouse'),
  ASSETS_DIR: optionalText(),
  LOG_LEVEL: choice<LogLevel>('info', LOG_LEVELS),
  SOCKET: optionalText(),
  SOCKET_MODE: setting(0o660, 'an octal file mode such as 0660', (value) =>
    /^0?[0-7]{3}$/.test(value) ? Number.parseInt(value, 8) : undefined,
  ),
  LISTEN: setting<Config['listen']['tcp']>({ host: '127.0.0.1', port: 4973 }, 'host:port, or off', parseListen),
  JWT_SECRET_FILE: optionalText(),
  ALLOWED_ORIGINS: setting<readonly string[]>([], 'origins such as https://console.example, parted by commas', parseOrigins),
  AUDIT_KEEP: integer(100_000),
  AUDIT_MAX_AGE: setting(90 * 24 * 3_600_000, 'a duration such as 2160h', (value) => positive(parseDuration(value))),
  HYPERVISOR: choice<HypervisorName>('qemu', HYPERVISORS),
  FIRECRACKER: optionalText(),
  CLOUD_HYPERVISOR: optionalText(),
  MAX_VCPUS: integer(16),
  MAX_MEMORY: size('32GB'),
  MAX_OVERLAY_SIZE: size('100GB'),
  NAME_LIMITS: setting<readonly NameLimits[]>(
    [],
    'patterns of names with limits such as ci-*:vcpus=2:memory=4GB:overlay_size=20GB, parted by commas',
    parseNameLimits,
  ),
  MAX_TOTAL_VOLUME_STORAGE: setting<number | undefined>(undefined, 'a size such as 500GB', parseSize),
  CPU_RATIO: ratio(4),
  MEMORY_RATIO: ratio(1),
  DISK_RATIO: ratio(4),
  NETWORK_RATIO: ratio(2),
  DISK_IO_CAPACITY: setting(2 ** 30, 'a rate such as 1GB/s, or 0', parseDiskRate),
  DISK_IO_RATIO: ratio(2),
  STOP_GRACE: duration('5s'),
  DELETE_GRACE: duration('2s'),
  BOOT_LIMIT: duration('2m'),
  KVM_PROBE_LIMIT: duration('20s'),
  UID_BASE: integer(0x7d000000),
  UID_COUNT: integer(65_536),
  LOG_MAX_SIZE: size('50MB'),
  MAX_IMAGE_SIZE: size('50GB'),
  MAX_IMAGE_ENTRIES: integer(2_000_000),
  ALLOW_PRIVATE_REGISTRIES: flag(false),
  INSECURE_REGISTRIES: list([]),
  REGISTRY_MIRRORS: setting<Readonly<Record<string, string>>>({}, 'registry=mirror pairs, parted by commas', parsePairs),
  REGISTRY_CREDENTIALS_FILE: optionalText(),
  ROOTFS_COMPRESSION: choice('lz4', ['lz4', 'zstd']),
  MAX_CONCURRENT_PULLS: integer(1),
  MAX_IMAGE_STORAGE: setting(0.2, 'a share of the disk above 0, at most 1', share),
  MIN_FREE_DISK: size('5GB'),
  DNS: addresses([]),
  PUBLISH_ADDRESS: setting('0.0.0.0', 'an IPv4 address', (value) => (isIP(value) === 4 ? value : undefined)),
  ALLOW_HOST_ACCESS: flag(false),
  NETWORK: choice('user', ['user', 'bridged']),
  BRIDGE: setting('dormouse0', 'a name of at most 15 letters, digits and _', (value) =>
    /^[a-z][a-z0-9_]{0,14}$/.test(value) ? value : undefined,
  ),
  SUBNET: setting('10.100.0.0/16', 'an IPv4 subnet such as 10.100.0.0/16', (value) => (parseSubnet4(value) ? value : undefined)),
  SUBNET6: setting('fdd0:6d05:e001::/64', 'a subnet of unique local IPv6 addresses such as fd00:1::/64', (value) =>
    parseSubnet6(value) ? value : undefined,
  ),
  UPLINK: optionalText(),
  EGRESS_CA_FILE: optionalText(),
  NETWORK_BANDWIDTH: setting<number | undefined>(undefined, 'a rate such as 10Gbps', (value) => positive(parseBandwidth(value))),
  GOLDEN: flag(true),
  MAX_GOLDEN_STORAGE: size('8GB'),
  MAX_GOLDEN_BOOTS: count(32),
  CGROUPS: flag(true),
  GC: flag(true),
  GC_INTERVAL: duration('1h'),
  GC_MIN_AGE: age('1h'),
  GC_KEEP_LOGS: age('720h'),
  GC_LOW_DISK: size('6GB'),
  IMAGE_AUTO_DELETE: flag(false),
  IMAGE_AUTO_DELETE_UNUSED_FOR: age('720h'),
  IMAGE_AUTO_DELETE_ALLOWED: list(['*']),
  SNAPSHOT_COMPRESSION: setting<Compression | 'off'>(
    'off',
    'off, or an algorithm and its level such as zstd, zstd:3 or lz4',
    parseCompression,
  ),
  CONSOLIDATION_RATE: rate('200MB/s'),
  AUTO_STANDBY_MAX_CONCURRENT: integer(16),
  POOL_SIZE: count(2),
  PCI_IDS: list(['/usr/share/misc/pci.ids', '/usr/share/hwdata/pci.ids']),
  CRASH_AT: optionalText(),
  STOP_AT: list([]),
} as const

/** Variables that name no setting of the daemon: the file itself, and what the CLI reads. */
const NOT_SETTINGS = new Set(['CONFIG', 'HOST', 'TOKEN', 'API_KEY', 'BASE_URL', 'FORMAT', 'DEBUG'])
const DEFAULT_FILE = '/etc/dormouse/config.json'

/** Reads the file that `settings` or the default name, and joins all. Throws `invalid_request` naming the setting. */
export function readConfig(settings: ReadonlyMap<string, string>): Config {
  const named = settings.get('CONFIG')
  return configOf(settings, readFile(named ?? DEFAULT_FILE, named !== undefined))
}

/** Pure: the configuration of these settings over those of a file. */
export function configOf(settings: ReadonlyMap<string, string>, file: ReadonlyMap<string, string> = new Map()): Config {
  for (const [name, source] of [
    ...[...settings.keys()].map((key) => [key, 'DORMOUSE_'] as const),
    ...[...file.keys()].map((key) => [key, ''] as const),
  ]) {
    if (!Object.hasOwn(SETTINGS, name) && !NOT_SETTINGS.has(name)) {
      throw new AppError('invalid_request', `There is no setting ${source}${source === '' ? name.toLowerCase() : name}`, {
        hint: 'docs/host-setup.md lists all settings',
      })
    }
  }
  const value = {} as Record<string, unknown>
  for (const [name, { parse, expects, byDefault }] of Object.entries<Setting<unknown>>(SETTINGS)) {
    const given = settings.get(name) ?? file.get(name)
    const parsed = given === undefined ? byDefault : parse(given)
    if (given !== undefined && parsed === undefined && !(name === 'LISTEN' && given === 'off')) {
      throw new AppError('invalid_request', `DORMOUSE_${name} is ${JSON.stringify(given)}, but must be ${expects}`)
    }
    value[name] = parsed
  }
  const s = value as Settings
  return {
    dataDir: s.DATA_DIR,
    runDir: s.RUN_DIR,
    assetsDir: s.ASSETS_DIR,
    logLevel: s.LOG_LEVEL,
    listen: { socket: s.SOCKET ?? join(s.RUN_DIR, 'dormouse.sock'), socketMode: s.SOCKET_MODE, tcp: s.LISTEN },
    jwtSecretFile: s.JWT_SECRET_FILE ?? join(s.DATA_DIR, 'jwt-secret'),
    allowedOrigins: s.ALLOWED_ORIGINS,
    audit: { keep: s.AUDIT_KEEP, maxAgeMs: s.AUDIT_MAX_AGE },
    hypervisor: s.HYPERVISOR,
    limits: {
      maxVcpus: s.MAX_VCPUS,
      maxMemoryBytes: s.MAX_MEMORY,
      maxOverlayBytes: s.MAX_OVERLAY_SIZE,
      nameLimits: s.NAME_LIMITS,
      maxVolumesBytes: s.MAX_TOTAL_VOLUME_STORAGE,
      cpuRatio: s.CPU_RATIO,
      memoryRatio: s.MEMORY_RATIO,
      diskRatio: s.DISK_RATIO,
      networkRatio: s.NETWORK_RATIO,
      diskIoBps: s.DISK_IO_CAPACITY,
      diskIoRatio: s.DISK_IO_RATIO,
    },
    instances: {
      stopGraceMs: s.STOP_GRACE,
      deleteGraceMs: s.DELETE_GRACE,
      bootLimitMs: s.BOOT_LIMIT,
      uidBase: s.UID_BASE,
      uidCount: s.UID_COUNT,
      logMaxBytes: s.LOG_MAX_SIZE,
    },
    images: {
      maxImageBytes: s.MAX_IMAGE_SIZE,
      maxEntries: s.MAX_IMAGE_ENTRIES,
      allowPrivateRegistries: s.ALLOW_PRIVATE_REGISTRIES,
      insecureRegistries: s.INSECURE_REGISTRIES,
      registryMirrors: s.REGISTRY_MIRRORS,
      keychain: keychainOf(s.REGISTRY_CREDENTIALS_FILE),
      rootfsCompression: s.ROOTFS_COMPRESSION,
      maxConcurrentPulls: s.MAX_CONCURRENT_PULLS,
      maxStorageShare: s.MAX_IMAGE_STORAGE,
      minFreeBytes: s.MIN_FREE_DISK,
    },
    network: {
      dns: s.DNS,
      publishAddress: s.PUBLISH_ADDRESS,
      allowHostAccess: s.ALLOW_HOST_ACCESS,
      kind: s.NETWORK,
      bridge: s.BRIDGE,
      subnet: s.SUBNET,
      subnet6: s.SUBNET6,
      uplink: s.UPLINK,
      bandwidthBps: s.NETWORK_BANDWIDTH,
    },
    egress: { trusted: s.EGRESS_CA_FILE === undefined ? [] : authoritiesIn(s.EGRESS_CA_FILE) },
    vmms: { searchPath: process.env.PATH ?? '', firecracker: s.FIRECRACKER, cloudHypervisor: s.CLOUD_HYPERVISOR },
    kvmProbeLimitMs: s.KVM_PROBE_LIMIT,
    golden: { enabled: s.GOLDEN, maxGoldenBytes: s.MAX_GOLDEN_STORAGE, maxGoldenBoots: s.MAX_GOLDEN_BOOTS },
    garbage: {
      enabled: s.GC,
      intervalMs: s.GC_INTERVAL,
      minAgeMs: s.GC_MIN_AGE,
      keepLogsMs: s.GC_KEEP_LOGS,
      lowDiskBytes: s.GC_LOW_DISK,
      autoDelete: { enabled: s.IMAGE_AUTO_DELETE, unusedForMs: s.IMAGE_AUTO_DELETE_UNUSED_FOR, names: s.IMAGE_AUTO_DELETE_ALLOWED },
    },
    cgroups: { enabled: s.CGROUPS },
    snapshots: {
      compression: s.SNAPSHOT_COMPRESSION === 'off' ? undefined : s.SNAPSHOT_COMPRESSION,
      consolidationBytesPerSecond: s.CONSOLIDATION_RATE,
      maxConcurrentAutoStandbys: s.AUTO_STANDBY_MAX_CONCURRENT,
    },
    pool: { size: s.POOL_SIZE },
    devices: { pciIdsFiles: s.PCI_IDS },
    crashAt: s.CRASH_AT,
    stopAt: s.STOP_AT,
  }
}

/** Docker's own by default: of the user that the daemon runs as. */
function keychainOf(named: string | undefined): Config['images']['keychain'] {
  if (named === 'off') return undefined
  if (named !== undefined) return { file: named, isNamed: true }
  return { file: join(process.env.DOCKER_CONFIG || join(homedir(), '.docker'), 'config.json'), isNamed: false }
}

/** Those of a file in PEM, which must be there and hold one at least. */
function authoritiesIn(file: string): readonly string[] {
  try {
    const found = readFileSync(file, 'utf8').match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []
    if (found.length === 0) throw new Error('There is no certificate in it')
    return found.map((pem) => `${new X509Certificate(pem)}`)
  } catch (cause) {
    throw new AppError('invalid_request', `The file ${file} of DORMOUSE_EGRESS_CA_FILE cannot be used`, {
      hint: 'It takes certificates of authorities in PEM',
      cause,
    })
  }
}

/** A flat JSON object of settings; lists may be arrays. A file that was named must be there. */
function readFile(path: string, mustExist: boolean): ReadonlyMap<string, string> {
  let content: string
  try {
    content = readFileSync(path, 'utf8')
  } catch (cause) {
    if (!mustExist && (cause as NodeJS.ErrnoException).code === 'ENOENT') return new Map()
    throw new AppError('invalid_request', `The configuration file ${path} cannot be read`, { cause })
  }
  let parsed: unknown
  try {
    parsed = JSON.parse(content)
  } catch (cause) {
    throw new AppError('invalid_request', `The configuration file ${path} is not JSON`, { cause })
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw new AppError('invalid_request', `The configuration file ${path} must hold one JSON object`)
  }
  return new Map(
    Object.entries(parsed).map(([name, value]) => [name.toUpperCase(), Array.isArray(value) ? value.join(',') : String(value)]),
  )
}

function parseFlag(value: string): boolean | undefined {
  if (/^(true|1|yes|on)$/i.test(value)) return true
  return /^(false|0|no|off)$/i.test(value) ? false : undefined
}

/** As browsers write them: scheme, host and a port that is not the scheme's own. No `*`: what any page may do, every page does. */
function parseOrigins(value: string): string[] | undefined {
  const origins = parseList(value)
  return origins.every((origin) => /^https?:/.test(origin) && URL.parse(origin)?.origin === origin) ? origins : undefined
}

function parsePairs(value: string): Record<string, string> | undefined {
  const pairs = parseList(value).map((item) => item.split('='))
  if (pairs.some((pair) => pair.length !== 2 || pair.some((half) => half.trim() === ''))) return undefined
  return Object.fromEntries(pairs.map(([from, to]) => [from?.trim(), to?.trim()]))
}

/** By what a caller calls it. */
const NAME_LIMITS: Readonly<Record<string, readonly [keyof Omit<NameLimits, 'pattern'>, (text: string) => number | undefined]>> = {
  vcpus: ['maxVcpus', (text) => (/^\d{1,4}$/.test(text) ? positive(Number(text)) : undefined)],
  memory: ['maxMemoryBytes', parseSize],
  overlay_size: ['maxOverlayBytes', parseSize],
}

function parseNameLimits(value: string): NameLimits[] | undefined {
  const parsed = parseList(value).map((item): NameLimits | undefined => {
    const [pattern = '', ...limits] = item.split(':')
    const found = limits.map((limit) => {
      const [name = '', text = '', ...rest] = limit.split('=')
      const [key, parse] = (Object.hasOwn(NAME_LIMITS, name) && NAME_LIMITS[name]) || []
      const amount = rest.length === 0 ? parse?.(text) : undefined
      return key === undefined || amount === undefined ? undefined : ([key, amount] as const)
    })
    if (!/^[a-z0-9*-]{1,64}$/.test(pattern) || found.length === 0 || found.includes(undefined)) return undefined
    return { pattern, ...Object.fromEntries(found as (readonly [string, number])[]) }
  })
  return parsed.includes(undefined) ? undefined : (parsed as NameLimits[])
}

function parseCompression(value: string): Compression | 'off' | undefined {
  const match = /^(zstd|lz4)(?::(\d{1,2}))?$/.exec(value)
  if (!match) return value === 'off' ? 'off' : undefined
  const level = match[2] === undefined ? {} : { level: Number(match[2]) }
  const compression = compressionOf({ enabled: true, algorithm: match[1] === 'lz4' ? 'lz4' : 'zstd', ...level })
  return compression === 'off' || wrongLevelOf(compression) === undefined ? compression : undefined
}

function parseListen(value: string): { host: string; port: number } | undefined {
  const match = /^(?:\[([0-9a-f:.]+)\]|([^:]*)):(\d{1,5})$/i.exec(value)
  const port = Number(match?.[3])
  if (!match || port > 65_535) return undefined
  return { host: match[1] ?? (match[2] || '127.0.0.1'), port }
}
