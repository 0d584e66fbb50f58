/**
 * The one machine that Firecracker makes for us: virtio over mmio, in fixed places. A golden boot and every machine that wakes from it have
 * the same slots; those that are free hold an empty file.
 */
import { AppError } from '@dormouse/api/errors.ts'
import type { Descriptor } from '../shim.ts'
import type { DiskRole, DiskSpec } from '../vm-spec.ts'

export interface Machine {
  readonly vcpus: number
  readonly memoryMib: number
  /** It has a card behind a TAP. */
  readonly hasTap: boolean
  readonly kernelPath: string
  readonly initrdPath: string
}

/** Descriptors that the shim gives to Firecracker under these numbers; a slot's is DISK and its index. */
export const FD = { SAVE: 16, MEMORY: 17, NIC: 18, DISK: 30 } as const

export interface Slot {
  readonly name: DiskRole
  readonly fd: number
  readonly readOnly: boolean
}

/** In the order of their places. What is read-only is settled at the boot. */
const ROLES: readonly Omit<Slot, 'fd'>[] = [
  { name: 'rootfs', readOnly: true },
  { name: 'overlay', readOnly: false },
  { name: 'modules', readOnly: true },
]

/** Firecracker opens files as its own user, whose volumes are not. */
export const VOLUME_SLOTS = 0
/** What Firecracker takes (its API document: vcpu_count). */
export const MOST_VCPUS = 32

export const SLOTS: readonly Slot[] = ROLES.map((role, index) => ({ ...role, fd: FD.DISK + index }))

/** What is behind the slots. Throws `not_supported` for disks that it cannot have. */
export function diskDescriptors(disks: readonly DiskSpec[]): Descriptor[] {
  for (const disk of disks) assertTakes(disk)
  return SLOTS.map(({ name, fd, readOnly }): Descriptor => {
    const disk = disks.find(({ role }) => role === name)
    if (disk === undefined) return { number: fd, kind: 'blank' }
    return { number: fd, kind: readOnly ? 'read' : 'write', file: disk.path }
  })
}

function assertTakes({ role, format, backing, readOnly }: DiskSpec): void {
  const slot = SLOTS.find(({ name }) => name === role)
  if (slot === undefined) throw new AppError('not_supported', `Firecracker has no place for the disk ${role}`, { hint: 'Use qemu' })
  if (format !== 'raw' || backing !== undefined)
    throw new AppError('internal_error', `The disk ${role} is a chain of layers, and Firecracker takes one raw file`)
  if (readOnly !== slot.readOnly)
    throw new AppError('internal_error', `The disk ${role} is read-only where it should not be, or the other way round`)
}

/**
 * Firecracker ends with its guest's reboot, by the keyboard controller; it has no power button. Its disks have no serials of ours, so their
 * order is told. The bus that it does not have need not be looked for.
 */
export const kernelCommandLine = (slots: readonly Slot[]): string =>
  [
    'console=ttyS0 quiet reboot=k panic=-1 net.ifnames=0 pci=off',
    'i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd',
    'dormouse.off=reboot',
    `dormouse.disks=${slots.map(({ name }) => name).join(',')}`,
  ].join(' ')
