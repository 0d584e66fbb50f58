/** A snapshot with another hypervisor than it was taken with: its disk is anyone's, memory and the state of devices are its own driver's. */
import { AppError } from '@dormouse/api/errors.ts'
import type { Hypervisor, HypervisorName } from '../hypervisors/hypervisor.ts'
import type { Step } from '../lib/step.ts'
import type { Network } from '../network/network.ts'
import type { Snapshot } from '../store/snapshots.ts'
import { assertTakes } from './driver-limits.ts'
import type { Instance } from './instance.ts'
import type { Limits } from './limits.ts'

export interface CarryOver {
  readonly wanted: HypervisorName | undefined
  /** Of whoever goes on from it: devices are no part of a snapshot. */
  readonly devices: Pick<Instance, 'devices' | 'gpu'>
  readonly hypervisorOf: (name: HypervisorName) => Hypervisor
  readonly limits: Limits
  readonly network: Pick<Network, 'kind'>
  readonly freshBoot: boolean
}

/** The snapshot as one of `wanted`. Throws `invalid_request` for one with memory, `not_supported` with what the other cannot do. */
export async function carryOver(snapshot: Snapshot, { wanted, devices, hypervisorOf, ...given }: CarryOver, step: Step): Promise<Snapshot> {
  const { kind, instance } = snapshot
  if (wanted === undefined || wanted === instance.hypervisor) return snapshot
  if (kind === 'Standby') {
    throw new AppError(
      'invalid_request',
      `A snapshot of the kind Standby goes on with the hypervisor that it was taken with, ${instance.hypervisor}`,
      { hint: 'Leave out target_hypervisor, or take a snapshot of the kind Stopped, which has no memory' },
    )
  }
  const driver = hypervisorOf(wanted)
  assertTakes(driver, { ...instance, devices: [], ...devices }, given)
  await driver.assertAvailable?.(step)
  return { ...snapshot, instance: { ...instance, hypervisor: wanted } }
}
