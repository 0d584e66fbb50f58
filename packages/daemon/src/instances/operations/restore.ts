import { existsSync } from 'node:fs'
import { AppError } from '@dormouse/api/errors.ts'
import type { WakeRequest } from '../../guest/guest-client.ts'
import type { Capture } from '../../hypervisors/hypervisor.ts'
import type { Network } from '../../network/network.ts'
import { guestIdentityOf } from '../guest-config-of.ts'
import type { Instance } from '../instance.ts'
import type { InstanceWork } from '../instance-work.ts'
import type { LiveVm } from '../live-vm.ts'
import { removeSleepBut } from '../sleep-files.ts'
import { plainDisks } from './plain-disks.ts'
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
  await work.uses.sleepJobs.cancel(id)
  const dir = work.uses.paths.instanceSleep(id, sleep.generation)
  await wakeFrom(work, { dir, base: sleep.base, isShared: work.uses.isBaseShared(sleep.base, id) }, { isForeign: sleep.isForeign === true })
}

export interface WakeFrom {
  /** The guest was another instance's: it is given its own name and addresses before its workload goes on. */
  readonly isForeign: boolean
  /** What becomes of the instance with the commit: the machine is of it so, its disk too. */
  readonly along?: Partial<Instance>
}

/** From a capture to a VM that runs and whose agent has answered; what restore, fork and the restore of a snapshot share. */
export async function wakeFrom(work: InstanceWork, capture: Capture, { isForeign, along: wanted = {} }: WakeFrom): Promise<void> {
  await using disks = await plainDisks(work, wanted)
  const { along } = disks
  await using undo = new AsyncDisposableStack()
  // A VM that could not be ended when its sleeping state was recorded; it is paused for ever.
  if (existsSync(work.runDir)) await work.sweep()
  // Deferred before, since a load that was cut short may have left something.
  undo.defer(() => work.sweep())
  const address = work.instance.network.ip
  await work.attach()
  // Its subnet has become another while it slept.
  const isElsewhere = address !== work.instance.network.ip
  const spec = work.vmSpec(along)
  const load = await work.step('load', LOAD_LIMIT_MS)
  const startedAt = performance.now()
  const vm = await work.hypervisorWith(along).restore(spec, capture, load)
  undo.defer(async () => void (await vm.kill()))
  work.log.info({ origin: vm.origin, ms: Math.round(performance.now() - startedAt) }, 'VM restored')

  await work.step('record', 10_000)
  // A nap is not a start: what it began as is told through all of them.
  const { startedAtMs = Date.now() } = { ...work.instance, ...along }
  work.change({
    ...along,
    ...{ state: 'Paused', operation: 'restore', vm: vm.handle, sleep: undefined },
    ...{ startedAtMs, stoppedAtMs: undefined, exitCode: undefined, exitMessage: undefined, stateError: undefined },
  })
  undo.move()
  await finishRestore(work, work.host.hold(vm, wakeRequestOf(work.instance, work.uses.network, { isForeign: isForeign || isElsewhere })))
}

/** All of a restore behind its commit point: the VM is held, paused or running. */
export async function finishRestore(work: InstanceWork, live: LiveVm): Promise<void> {
  const step = await work.step('resume', 10_000)
  // There is no way back: what fails is tried once more.
  await live.vm.resume(step).catch(() => live.vm.resume(step))
  await live.whenUp(await work.step('wake', Math.min(WAKE_LIMIT_MS, work.uses.settings.bootLimitMs)))
  await work.step('settle', 10_000)
  work.change({ state: 'Running', operation: undefined, stateError: undefined })
  work.afterwards('the consumed sleeping state', () => removeSleepBut(work.uses.paths, work.instance.id, undefined))
}

/**
 * What a guest is told before its workload goes on. Its network helper is another than before, so that connections through it are
 * dead: they are closed, for the workload to see it at once. It is asked under the name of its VM, so that a daemon which has to ask
 * again leaves alone what was opened since.
 */
export function wakeRequestOf(
  instance: Instance,
  network: Pick<Network, 'guestNetworkOf'>,
  { isForeign }: { isForeign: boolean },
): WakeRequest {
  const { vm } = instance
  return {
    ...(vm === undefined ? {} : { token: [instance.id, vm.bootId, vm.vmm.pid, vm.vmm.startTicks].join(' ') }),
    closeConnections: instance.network.enabled,
    // The helper loses a packet for each address that it has to ask for; and of a copy it may have heard the old one, in a frame that was
    // sent before the agent was told the new one, and would stay with it.
    announce: instance.network.enabled,
    ...(isForeign ? { identity: guestIdentityOf(instance, network) } : {}),
  }
}
