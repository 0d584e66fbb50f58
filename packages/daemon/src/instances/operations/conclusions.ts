/** What follows from what a VM did by itself. Each is done by the worker, in the order in which the reports came. */
import { errorCodeOf } from '@dormouse/api/errors.ts'
import { readJournal } from '../../guest/journal.ts'
import type { VmExit } from '../../hypervisors/hypervisor.ts'
import { exitOf, type InstanceExit } from '../exit-of.ts'
import type { InstanceWork } from '../instance-work.ts'
import type { LiveVm } from '../live-vm.ts'
import { removeSleepBut } from '../sleep-files.ts'
import { settleVolumes } from './attach-volume.ts'

// From the workload's end to the VM's: sync, unmount, power off. A guest that does not get there is ended.
const POWER_OFF_LIMIT_MS = 15_000

/** The workload has been started and the agent answers. */
export async function settleRunning(work: InstanceWork): Promise<void> {
  const { state, operation, id } = work.instance
  if (state !== 'Initializing' && state !== 'Unknown') return
  // A restore whose guest took longer than there was patience for is over now.
  work.change({ state: 'Running', operation: undefined, stateError: undefined })
  if (operation === 'restore') await removeSleepBut(work.uses.paths, id, undefined).catch(work.leaveForSweep('the consumed sleeping state'))
}

/** The workload has ended; its VM powers off next. */
export async function settleWorkloadExit(work: InstanceWork, live: LiveVm, exit: { code: number; message: string }): Promise<void> {
  if (work.instance.state !== 'Shutdown') work.change({ state: 'Shutdown', exitCode: exit.code, exitMessage: exit.message })
  const step = await work.step('power_off', POWER_OFF_LIMIT_MS)
  await untilExit(live, step.signal).catch(() => {
    work.log.warn('the guest did not power off after its workload ended and is killed')
    return live.vm.kill()
  })
  // The report of the VM's exit waits behind this one and settles.
}

/** The VM is gone: keep its disk, say how it ended, clean up after it. */
export async function settleVmExit(work: InstanceWork, exit: VmExit, options: { killed?: boolean } = {}): Promise<void> {
  await work.step('collect', 10_000)
  const journal = await readJournal(work.uses.paths.instanceLogs(work.instance.id).journal)
  const told = exitOf(journal, exit, options)
  // What it would have gone on with is consumed: the disk alone is left.
  const isLost = work.instance.operation === 'restore' && told.code === undefined
  await settleStopped(work, isLost ? { ...told, message: `its memory was lost while it woke: ${told.message}` } : told)
}

/** The guest never came up. Its VM is ended, so that it is Stopped with the reason rather than a riddle. */
export async function settleBootFailure(work: InstanceWork, live: LiveVm, error: unknown): Promise<void> {
  work.log.error({ err: error }, 'the guest did not come up and is ended')
  await work.step('kill', 30_000)
  const exit = await live.vm.kill()
  const journal = await readJournal(work.uses.paths.instanceLogs(work.instance.id).journal)
  const told = exitOf(journal, exit)
  const why = errorCodeOf(error) === undefined ? 'the guest did not come up: see its vmm log' : (error as Error).message
  await settleStopped(work, told.code === undefined ? { ...told, message: why } : told)
}

/** The end of every way to Stopped. The record first: from then on what is left in the run directory belongs to no one. */
export async function settleStopped(work: InstanceWork, exit: InstanceExit | undefined): Promise<void> {
  await work.step('settle', 30_000)
  settleVolumes(work)
  const stoppedAtMs = exit?.atMs ?? Date.now()
  work.change(
    {
      state: 'Stopped',
      operation: undefined,
      vm: undefined,
      // Whoever stops a sleeping instance gives up its memory; one that is woken has none any more.
      sleep: undefined,
      stateError: undefined,
      stoppedAtMs,
      exitCode: exit?.code,
      exitMessage: exit?.message,
    },
    // It may have been down for long before a daemon came to see it.
    { sinceMs: stoppedAtMs },
  )
  await work.host.letGo()
  await work.step('sweep', 30_000)
  await work.sweep().catch(work.leaveForSweep('run directory'))
  await removeSleepBut(work.uses.paths, work.instance.id, undefined).catch(work.leaveForSweep('the sleeping state'))
  await work.uses.memory.sweepBases().catch(work.leaveForSweep('memory bases'))
}

/** Resolves with the VM's exit, rejects when the signal ends first. */
export async function untilExit(live: LiveVm, signal: AbortSignal): Promise<VmExit> {
  const { promise, reject } = Promise.withResolvers<never>()
  const onAbort = () => reject(signal.reason)
  if (signal.aborted) onAbort()
  else signal.addEventListener('abort', onAbort, { once: true })
  try {
    return await Promise.race([live.vm.exited, promise])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}
