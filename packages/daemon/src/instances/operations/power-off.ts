/** The part that stop and delete share: from a VM that runs to one that is gone, as gently as there is time for. */
import type { VmExit } from '../../hypervisors/hypervisor.ts'
import type { InstanceWork } from '../instance-work.ts'
import type { LiveVm } from '../live-vm.ts'
import { untilExit } from './conclusions.ts'

const ASK_LIMIT_MS = 1500
// After its workload the guest still writes its disks out and powers off.
const POWER_OFF_MS = 5000
const POWER_BUTTON_MS = 2000

export interface PowerOff {
  readonly exit: VmExit
  /** It had to be killed. */
  readonly killed: boolean
}

/** Asks the agent, which gives the workload `graceMs` after its stop signal; then presses the power button; then kills. Always ends. */
export async function powerOff(work: InstanceWork, live: LiveVm, graceMs: number): Promise<PowerOff> {
  const isBooting = work.instance.state === 'Initializing' && !live.isUp
  if (!isBooting && graceMs > 0 && live.exit === undefined) {
    const asked = await askGuest(work, live, graceMs)
    const exit = asked ?? (await pressButton(work, live))
    if (exit) return { exit, killed: false }
  }
  await work.step('kill', 60_000)
  const wasGone = live.exit !== undefined
  return { exit: await live.vm.kill(), killed: !wasGone }
}

async function askGuest(work: InstanceWork, live: LiveVm, graceMs: number): Promise<VmExit | undefined> {
  const ask = await work.step('ask_guest', ASK_LIMIT_MS)
  try {
    const guest = await live.connected(ask)
    // A guest that has not started its workload has nothing to lose.
    if (!live.isUp && guest.hello.phase === 'parked') return undefined
    await guest.shutdown({ graceMs }, ask)
    const leave = await work.step('await_exit', graceMs + POWER_OFF_MS)
    return await untilExit(live, leave.signal)
  } catch (error) {
    work.log.warn({ err: error }, 'the guest did not end when it was asked to')
    return undefined
  }
}

async function pressButton(work: InstanceWork, live: LiveVm): Promise<VmExit | undefined> {
  const step = await work.step('power_button', POWER_BUTTON_MS)
  try {
    await live.vm.requestShutdown(step)
    return await untilExit(live, step.signal)
  } catch (error) {
    work.log.debug({ err: error }, 'the power button had no effect')
    return undefined
  }
}
