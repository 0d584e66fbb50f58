import type { Runtime } from '@dormouse/api/capabilities.ts'
import { HYPERVISORS, type HypervisorKind } from '@dormouse/api/instances.ts'

/** Why no instance can be made with a hypervisor that the contract knows and this daemon has no driver of. `fake` is for development alone. */
const WHY: Readonly<Record<Exclude<HypervisorKind, 'fake'>, string>> = {
  'cloud-hypervisor': 'This version has no driver for Cloud Hypervisor',
  firecracker: 'This version has no driver for Firecracker',
  qemu: 'This daemon was started with another hypervisor (DORMOUSE_HYPERVISOR)',
  'qemu-microvm': 'This daemon was started with another hypervisor (DORMOUSE_HYPERVISOR)',
  vz: 'The Virtualization framework is a part of macOS, and this is Linux',
}

/** Those of the contract beside `known`, none of which is available, each with the reason. */
export const otherRuntimes = (known: readonly { readonly name: string }[]): Runtime[] =>
  HYPERVISORS.filter((name) => name !== 'fake')
    .filter((name) => !known.some((runtime) => runtime.name === name))
    .map((name) => ({ name, available: false, features: [], reason: WHY[name] }))
