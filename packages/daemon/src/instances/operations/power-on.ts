/** The part that create and start share: from an instance that is whole on disk to a VM that runs and is recorded. */
import type { Instance } from '../instance.ts'
import type { InstanceWork } from '../instance-work.ts'
import { plainDisks } from './plain-disks.ts'

// The first of a shape waits for its golden boot to be made, which under emulation takes a while.
const SPAWN_LIMIT_MS = 240_000

/**
 * Starts the VM and records it: the commit point of create and start. Before it every failure leaves no VM; after it the instance
 * is Initializing and the rest (the guest's configuration, its workload) is its own life, not part of the operation. What becomes of
 * the instance `along` with it, its disk for one, is true of the VM and not yet of the record. `isDurable` is waited for before the
 * record: what outlives a power cut must not say of a disk that it is there when it is not.
 */
export async function powerOn(
  work: InstanceWork,
  { isDurable = Promise.resolve(), along: wanted = {} }: { isDurable?: Promise<unknown>; along?: Partial<Instance> } = {},
): Promise<void> {
  await using disks = await plainDisks(work, wanted)
  const { along } = disks
  await using undo = new AsyncDisposableStack()
  // Deferred before, since a start that was cut short may have left something.
  undo.defer(() => work.sweep())
  await work.attach()
  await work.attachDevices()
  const spec = work.vmSpec(along)
  const spawn = await work.step('spawn', SPAWN_LIMIT_MS)
  const startedAt = performance.now()
  const vm = await work.hypervisorWith(along).start(spec, spawn)
  undo.defer(async () => {
    await vm.kill()
  })
  const ms = Math.round(performance.now() - startedAt)

  await isDurable
  // Not sooner: the instance's log is a new file, which would have to wait, and all of us with it, for the flush.
  work.log.info({ origin: vm.origin, ms }, 'VM started')
  await work.step('record', 10_000)
  work.change({
    ...along,
    state: 'Initializing',
    operation: undefined,
    vm: vm.handle,
    startedAtMs: Date.now(),
    stoppedAtMs: undefined,
    // How it ended last is told until it runs again.
    exitCode: undefined,
    exitMessage: undefined,
  })
  undo.move()
  work.host.hold(vm)
}
