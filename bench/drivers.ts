/** The drivers whose instances are measured, each with its own VMM by hand beside it. */
import type { HypervisorName } from '../packages/daemon/src/hypervisors/hypervisor.ts'
import type { DaemonProcess } from '../test/harness/daemon-process.ts'
import { BARE_CLOUD_HYPERVISOR } from './anchors/bare-cloud-hypervisor.ts'
import { BARE_FIRECRACKER } from './anchors/bare-firecracker.ts'
import type { ByHand } from './anchors/by-hand.ts'
import { qemuByHand } from './anchors/qemu-by-hand.ts'
import { vmmByHand } from './anchors/vmm-by-hand.ts'
import { atLeastTimesFaster, atMost, atMostAndFaster, type Target } from './promise.ts'

export interface BenchedDriver {
  readonly name: HypervisorName
  /** What ids of its promises end with. */
  readonly suffix: '' | `_${string}`
  /** Its VMM's, as its process is called. */
  readonly program: string
  /** VMs wait for the next create. */
  readonly hasPool: boolean
  /** What it can have without a bridge. */
  readonly network: 'user' | 'none'
  readonly byHand: ByHand
  readonly targets: Readonly<Record<'create' | 'standby' | 'fork' | 'snapshot', Target>>
}

type Shared = Pick<BenchedDriver, 'hasPool' | 'network' | 'targets'>

const QEMU: Shared & Pick<BenchedDriver, 'program'> = {
  ...{ program: 'qemu-system-x86_64', hasPool: true, network: 'user' },
  targets: { create: atLeastTimesFaster(10), standby: atMost(40, 'ms'), fork: atMostAndFaster(120, 'ms'), snapshot: atLeastTimesFaster(2) },
}

/** With KVM alone, so that milliseconds say nothing before such a machine was measured: they are held to what is done by hand. */
const WITH_KVM_ALONE: Shared = {
  ...{ hasPool: false, network: 'none' },
  targets: { create: atLeastTimesFaster(1), standby: atLeastTimesFaster(1), fork: atLeastTimesFaster(1), snapshot: atLeastTimesFaster(1) },
}

export const DRIVERS = {
  qemu: { ...QEMU, name: 'qemu', suffix: '', byHand: qemuByHand('qemu') },
  'qemu-microvm': { ...QEMU, name: 'qemu-microvm', suffix: '_microvm', byHand: qemuByHand('qemu-microvm') },
  'cloud-hypervisor': {
    ...{ ...WITH_KVM_ALONE, name: 'cloud-hypervisor', suffix: '_cloud_hypervisor', program: BARE_CLOUD_HYPERVISOR.program },
    byHand: vmmByHand(BARE_CLOUD_HYPERVISOR, [
      { suffix: '', word: 'copy', restore: 'plain Cloud Hypervisor from its own snapshot, memory_restore_mode=copy' },
      { suffix: '_ondemand', word: 'ondemand', restore: 'plain Cloud Hypervisor from its own snapshot, memory_restore_mode=ondemand' },
    ]),
  },
  firecracker: {
    ...{ ...WITH_KVM_ALONE, name: 'firecracker', suffix: '_firecracker', program: BARE_FIRECRACKER.program },
    byHand: vmmByHand(BARE_FIRECRACKER, [
      { suffix: '', word: 'File', restore: 'plain Firecracker from its own full snapshot, with its backend File' },
    ]),
  },
} as const satisfies Readonly<Record<string, BenchedDriver>>

/** The driver cannot be measured on this machine; the message says which, and why. */
export class NotHere extends Error {
  override readonly name = 'NotHere'
}

/** Throws `NotHere` by what the daemon itself says. */
export async function assertHere({ client }: Pick<DaemonProcess, 'client'>, { name }: BenchedDriver): Promise<void> {
  const { runtimes } = await client.get<{ runtimes: { name: string; available: boolean; reason?: string }[] }>('/capabilities')
  const runtime = runtimes.find((one) => one.name === name)
  if (runtime?.available !== true) throw new NotHere(`${name}: ${runtime?.reason ?? 'the daemon does not know it'}`)
}

/** The part of a create's body that its network is. */
export const networkOf = ({ network }: BenchedDriver): object => (network === 'none' ? { network: { enabled: false } } : {})
