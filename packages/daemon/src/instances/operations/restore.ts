import { AppError } from '@dormouse/api/errors.ts'
import type { WakeRequest } from '../../guest/guest-client.ts'
import type { Capture } from '../../hypervisors/hypervisor.ts'
import { guestIdentityOf } from '../guest-config-of.ts'
import type { Instance } from '../instance.ts'
import type { InstanceWork } from '../instance-work.ts'
import type { LiveVm } from '../live-vm.ts'
import { removeSleepBut } from '../sleep-files.ts'
import type { Admit } from './start.ts'

const LOAD_LIMIT_MS = 300_000
const WAKE_LIMIT_MS = 60_000

/**
 * Standby → Running. The record that the sleeping state is consumed is the commit point: from there it is never loaded again, since
 * its disk moves on. Before it every failure leaves the instance asleep as it was.
 */
export async function restore(work: InstanceWork, admit: Admit): Promise<void> {
  await work.step('intent', 10_000)
  const judge = await admit(work)
  judge()
  const { id, name, sleep } = work.instance
  if (sleep === undefined) throw new AppError('snapshot_unusable', `The sleeping state of ${name} is gone`)
  await work.uses.consolidations.cancel(id)
  const dir = work.uses.paths.instanceSleep(id, sleep.generation)
  await wakeFrom(work, { dir, base: sleep.base, isShared: work.uses.isBaseShared(sleep.base, id) }, { isForeign: sleep.isForeign === true })
}

/** From a capture to a VM that runs and whose agent has answered; what restore, fork and the restore of a snapshot share. */
export async function wakeFrom(work: InstanceWork, capture: Capture, { isForeign }: { isForeign: boolean }): Promise<void> {
  const spec = work.vmSpec()
  await using undo = new AsyncDisposableStack()
  const load = await work.step('load', LOAD_LIMIT_MS)
  // Deferred before, since a load that was cut short may have left something.
  undo.defer(() => work.hypervisor.sweep(work.runDir))
  const startedAt = performance.now()
  const vm = await work.hypervisor.restore(spec, capture, load)
  undo.defer(async () => void (await vm.kill()))
  work.log.info({ ms: Math.round(performance.now() - startedAt) }, 'VM restored')

  await work.step('record', 10_000)
  const { startedAtMs = Date.now() } = work.instance
  work.change({
    ...{ state: 'Paused', operation: 'restore', vm: vm.handle, sleep: undefined },
    ...{ startedAtMs, stoppedAtMs: undefined, exitCode: undefined, exitMessage: undefined, stateError: undefined },
  })
  undo.move()
  await finishRestore(work, work.host.hold(vm, wakeRequestOf(work.instance, work.uses.settings.dns, { isForeign })))
}

/** All of a restore behind its commit point: the VM is held, paused or running. */
export async function finishRestore(work: InstanceWork, live: LiveVm): Promise<void> {
  await live.vm.resume(await work.step('resume', 10_000))
  await live.whenUp(await work.step('wake', WAKE_LIMIT_MS))
  await work.step('settle', 10_000)
  work.change({ state: 'Running', operation: undefined, stateError: undefined })
  await removeSleepBut(work.uses.paths, work.instance.id, undefined).catch(work.leaveForSweep('the consumed sleeping state'))
}

/**
 * What a guest is told before its workload goes on. Its network helper is another than before, so that connections through it are
 * dead: they are closed, for the workload to see it at once.
 */
export function wakeRequestOf(instance: Instance, dns: readonly string[], { isForeign }: { isForeign: boolean }): WakeRequest {
  return {
    closeConnections: instance.network.enabled,
    announce: instance.network.enabled,
    ...(isForeign ? { identity: guestIdentityOf(instance, dns) } : {}),
  }
}
