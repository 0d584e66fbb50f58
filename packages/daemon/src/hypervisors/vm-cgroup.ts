import type { CgroupLimits } from '../host/cgroups.ts'

export interface VmSizes {
  readonly vcpus: number
  readonly memoryMib: number
  readonly acceleration: 'kvm' | 'tcg'
}

const MIB = 2 ** 20
/** The VMM, the shim and the network helper themselves, page tables, socket buffers, and files that are being written. */
const OVERHEAD_MIB = 512
/** What QEMU translates an emulated guest's code into, at most. */
const TRANSLATED_MIB = 1024

/**
 * What a VM may take of the host, helpers included: enough for anything that a sound one does, and an end for one that was taken over. Pure.
 *
 *  - Memory counts twice: a page of a shared base that holds nothing belongs to whoever reads it first, and again once it is written. What
 *    the VM's disks have in the page cache counts too, but goes when it is in the way.
 *  - A processor more than its own is for the VMM's I/O, the shim and the network helper.
 *  - Threads: QEMU keeps up to 64 for its disks, and each worker of the shim is a process for a moment.
 */
export const cgroupLimitsOf = ({ vcpus, memoryMib, acceleration }: VmSizes): CgroupLimits => ({
  weight: vcpus,
  cpus: vcpus + 1,
  memoryBytes: (2 * memoryMib + OVERHEAD_MIB + (acceleration === 'tcg' ? TRANSLATED_MIB : 0)) * MIB,
  pids: 256 + 4 * vcpus,
})
