/**
 * QEMU's command line: a pure function of the machine. What a golden boot depends on is in `Machine`; what differs between the
 * instances that wake from it is in `Wiring`.
 */
import { AppError } from '@dormouse/api/errors.ts'
import type { DiskSpec, HostDeviceSpec } from '../vm-spec.ts'
import type { Board } from './boards.ts'
import { DIMM_ROOM_MIB, DIMM_SLOTS, type Dimm, dimmArguments } from './dimms.ts'
import { deviceName, diskNode, FIXED_SLOTS, nodeName, roleOf, slotOf } from './disk-nodes.ts'
import { hostDeviceArguments } from './host-devices.ts'

export interface Machine {
  readonly board: Board
  readonly acceleration: 'kvm' | 'tcg'
  readonly vcpus: number
  readonly memoryMib: number
  readonly kernelPath: string
  readonly initrdPath: string
  readonly tscKhz: number
  /**
   * What the card can do is settled at the boot: behind a TAP it takes and gives large frames whose sums and cuts are left to the host.
   * Such a machine wakes with a TAP only, another with anything.
   */
  readonly hasTap?: boolean
  /** The host's kernel carries the frames between guest and TAP, and not QEMU. */
  readonly vhost?: boolean
  /** It has room for memory that comes while it runs. */
  readonly hotplug?: boolean
}

/**
 * `boot`: from the start, on memory that begins empty. `capture`: the same, but what it writes goes through to the memory's file.
 * `wake`: device state comes by a descriptor, memory by a base; runs as soon as it is loaded. `restore`: as `wake`, but it stays paused.
 */
export type Entry = 'boot' | 'capture' | 'wake' | 'restore'

export interface Wiring {
  readonly id: string
  readonly entry: Entry
  readonly disks: readonly DiskSpec[]
  readonly nic?: { readonly mac: string }
  /** Its memory is a copy that is its own: others look into that, and not into the VMM. */
  readonly ownsMemory?: boolean
  /** Memory that it has beyond what it began with. */
  readonly dimms?: readonly Dimm[]
  readonly hostDevices?: readonly HostDeviceSpec[]
  /** Its disks will be others before its guest is told to go. */
  readonly changesDisks?: boolean
}

/** Descriptors that the shim gives to QEMU under these numbers; those of disks follow, see disk-nodes.ts. */
export const FD = {
  VHOST: 8,
  HELD: 9,
  QMP: 10,
  AGENT: 11,
  APP: 12,
  JOURNAL: 13,
  CONSOLE: 14,
  STATE: 15,
  SAVE: 16,
  MEMORY: 17,
  NIC: 18,
  EMPTY: 19,
} as const

/** The ports of the virtio serial controller, by the name that the guest looks for. */
const PORTS = [
  { name: 'dormouse.agent', chardev: 'agent' },
  { name: 'dormouse.log', chardev: 'app' },
  { name: 'dormouse.journal', chardev: 'journal' },
] as const

export function commandLine(machine: Machine, wiring: Wiring): string[] {
  const { board } = machine
  const homeless = wiring.disks.find(({ role }) => !(slotOf(role) < board.diskSlots))
  if (homeless !== undefined) {
    throw new AppError(
      'not_supported',
      `This hypervisor takes at most ${board.diskSlots - FIXED_SLOTS} volumes: it has no place for ${homeless.role}`,
    )
  }
  const disks = Array.from({ length: board.diskSlots }, (_, slot) => wiring.disks.find(({ role }) => slotOf(role) === slot))
  return [
    'qemu-system-x86_64',
    ...['-name', wiring.id],
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
    ...['-machine', [board.machine, ...board.machineOptions].join(',')],
    ...['-accel', machine.acceleration === 'kvm' ? 'kvm' : 'tcg,thread=multi'],
    ...['-cpu', cpuModel(machine.acceleration)],
    ...['-smp', `${machine.vcpus}`],
    ...['-m', memorySize(machine)],
    ...['-object', memoryBackend(machine, wiring)],
    ...dimmArguments(wiring.dimms ?? []),
    ...['-rtc', 'base=utc'],
    // Two sections that say nothing of the devices, and would tie a state to the very command line it came from.
    ...['-global', 'migration.send-configuration=off', '-global', 'migration.store-global-state=off'],
    // A woken machine has its kernel in memory and, with -no-reboot, never loads one again.
    ...(isLoaded(wiring.entry)
      ? []
      : ['-kernel', machine.kernelPath, '-initrd', machine.initrdPath, '-append', kernelCommandLine(machine)]),
    ...['-chardev', `socket,id=qmp,fd=${FD.QMP},server=on,wait=off`, '-mon', 'chardev=qmp,mode=control'],
    // QEMU closes descriptors that it was handed as soon as its last control connection is gone. This one, which no one speaks on, never is.
    ...['-chardev', `socket,id=held,fd=${FD.HELD}`, '-mon', 'chardev=held,mode=control'],
    ...['-chardev', `socket,id=agent,fd=${FD.AGENT},server=on,wait=off`],
    ...['-chardev', `socket,id=app,fd=${FD.APP}`, '-chardev', `socket,id=journal,fd=${FD.JOURNAL}`],
    ...['-chardev', `socket,id=console,fd=${FD.CONSOLE}`, '-serial', 'chardev:console'],
    ...['-device', `${board.devices.serial},id=ports,max_ports=4,${board.place(0)}`],
    ...PORTS.flatMap(({ name, chardev }, index) => [
      '-device',
      `virtserialport,bus=ports.0,nr=${index + 1},chardev=${chardev},name=${name}`,
    ]),
    ...netdev(machine, wiring),
    ...['-device', nicDevice(machine, wiring)],
    ...(wiring.entry === 'capture' || wiring.changesDisks ? ['-add-fd', `fd=${FD.EMPTY},set=${FD.EMPTY}`] : []),
    ...disks.flatMap((disk, index) => [
      ...(disk === undefined ? emptyNode(index, wiring.entry) : diskNode(disk)),
      ...diskDevice(board, disk, index),
    ]),
    ...hostDeviceArguments(board, wiring.hostDevices ?? []),
    ...(isLoaded(wiring.entry) ? ['-incoming', 'defer'] : []),
    ...(wiring.entry === 'restore' ? ['-S'] : []),
  ]
}

