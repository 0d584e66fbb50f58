/** Firecracker as a host has it: what is looked for. */
import type { KvmVmm } from '../kvm-host.ts'

export const FIRECRACKER: KvmVmm = {
  title: 'Firecracker',
  program: 'firecracker',
  setting: 'DORMOUSE_FIRECRACKER',
  home: 'https://github.com/firecracker-microvm/firecracker/releases',
  // Not 1.16.0: what was on its way out of a guest when it was captured keeps its vsock from ever being heard of again.
  versions: ['1.16.1', '1.15.1'],
  // Its memory is captured and loaded from outside; there is no other way with it.
  needsReach: true,
}
