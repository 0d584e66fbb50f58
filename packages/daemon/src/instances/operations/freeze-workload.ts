import type { InstanceWork } from '../instance-work.ts'
import type { LiveVm } from '../live-vm.ts'

const FREEZE_LIMIT_MS = 3000

/**
 * The workload stands still before the VM is paused, so that it runs nothing after the wake until the agent has set clock, entropy
 * and names. False when its agent does not answer: put to sleep it may be all the same, it is the one that needs it most.
 */
export async function freezeWorkload(work: InstanceWork, live: LiveVm): Promise<boolean> {
  const step = await work.step('freeze', FREEZE_LIMIT_MS)
  live.holdStill()
  try {
    const guest = await live.connected(step)
    const { isWhole } = await guest.freeze({ bestEffort: true }, step)
    if (!isWhole) work.log.warn('some of the workload hangs in the kernel, and stops where it comes out')
    return true
  } catch (error) {
    work.log.warn({ err: error }, 'the workload could not be frozen, its VM is captured as it is')
    return false
  }
}