/**
 * Under TCG all that it can emulate, the same on every host as long as QEMU is the same; but for the promise that copying byte by byte
 * is quick, which is true of processors. Guests that believe it copy memory at less than half their speed.
 */
export const cpuModel = (acceleration: Machine['acceleration']): string => (acceleration === 'kvm' ? 'host' : 'max,erms=off')

/** Where QEMU reads a device state from, and where it writes one to: descriptors that it was born with. */
export const STATE_URI = `fd:${FD.STATE}`
export const SAVE_FILE = `/proc/self/fd/${FD.SAVE}`

export function kernelCommandLine(machine: Pick<Machine, 'acceleration' | 'tscKhz' | 'hotplug'>): string {
  // Memory that is added is used for what can be moved, so that it can be taken back. A kernel that may get memory beyond 4 GiB keeps 64 MiB
  // for devices that cannot reach it; ours can.
  const memory = machine.hotplug ? ' memhp_default_state=online_movable swiotlb=noforce' : ''
  const common = `console=ttyS0 quiet reboot=t panic=-1 net.ifnames=0${memory}`
  // Emulated timers drift on a busy host: calibration loops never end, and the watchdog gives up the counter for a slower clock. So the
  // kernel is told what it would measure, and not to doubt it; the counter is the host's own.
  return machine.acceleration === 'kvm' ? common : `${common} no_timer_check tsc_early_khz=${machine.tscKhz} tsc=reliable`
}

/** Device state and memory come from elsewhere; no kernel is loaded. */
const isLoaded = (entry: Entry): boolean => entry === 'wake' || entry === 'restore'

const memorySize = ({ memoryMib, hotplug }: Machine): string =>
  hotplug ? `${memoryMib}M,slots=${DIMM_SLOTS},maxmem=${memoryMib + DIMM_ROOM_MIB}M` : `${memoryMib}M`

function memoryBackend(machine: Machine, { entry, ownsMemory = false, hostDevices = [] }: Wiring): string {
  const size = `id=ram,size=${machine.memoryMib}M`
  // Nothing is below it and no one captures it: a device has all of it in its place, in pages as large as the host has.
  if (hostDevices.length > 0) return `memory-backend-ram,${size},merge=off`
  // QEMU opens it read-write even to map it privately; the memfd behind it is sealed against writing unless this is a capture.
  return `memory-backend-file,${size},mem-path=/proc/self/fd/${FD.MEMORY},share=${entry === 'capture' || ownsMemory ? 'on' : 'off'}`
}

function netdev({ hasTap, vhost }: Machine, { nic }: Wiring): string[] {
  if (hasTap) return ['-netdev', `tap,id=net,fd=${FD.NIC}${vhost ? `,vhost=on,vhostfd=${FD.VHOST}` : ''}`]
  return nic === undefined ? [] : ['-netdev', `dgram,id=net,local.type=fd,local.str=${FD.NIC}`]
}

function nicDevice({ board, hasTap }: Machine, { nic }: Wiring): string {
  const peer = nic === undefined ? (hasTap ? ',netdev=net' : '') : `,netdev=net,mac=${nic.mac}`
  return `${board.devices.nic},id=nic,${board.place(1)}${peer}`
}

/**
 * A free slot holds a disk of no size. While a golden boot is made it is one that can be resized, all slots over the same empty file:
 * a guest is told of a change of size, and of nothing else, that its disk is another.
 */
function emptyNode(index: number, entry: Entry): string[] {
  if (entry !== 'capture') return ['-blockdev', `driver=null-co,node-name=${nodeName(index)},size=0,read-zeroes=on`]
  return ['-blockdev', JSON.stringify(resizableNode(nodeName(index)))]
}

export const resizableNode = (name: string): Record<string, unknown> => ({
  driver: 'raw',
  'node-name': name,
  file: { driver: 'file', filename: `/dev/fdset/${FD.EMPTY}`, locking: 'off' },
})

function diskDevice(board: Board, disk: DiskSpec | undefined, index: number): string[] {
  const name = deviceName(index, disk === undefined)
  const device = `${board.devices.disk},id=${name},drive=${nodeName(index)},${board.place(2 + index)}`
  // A volume may come while it runs; a serial cannot.
  if (disk === undefined && index < FIXED_SLOTS) return ['-device', device]
  // Left to itself QEMU pauses a VM when the host's disk is full, and nobody would resume it. Its guest is told instead.
  const onError = disk?.readOnly ? '' : ',werror=report,rerror=report'
  return ['-device', `${device},serial=${roleOf(index)}${onError}`]
}
