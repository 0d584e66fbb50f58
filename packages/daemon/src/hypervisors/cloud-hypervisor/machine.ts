/**
 * Cloud Hypervisor's command line: a pure function of the machine. What a golden boot depends on is in `Machine`; what differs between the
 * instances that wake from it is in `Wiring`.
 */
import { AppError } from '@dormouse/api/errors.ts'
import { type AnsweredFile, answeredPath } from '../answered-file.ts'
import { FIXED_SLOTS, slotOf } from '../qemu/disk-nodes.ts'
import type { Descriptor } from '../shim.ts'
import type { DiskRole, DiskSpec } from '../vm-spec.ts'
import { GUEST_CID, VSOCK_SOCKET } from '../vsock-guest.ts'

export interface Machine {
  readonly vcpus: number
  readonly memoryMib: number
  /** A card that is behind a TAP; what it can do is settled at the boot. */
  readonly hasTap: boolean
}

export interface Wiring {
  readonly program: string
  /** As it says itself. */
  readonly version: string
  readonly disks: readonly DiskSpec[]
  readonly mac?: string
  /** What it writes goes through to its memory's file. */
  readonly sharesMemory: boolean
  readonly diskIoBps?: number
}

/** Descriptors that the shim gives to the VMM under these numbers; those of disks follow, in the order of their slots. */
export const FD = { API: 10, RANGES: 15, SAVE: 16, MEMORY: 17, NIC: 18, KERNEL: 19, INITRD: 20, EMPTY: 21 } as const
const FIRST_DISK = 30
/** Of every machine; volumes are plugged beside them. */
const DISK_SLOTS = FIXED_SLOTS
export const VOLUME_SLOTS = 3

const pathOf = (number: number): string => `/proc/self/fd/${number}`
export const MEMORY_FILE = pathOf(FD.MEMORY)
export const RANGES_FILE = pathOf(FD.RANGES)
/**
 * A name in the VMM's own directory, which leads to the kernel only until the machine runs: one that resets begins anew by itself, and finds
 * nothing to boot. So the VMM ends, and the daemon decides what follows.
 */
export const KERNEL_NAME = 'kernel'
export const KERNEL_FILE = pathOf(FD.KERNEL)
export const NIC_ID = 'nic'
export const MEMORY_ID = 'ram'
export const RATE_GROUP = 'disks'
/** Where what it is to restore lies in its own directory, as it finds it. */
export const RESTORE_DIR = 'restore'
const RESTORE_URL = `file:///proc/self/cwd/${RESTORE_DIR}`

/** What a slot holds: a disk, or nothing that anyone could find. */
export interface Slot {
  readonly id: DiskRole | `empty-${number}`
  readonly path: string
  readonly readOnly: boolean
}

/** Every machine has all of them. Throws `not_supported` for a disk that Cloud Hypervisor cannot be given. */
export function slotsOf(disks: readonly DiskSpec[]): Slot[] {
  for (const disk of disks) assertTakes(disk)
  return Array.from({ length: DISK_SLOTS }, (_, slot): Slot => {
    const disk = disks.find(({ role }) => slotOf(role) === slot)
    if (disk === undefined) return { id: `empty-${slot}`, path: pathOf(FD.EMPTY), readOnly: true }
    return { id: disk.role, path: pathOf(FIRST_DISK + slot), readOnly: disk.readOnly }
  })
}

/** A disk that is plugged: it has a device of its own, and no slot waits for it. */
export const volumeSlot = ({ role, readOnly }: DiskSpec): Slot => ({ id: role, path: answeredPath(role), readOnly })

const isVolume = ({ role }: Pick<DiskSpec, 'role'>): boolean => slotOf(role) >= DISK_SLOTS

export const volumesOf = (disks: readonly DiskSpec[]): DiskSpec[] =>
  disks.filter(isVolume).sort((one, other) => slotOf(one.role) - slotOf(other.role))

/** What it finds that opens a volume: an owner of its own has it, as whom the VMM could not open it. */
export const answerOf = ({ role, path, readOnly }: DiskSpec): AnsweredFile => ({ name: role, kind: readOnly ? 'ro' : 'rw', file: path })

