import { join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { formatOf } from '../disks/layer.ts'
import { GUEST_SOCKET } from '../egress/egress-proxy.ts'
import type { Bandwidth } from '../hypervisors/hypervisor.ts'
import type { DiskSpec, HostDeviceSpec, NicSpec, VmSpec } from '../hypervisors/vm-spec.ts'
import type { ReadyImage } from '../images/images.ts'
import type { Network, Nic } from '../network/network.ts'
import type { Paths } from '../paths.ts'
import type { InstanceNetwork } from '../store/instance-record.ts'
import { type DiskIo, diskRateOf } from './disk-rate.ts'
import type { Instance } from './instance.ts'
import { disksOf } from './instance-disks.ts'

export interface VmSpecInputs {
  readonly image: Pick<ReadyImage, 'rootfs'>
  readonly paths: Paths
  readonly network: Pick<Network, 'nicSpecOf'>
  /** The squashfs of kernel modules; absent where none was built. */
  readonly modules: string | undefined
  readonly logMaxBytes: number
  /** Of all instances; one that asks for it has it in any case. */
  readonly freshBoot: boolean
  readonly diskIo: DiskIo
}

/** What a driver needs to run the instance. Pure. */
export function vmSpecOf(instance: Instance, { image, paths, network, modules, logMaxBytes, freshBoot, diskIo }: VmSpecInputs): VmSpec {
  const nic = nicOf(instance)
  const { app, vmm, journal } = paths.instanceLogs(instance.id)
  const diskIoBps = diskRateOf(instance, diskIo)
  const hostDevices = hostDevicesOf(instance)
  return {
    id: instance.id,
    runDir: paths.vmRunDir(instance.id),
    vcpus: instance.vcpus,
    memoryMib: Math.floor(instance.memoryBytes / 2 ** 20),
    ...(instance.hotplugBytes === 0 ? {} : { hotplugMib: Math.floor(instance.hotplugBytes / 2 ** 20) }),
    disks: diskSpecsOf(instance, image, paths, modules),
    logs: { app, vmm, journal, maxBytes: logMaxBytes },
    freshBoot: freshBoot || instance.freshBoot === true,
    ...(nic === undefined ? {} : { nic: nicSpecOf(instance, network.nicSpecOf(nic), paths) }),
    ...(diskIoBps === undefined ? {} : { diskIoBps }),
    ...(hostDevices.length === 0 ? {} : { hostDevices }),
    ...(instance.uid === undefined ? {} : { user: { uid: instance.uid, gid: instance.uid } }),
  }
}

/** Where the driver makes the network, it leads the guest to its proxy as well. */
function nicSpecOf({ id, egress }: Instance, spec: NicSpec, paths: Paths): NicSpec {
  if (egress === undefined || spec.backend !== 'user') return spec
  return { ...spec, egress: { socket: join(paths.proxyRunDir(id), GUEST_SOCKET), mode: egress.mode } }
}

/** Something of the host is in it, or is to be: what is in a device can be put to sleep or copied by no one. Pure. */
export const holdsDevice = ({ devices = [], gpu }: Pick<Instance, 'devices' | 'gpu'>): boolean => devices.length > 0 || gpu !== undefined

/** Whole devices in the order in which they were asked for, then its part of a GPU. */
function hostDevicesOf({ devices = [], gpu }: Instance): HostDeviceSpec[] {
  return [
    ...devices.map(({ address }) => ({ kind: 'pci', address }) as const),
    ...(gpu?.mdevUuid === undefined ? [] : [{ kind: 'mdev', uuid: gpu.mdevUuid } as const]),
    ...(gpu?.address === undefined ? [] : [{ kind: 'pci', address: gpu.address } as const]),
  ]
}

/** Its interface; undefined where it has none. Pure. */
export function nicOf({ id, network }: Pick<Instance, 'id' | 'network'>): Nic | undefined {
  const { enabled, mac, ports } = network
  return enabled && mac !== undefined ? { id, mac, ports, bandwidth: paceOf(network) } : undefined
}

/** How fast it may be. Pure. */
export const paceOf = ({ bandwidthDownload, bandwidthUpload }: InstanceNetwork): Bandwidth => ({
  ...(bandwidthDownload === undefined ? {} : { downloadBps: bandwidthDownload }),
  ...(bandwidthUpload === undefined ? {} : { uploadBps: bandwidthUpload }),
})

function diskSpecsOf(instance: Instance, image: VmSpecInputs['image'], paths: Paths, modules: string | undefined): DiskSpec[] {
  const disks: DiskSpec[] = [{ role: 'rootfs', path: image.rootfs.path, format: 'raw', readOnly: true }]
  for (const { role, layers, limitBytes } of disksOf(instance)) {
    const [top, ...below] = layers.map((name) => ({ path: paths.disk(name), format: formatOf(name) }))
    if (top === undefined) throw new AppError('internal_error', `The disk ${role} of the instance ${instance.name} is not on record`)
    const limit = limitBytes === undefined ? {} : { limitBytes }
    disks.push({ role, ...top, ...limit, readOnly: false, ...(below.length === 0 ? {} : { backing: below }) })
  }
  if (modules !== undefined) disks.splice(2, 0, { role: 'modules', path: modules, format: 'raw', readOnly: true })
  return disks
}
