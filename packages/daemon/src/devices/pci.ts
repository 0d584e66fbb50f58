/** PCI functions as sysfs shows them, and the IOMMU groups that they can only be given away with. */
import path from 'node:path'
import { linkedName, namesIn, readAttribute, type Sysfs } from '../host/sysfs.ts'

export interface PciFunction {
  /** `0000:65:00.0`. */
  readonly address: string
  /** Four hexadecimal digits. */
  readonly vendorId: string
  readonly deviceId: string
  /** Six: base class, subclass, interface. */
  readonly classCode: string
  /** Undefined: no IOMMU stands between it and the memory, so that it can be given to no one. */
  readonly iommuGroup: number | undefined
  readonly driver: string | undefined
  /** It has virtual functions, which go when its driver does. */
  readonly hasVirtualFunctions: boolean
}

export const VFIO = 'vfio-pci'

export const pciDir = ({ root }: Pick<Sysfs, 'root'>, address: string): string => path.join(root, 'bus/pci/devices', address)

/** The full form of an address, also of one without its domain; undefined when it is none. */
export function parsePciAddress(text: string): string | undefined {
  const match = /^(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$/.exec(text.toLowerCase())
  return match === null ? undefined : `${match[1] ?? '0000'}:${match[2]}:${match[3]}.${match[4]}`
}

/** All that the host has, by address. */
export async function listPci(sysfs: Sysfs): Promise<PciFunction[]> {
  const addresses = (await namesIn(path.join(sysfs.root, 'bus/pci/devices'))).filter((name) => parsePciAddress(name) === name)
  const found = await Promise.all(addresses.map((address) => readPci(sysfs, address)))
  return found.filter((one) => one !== undefined)
}

/** Undefined when there is no such function. */
export async function readPci(sysfs: Sysfs, address: string): Promise<PciFunction | undefined> {
  const dir = pciDir(sysfs, address)
  const [vendor, device, classCode, virtualFunctions, group, driver] = await Promise.all([
    readAttribute(path.join(dir, 'vendor')),
    readAttribute(path.join(dir, 'device')),
    readAttribute(path.join(dir, 'class')),
    readAttribute(path.join(dir, 'sriov_numvfs')),
    linkedName(path.join(dir, 'iommu_group')),
    linkedName(path.join(dir, 'driver')),
  ])
  if (vendor === undefined || device === undefined) return undefined
  return {
    address,
    vendorId: hex(vendor, 4),
    deviceId: hex(device, 4),
    classCode: hex(classCode ?? '', 6),
    iommuGroup: group !== undefined && /^\d{1,9}$/.test(group) ? Number(group) : undefined,
    driver,
    hasVirtualFunctions: Number(virtualFunctions ?? 0) > 0,
  }
}

/** The members of an IOMMU group, it included. */
export async function readGroup(sysfs: Sysfs, group: number): Promise<PciFunction[]> {
  const addresses = await namesIn(path.join(sysfs.root, 'kernel/iommu_groups', `${group}`, 'devices'))
  const found = await Promise.all(addresses.map((address) => readPci(sysfs, address)))
  return found.filter((one) => one !== undefined)
}

const hex = (text: string, digits: number): string => text.replace(/^0x/, '').toLowerCase().padStart(digits, '0')

/** VGA, 3D and other display controllers. */
export const isGpu = ({ classCode }: Pick<PciFunction, 'classCode'>): boolean => classCode.startsWith('03')

/** They belong to the host and go with no one. */
export const isBridge = ({ classCode }: Pick<PciFunction, 'classCode'>): boolean => classCode.startsWith('06')

/** Functions of one card: they come and go together. */
export const isSameCard = (a: string, b: string): boolean => a.slice(0, -2) === b.slice(0, -2)

/** Drivers whose devices the kernel lets stay in a group that is given away. */
const HARMLESS: ReadonlySet<string> = new Set([VFIO, 'pci-stub', 'pcieport'])

/**
 * The first member of the group that keeps `address` from being given away: a device of another card that the host uses. It would be
 * behind the same IOMMU entry, where a guest reaches it. Functions of one's own card are taken along, but for one whose virtual functions
 * would go with its driver. Pure.
 */
export const strangerIn = (
  group: readonly PciFunction[],
  address: string,
  isRegistered: (address: string) => boolean,
): PciFunction | undefined =>
  group.find(
    (member) =>
      member.driver !== undefined &&
      !HARMLESS.has(member.driver) &&
      !isBridge(member) &&
      member.address !== address &&
      (member.hasVirtualFunctions || !(isSameCard(member.address, address) || isRegistered(member.address))),
  )