function assertTakes({ role, format, backing = [] }: DiskSpec): void {
  if (!(slotOf(role) < DISK_SLOTS + VOLUME_SLOTS)) {
    throw new AppError('not_supported', `This hypervisor takes ${VOLUME_SLOTS} volumes: it has no place for ${role}`)
  }
  if (format !== 'raw' || backing.length > 0) {
    throw new AppError('not_supported', `The disk ${role} is a chain of layers, and this hypervisor takes disks of one raw file`)
  }
}

export const diskDescriptors = (disks: readonly DiskSpec[]): Descriptor[] =>
  disks
    .filter((disk) => !isVolume(disk))
    .map(({ role, path, readOnly }) => ({ number: FIRST_DISK + slotOf(role), kind: readOnly ? 'read' : 'write', file: path }))

/** What is in slots without a disk: its first sector is read, so it has to have one. */
export const emptyDisk = (dir: string): Descriptor => ({ number: FD.EMPTY, kind: 'sized', file: dir, bytes: 4096 })

/** Bytes that may pass at once after a pause, and the time in which so many come again. */
const RATE_WINDOW_MS = 4000
export const rateBucket = (bytesPerSecond: number): { readonly size: number; readonly refill_time: number } => ({
  size: Math.max(1, Math.floor((bytesPerSecond * RATE_WINDOW_MS) / 1000)),
  refill_time: RATE_WINDOW_MS,
})

/**
 * Whether a pause waits until disks have answered what they were asked. Before release 53 it does not, and what was answered out of its
 * turn would be asked again by a machine that wakes.
 */
export const drainsDisks = (version: string): boolean => Number.parseInt(version, 10) >= 53

/** One request after another. Not in its published document; a configuration that it saved says so by itself. */
const IN_TURN = ',_disable_io_uring=on,_disable_aio=on'

const onOff = (value: boolean): string => (value ? 'on' : 'off')

/** From the start. */
export function bootCommandLine(machine: Machine, wiring: Wiring): string[] {
  const { disks, mac, sharesMemory, diskIoBps, version } = wiring
  const bucket = diskIoBps === undefined ? undefined : rateBucket(diskIoBps)
  return [
    ...commonArguments(wiring),
    ...['--cpus', `boot=${machine.vcpus}`],
    ...['--memory', 'size=0'],
    ...['--memory-zone', `id=${MEMORY_ID},size=${machine.memoryMib}M,file=${MEMORY_FILE},shared=${onOff(sharesMemory)}`],
    ...['--kernel', KERNEL_NAME, '--initramfs', pathOf(FD.INITRD), '--cmdline', KERNEL_COMMAND_LINE],
    ...['--serial', 'tty', '--console', 'off'],
    ...['--vsock', `id=vsock,cid=${GUEST_CID},socket=${VSOCK_SOCKET}`],
    ...(bucket === undefined ? [] : ['--rate-limit-group', `id=${RATE_GROUP},bw_size=${bucket.size},bw_refill_time=${bucket.refill_time}`]),
    '--disk',
    ...[...slotsOf(disks), ...volumesOf(disks).map(volumeSlot)].map(
      ({ id, path, readOnly }) =>
        `id=${id},path=${path},readonly=${onOff(readOnly)},serial=${id},image_type=raw${drainsDisks(version) ? '' : IN_TURN}${
          bucket === undefined || id.startsWith('empty') ? '' : `,rate_limit_group=${RATE_GROUP}`
        }`,
    ),
    ...(machine.hasTap ? ['--net', `id=${NIC_ID},fd=${FD.NIC}${mac === undefined ? '' : `,mac=${mac}`}`] : []),
  ]
}

/** From what lies in its own directory. */
export const restoreCommandLine = ({ hasTap }: Machine, wiring: Pick<Wiring, 'program'>, { resumes }: { resumes: boolean }): string[] => [
  ...commonArguments(wiring),
  '--restore',
  // Only what `memory-ranges` names is copied, onto a mapping that is private: what it stands on is never read but where its guest does.
  `source_url=${RESTORE_URL},memory_restore_mode=copy,prefault=off,resume=${resumes}${hasTap ? `,net_fds=[${NIC_ID}@[${FD.NIC}]]` : ''}`,
]

const commonArguments = ({ program }: Pick<Wiring, 'program'>): string[] => [program, '--api-socket', `fd=${FD.API}`, '--seccomp', 'true']

export const KERNEL_COMMAND_LINE = 'console=ttyS0 quiet reboot=t panic=-1 net.ifnames=0 dormouse.drivers=late'
