/** Cloud Hypervisor as a host has it: what is looked for, and what its driver uses. */
import type { KvmDriverUses, KvmVmm } from '../kvm-host.ts'

export const CLOUD_HYPERVISOR: KvmVmm = {
  title: 'Cloud Hypervisor',
  program: 'cloud-hypervisor',
  setting: 'DORMOUSE_CLOUD_HYPERVISOR',
  home: 'https://github.com/cloud-hypervisor/cloud-hypervisor/releases',
  versions: ['53', '52'],
}

export interface CloudHypervisorUses extends KvmDriverUses {
  /** True when absent. */
  readonly goldenBoots?: boolean
}
