/**
 * Made by scripts/cloud-hypervisor-api.ts from Cloud Hypervisor's published OpenAPI documents, and not edited by hand:
 *  - 53: SHA-256 004e2d5ab70d9d95a1de3289a70ca116c7592da62765e009232c85506cd0e6c4
 *  - 52: SHA-256 0ce647c7f62edb5765ea1f6dd308648e31e99467dba96114b512695ac79de342
 */
export const PUBLISHED = {
  releases: ['53', '52'],
  version: '0.3.0',
  server: '/api/v1',
  requests: {
    '/vm.info': { method: 'GET' },
    '/vm.pause': { method: 'PUT' },
    '/vm.resume': { method: 'PUT' },
    '/vm.power-button': { method: 'PUT' },
    '/vm.snapshot': { method: 'PUT', body: 'VmSnapshotConfig' },
    '/vm.restore': { method: 'PUT', body: 'RestoreConfig' },
    '/vm.add-disk': { method: 'PUT', body: 'DiskConfig' },
    '/vm.remove-device': { method: 'PUT', body: 'VmRemoveDevice' },
    '/vm.resize-disk': { method: 'PUT', body: 'VmResizeDisk' },
  },
  schemas: {
    VmInfo: { config: 'required', state: 'required', memory_actual_size: 'optional', device_tree: 'optional' },
    VmConfig: {
      cpus: 'optional',
      memory: 'optional',
      payload: 'required',
      rate_limit_groups: 'optional',
      disks: 'optional',
      net: 'optional',
      vsock: 'optional',
    },
    CpusConfig: { boot_vcpus: 'required', max_vcpus: 'required' },
    MemoryConfig: {
      size: 'required',
      hotplug_size: 'optional',
      hotplugged_size: 'optional',
      mergeable: 'optional',
      hotplug_method: 'optional',
      shared: 'optional',
      hugepages: 'optional',
      hugepage_size: 'optional',
      prefault: 'optional',
      thp: 'optional',
      zones: 'optional',
    },
    MemoryZoneConfig: {
      id: 'required',
      size: 'required',
      file: 'optional',
      mergeable: 'optional',
      shared: 'optional',
      hugepages: 'optional',
      hugepage_size: 'optional',
      host_numa_node: 'optional',
      hotplug_size: 'optional',
      hotplugged_size: 'optional',
      prefault: 'optional',
    },
    PayloadConfig: {
      firmware: 'optional',
      kernel: 'optional',
      cmdline: 'optional',
      initramfs: 'optional',
      igvm: 'optional',
      host_data: 'optional',
    },
    RateLimitGroupConfig: { id: 'required', rate_limiter_config: 'required' },
    RateLimiterConfig: { bandwidth: 'optional', ops: 'optional' },
    TokenBucket: { size: 'required', one_time_burst: 'optional', refill_time: 'required' },
    DiskConfig: {
      path: 'optional',
      readonly: 'optional',
      direct: 'optional',
      iommu: 'optional',
      num_queues: 'optional',
      queue_size: 'optional',
      vhost_user: 'optional',
      vhost_socket: 'optional',
      rate_limiter_config: 'optional',
      pci_segment: 'optional',
      pci_device_id: 'optional',
      id: 'optional',
      serial: 'optional',
      rate_limit_group: 'optional',
      queue_affinity: 'optional',
      backing_files: 'optional',
      sparse: 'optional',
      image_type: 'optional',
      lock_granularity: 'optional',
    },
    VirtQueueAffinity: { queue_index: 'required', host_cpus: 'required' },
    ImageType: ['FixedVhd', 'Qcow2', 'Raw', 'Vhdx', 'Unknown'],
    LockGranularity: ['ByteRange', 'Full'],
    NetConfig: { mac: 'optional', id: 'optional' },
    VsockConfig: {
      cid: 'required',
      socket: 'required',
      iommu: 'optional',
      pci_segment: 'optional',
      pci_device_id: 'optional',
      id: 'optional',
    },
    VmState: ['Created', 'Running', 'Shutdown', 'Paused'],
    DeviceNode: { id: 'optional', resources: 'optional', children: 'optional', pci_bdf: 'optional' },
    VmSnapshotConfig: { destination_url: 'optional' },
    RestoreConfig: { source_url: 'required', prefault: 'optional', memory_restore_mode: 'optional', resume: 'optional' },
    MemoryRestoreMode: ['Copy', 'OnDemand'],
    PciDeviceInfo: { id: 'required', bdf: 'required' },
    VmRemoveDevice: { id: 'optional' },
    VmResizeDisk: { id: 'optional', desired_size: 'optional' },
  },
} as const

