/**
 * The one machine that Firecracker makes for us: virtio over mmio, in fixed places. A golden boot and every machine that wakes from it have
 * the same slots; those that are free hold an empty file.
 */
import { AppError } from '@dormouse/api/errors.ts'
import { type AnsweredFile, answeredPath } from '../answered-file.ts'
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

/** Descriptors that the shim gives to Firecracker under these numbers; that of a slot that has one is DISK and its index. */
export const FD = { SAVE: 16, MEMORY: 17, NIC: 18, DISK: 30 } as const

export interface Slot {
  readonly name: DiskRole
  /** What Firecracker opens. */
  readonly path: string
  readonly readOnly: boolean
  /** Absent: the shim answers for the path. */
  readonly fd?: number
}

export const fileOf = (number: number): string => `/proc/self/fd/${number}`

const ownSlot = (name: DiskRole, fd: number, readOnly: boolean): Slot => ({ name, fd, path: fileOf(fd), readOnly })
const volumeSlot = (name: DiskRole): Slot => ({ name, path: answeredPath(name), readOnly: false })

/** In the order of their places. What is read-only is settled at the boot. Volumes are another user's, and may come and go. */
export const SLOTS: readonly Slot[] = [
  ownSlot('rootfs', FD.DISK, true),
  ownSlot('overlay', FD.DISK + 1, false),
  ownSlot('modules', FD.DISK + 2, true),
  volumeSlot('volume-0'),
  volumeSlot('volume-1'),
  volumeSlot('volume-2'),
]

export const VOLUME_SLOTS = SLOTS.filter(({ fd }) => fd === undefined).length
/** What Firecracker takes (its API document: vcpu_count). */
export const MOST_VCPUS = 32

/** What is behind the slots. Throws `not_supported` for disks that it cannot have. */
export function disksBehindSlots(disks: readonly DiskSpec[]): { readonly descriptors: Descriptor[]; readonly answers: AnsweredFile[] } {
  for (const disk of disks) assertTakes(disk)
  const descriptors: Descriptor[] = []
  const answers: AnsweredFile[] = []
  for (const { name, fd, readOnly } of SLOTS) {
    const disk = disks.find(({ role }) => role === name)
    if (fd === undefined) answers.push(answerFor(name, disk))
    else if (disk === undefined) descriptors.push({ number: fd, kind: 'blank' })
    else descriptors.push({ number: fd, kind: readOnly ? 'read' : 'write', file: disk.path })
  }
  return { descriptors, answers }
}

/** What stands behind the slot of a volume, or none. */
export const answerFor = (role: DiskRole, disk?: DiskSpec): AnsweredFile =>
  disk === undefined ? { name: role, kind: 'blank' } : { name: role, kind: 'rw', file: disk.path }

/** Throws `not_supported` when there is none. */
export function volumeSlotOf(role: DiskRole): Slot {
  const slot = SLOTS.find(({ name, fd }) => name === role && fd === undefined)
  if (slot === undefined) throw new AppError('not_supported', `Firecracker has no place for the volume ${role}`, { hint: 'Use qemu' })
  return slot
}

export function assertTakes({ role, format, backing, readOnly }: DiskSpec): void {
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
