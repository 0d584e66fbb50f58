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

/**
 * Asks the agent, which gives the workload `graceMs` after its stop signal; then presses the power button; then kills. Always ends.
 * Who joins meanwhile with less patience shortens it: a smaller grace is asked for anew, none at all goes on to the kill.
 */
export async function powerOff(work: InstanceWork, live: LiveVm, graceMs: number): Promise<PowerOff> {
  work.hurry(graceMs)
  const isBooting = work.instance.state === 'Initializing' && !live.isUp
  if (!isBooting && !work.isForced && live.exit === undefined) {
    const asked = await askGuest(work, live)
    const exit = asked ?? (await pressButton(work, live))
    if (exit) return { exit, killed: false }
  }
  await work.step('kill', 60_000)
  const wasGone = live.exit !== undefined
  return { exit: await live.vm.kill(), killed: !wasGone }
}

async function askGuest(work: InstanceWork, live: LiveVm): Promise<VmExit | undefined> {
  while (!work.isForced) {
    const { hurried } = work
    const graceMs = work.graceLeftMs
    try {
      const ask = await work.step('ask_guest', ASK_LIMIT_MS)
      const step = { ...ask, signal: AbortSignal.any([ask.signal, hurried]) }
      const guest = await live.connected(step)
      // A guest that has not started its workload has nothing to lose.
      if (!live.isUp && guest.hello.phase === 'parked') return undefined
      await guest.shutdown({ graceMs }, step)
      const leave = await work.step('await_exit', graceMs + POWER_OFF_MS)
      return await untilExit(live, AbortSignal.any([leave.signal, hurried]))
    } catch (error) {
      if (hurried.aborted && !work.isEnding) continue
      work.log.warn({ err: error }, 'the guest did not end when it was asked to')
      return undefined
    }
  }
  return undefined
}

async function pressButton(work: InstanceWork, live: LiveVm): Promise<VmExit | undefined> {
  if (work.isForced) return undefined
  const { hurried } = work
  const step = await work.step('power_button', POWER_BUTTON_MS)
  const signal = AbortSignal.any([step.signal, hurried])
  try {
    await live.vm.requestShutdown({ ...step, signal })
    return await untilExit(live, signal)
  } catch (error) {
    work.log.debug({ err: error }, 'the power button had no effect')
    return undefined
  }
}