/** What each request has in its body. */
export interface RequestBodies {
  readonly '/vm.info': undefined
  readonly '/vm.pause': undefined
  readonly '/vm.resume': undefined
  readonly '/vm.power-button': undefined
  readonly '/vm.snapshot': VmSnapshotConfig
  readonly '/vm.restore': RestoreConfig
  readonly '/vm.add-disk': DiskConfig
  readonly '/vm.remove-device': VmRemoveDevice
  readonly '/vm.resize-disk': VmResizeDisk
}

/** What each is answered with. */
export interface Answers {
  readonly '/vm.info': VmInfo
  readonly '/vm.pause': undefined
  readonly '/vm.resume': undefined
  readonly '/vm.power-button': undefined
  readonly '/vm.snapshot': undefined
  readonly '/vm.restore': undefined
  readonly '/vm.add-disk': PciDeviceInfo
  readonly '/vm.remove-device': undefined
  readonly '/vm.resize-disk': undefined
}

interface CpusConfig {
  readonly boot_vcpus: number
  readonly max_vcpus: number
}

interface DeviceNode {
  readonly id?: string
  readonly resources?: readonly Readonly<Record<string, unknown>>[]
  readonly children?: readonly string[]
  readonly pci_bdf?: string
}

interface DiskConfig {
  readonly path?: string
  readonly readonly?: boolean
  readonly direct?: boolean
  readonly iommu?: boolean
  readonly num_queues?: number
  readonly queue_size?: number
  readonly vhost_user?: boolean
  readonly vhost_socket?: string
  readonly rate_limiter_config?: RateLimiterConfig
  readonly pci_segment?: number
  readonly pci_device_id?: number
  readonly id?: string
  readonly serial?: string
  readonly rate_limit_group?: string
  readonly queue_affinity?: readonly VirtQueueAffinity[]
  readonly backing_files?: boolean
  readonly sparse?: boolean
  readonly image_type?: ImageType
  readonly lock_granularity?: LockGranularity
}

type ImageType = 'FixedVhd' | 'Qcow2' | 'Raw' | 'Vhdx' | 'Unknown'

type LockGranularity = 'ByteRange' | 'Full'

interface MemoryConfig {
  readonly size: number
  readonly hotplug_size?: number
  readonly hotplugged_size?: number
  readonly mergeable?: boolean
  readonly hotplug_method?: string
  readonly shared?: boolean
  readonly hugepages?: boolean
  readonly hugepage_size?: number
  readonly prefault?: boolean
  readonly thp?: boolean
  readonly zones?: readonly MemoryZoneConfig[]
}

type MemoryRestoreMode = 'Copy' | 'OnDemand'

interface MemoryZoneConfig {
  readonly id: string
  readonly size: number
  readonly file?: string
  readonly mergeable?: boolean
  readonly shared?: boolean
  readonly hugepages?: boolean
  readonly hugepage_size?: number
  readonly host_numa_node?: number
  readonly hotplug_size?: number
  readonly hotplugged_size?: number
  readonly prefault?: boolean
}

interface NetConfig {
  readonly mac?: string
  readonly id?: string
}

interface PayloadConfig {
  readonly firmware?: string
  readonly kernel?: string
  readonly cmdline?: string
  readonly initramfs?: string
  readonly igvm?: string
  readonly host_data?: string
}

interface PciDeviceInfo {
  readonly id: string
  readonly bdf: string
}

interface RateLimiterConfig {
  readonly bandwidth?: TokenBucket
  readonly ops?: TokenBucket
}

interface RateLimitGroupConfig {
  readonly id: string
  readonly rate_limiter_config: RateLimiterConfig
}

interface RestoreConfig {
  readonly source_url: string
  readonly prefault?: boolean
  readonly memory_restore_mode?: MemoryRestoreMode
  readonly resume?: boolean
}

interface TokenBucket {
  readonly size: number
  readonly one_time_burst?: number
  readonly refill_time: number
}

interface VirtQueueAffinity {
  readonly queue_index: number
  readonly host_cpus: readonly number[]
}

interface VmConfig {
  readonly cpus?: CpusConfig
  readonly memory?: MemoryConfig
  readonly payload: PayloadConfig
  readonly rate_limit_groups?: readonly RateLimitGroupConfig[]
  readonly disks?: readonly DiskConfig[]
  readonly net?: readonly NetConfig[]
  readonly vsock?: VsockConfig
}

interface VmInfo {
  readonly config: VmConfig
  readonly state: VmState
  readonly memory_actual_size?: number
  readonly device_tree?: Readonly<Record<string, DeviceNode>>
}

interface VmRemoveDevice {
  readonly id?: string
}

interface VmResizeDisk {
  readonly id?: string
  readonly desired_size?: number
}

interface VmSnapshotConfig {
  readonly destination_url?: string
}

type VmState = 'Created' | 'Running' | 'Shutdown' | 'Paused'

interface VsockConfig {
  readonly cid: number
  readonly socket: string
  readonly iommu?: boolean
  readonly pci_segment?: number
  readonly pci_device_id?: number
  readonly id?: string
}
