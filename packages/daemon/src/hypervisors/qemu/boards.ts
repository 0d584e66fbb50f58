import type { HypervisorName } from '../hypervisor.ts'

/**
 * What distinguishes QEMU's boards for us. All of it is part of a golden boot's key: a device state only loads into a machine that
 * has the same devices at the same places.
 */
export interface Board {
  readonly hypervisor: HypervisorName
  /** Pinned where QEMU pins it. microvm has no versions, so the VMM's own version must do. */
  readonly machine: string
  readonly machineOptions: readonly string[]
  readonly devices: { readonly serial: string; readonly disk: string; readonly nic: string }
  /** What of a disk's device holds the disk, for what is asked of it while QEMU runs. */
  blockDevice(name: string): string
  /** Where slot N sits. Slot 0 is the serial controller, 1 the NIC, from 2 on the disks. */
  place(slot: number): string
  /** Where the root port of the host's N-th device sits; absent: the board takes none. */
  portPlace?(index: number): string
  /** Memory can be added while it runs. */
  readonly takesDimms: boolean
  /** How many disks a machine has room for. Free slots are filled with disks of size 0, at the golden boot and at every wake. */
  readonly diskSlots: number
}

const COMMON_OPTIONS = ['memory-backend=ram', 'suppress-vmdesc=on', 'dump-guest-core=off', 'usb=off', 'graphics=off']

export const Q35: Board = {
  hypervisor: 'qemu',
  machine: 'pc-q35-7.2',
  machineOptions: [...COMMON_OPTIONS, 'vmport=off', 'smbus=off', 'sata=off', 'i8042=off', 'hpet=off'],
  devices: {
    serial: 'virtio-serial-pci,disable-legacy=on',
    disk: 'virtio-blk-pci,disable-legacy=on,num-queues=1',
    nic: 'virtio-net-pci,disable-legacy=on,romfile=',
  },
  place: (slot) => `bus=pcie.0,addr=0x${(slot + 2).toString(16)}`,
  portPlace: (index) => `bus=pcie.0,addr=0x${(index + 0x10).toString(16)}`,
  diskSlots: 6,
  takesDimms: true,
  blockDevice: (name) => `/machine/peripheral/${name}/virtio-backend`,
}

export const MICROVM: Board = {
  hypervisor: 'qemu-microvm',
  machine: 'microvm',
  // Left alone, ioapic2 follows the accelerator: 24 slots under TCG of which the lowest get no interrupt, 8 under KVM. Off it is the
  // same everywhere. ACPI must be on: Debian's kernel finds virtio-mmio devices in no other way.
  machineOptions: [...COMMON_OPTIONS, 'acpi=on', 'ioapic2=off', 'pcie=off', 'rtc=on', 'isa-serial=on', 'auto-kernel-cmdline=off'],
  devices: { serial: 'virtio-serial-device', disk: 'virtio-blk-device,num-queues=1', nic: 'virtio-net-device' },
  place: (slot) => `bus=virtio-mmio-bus.${slot}`,
  diskSlots: 6,
  takesDimms: false,
  blockDevice: (name) => `/machine/peripheral/${name}`,
}
