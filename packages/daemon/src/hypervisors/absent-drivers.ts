import type { HypervisorName } from './hypervisor.ts'

/** Why a daemon has no driver of a hypervisor that the contract knows. `fake` is for development alone. */
export const WHY_ABSENT: Readonly<Record<Exclude<HypervisorName, 'fake'>, string>> = {
  'cloud-hypervisor': 'This daemon was started with another hypervisor (DORMOUSE_HYPERVISOR)',
  firecracker: 'This daemon was started with another hypervisor (DORMOUSE_HYPERVISOR)',
  qemu: 'This daemon was started with another hypervisor (DORMOUSE_HYPERVISOR)',
  'qemu-microvm': 'This daemon was started with another hypervisor (DORMOUSE_HYPERVISOR)',
  vz: 'The Virtualization framework is a part of macOS, and this is Linux',
}
