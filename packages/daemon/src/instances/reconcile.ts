/** The start of the daemon: facts are gathered for every instance, `recover()` says what follows, and it is carried out. */
import { existsSync, readdirSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import type { Hypervisor, HypervisorName, Vm } from '../hypervisors/hypervisor.ts'
import type { Logger } from '../log.ts'
import { diskRateOf } from './disk-rate.ts'
import type { Instance } from './instance.ts'
import { disksOf } from './instance-disks.ts'
import type { InstanceWork, WorkUses } from './instance-work.ts'
import type { InstanceWorker } from './instance-worker.ts'
import type { LiveVm } from './live-vm.ts'
import { finishAttach } from './operations/attach-volume.ts'
import { settleVmExit } from './operations/conclusions.ts'
import { forgetInstance, removeFiles } from './operations/create.ts'
import { finishDelete } from './operations/delete.ts'
import { finishDetach } from './operations/detach-volume.ts'
import { finishRestore, wakeRequestOf } from './operations/restore.ts'
import { runOn } from './operations/run-on.ts'
import { finishStop } from './operations/stop.ts'
import { finishUpdate } from './operations/update.ts'
import { type Facts, type Recovery, recover } from './recovery.ts'
import { removeSleepBut } from './sleep-files.ts'
import { nicOf } from './vm-spec-of.ts'

export interface ReconcileUses extends WorkUses {
  readonly log: Logger
  readonly hypervisors: ReadonlyMap<HypervisorName, Hypervisor>
  workerOf(instance: Instance): InstanceWorker
}

export interface Reconciled {
  /** How many instances each action was taken for. */
  readonly actions: Readonly<Partial<Record<Recovery['action'], number>>>
  /** What was found that belonged to no one, by path. */
  readonly swept: readonly string[]
}

const LOOK_LIMIT_MS = 10_000
// Looking at a VM is a round trip to its shim; a thousand at once would only wait for each other.
const AT_ONCE = 16

export async function reconcile(uses: ReconcileUses): Promise<Reconciled> {
  const instances = uses.rows.list()
  // Before anything new is made, which no row may name yet.
  const layers = namesIn(uses.paths.disksDir)
  const actions: Partial<Record<Recovery['action'], number>> = {}
  const queue = [...instances]
  const look = async (): Promise<void> => {
    for (let instance = queue.pop(); instance !== undefined; instance = queue.pop()) {
      const { action } = await mend(instance, uses)
      actions[action] = (actions[action] ?? 0) + 1
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, look))
  const swept = await sweepStrays(uses, layers)
  uses.log.info({ actions, swept: swept.length }, 'stored state compared with facts')
  return { actions, swept }
}

/** Resolves once the instance's state is true again, or the work that makes it so has begun. */
async function mend(instance: Instance, uses: ReconcileUses): Promise<Recovery> {
  const { facts, vm } = await factsOf(instance, uses)
  const recovery = recover(instance, facts)
  if (recovery.action === 'rest') return recovery
  const worker = uses.workerOf(instance)
  worker.log.info({ action: recovery.action, state: instance.state, operation: instance.operation, vm: facts.vm }, 'instance recovered')
  if (vm) hold(worker, vm, recovery, uses)
  // The worker's queue holds it, and requests that come meanwhile wait behind it; what fails is logged there.
  const done = worker.perform('recover', transitionOf(recovery), (work) => carryOut(work, recovery))
  // Ending a VM may take its grace period; all else is short, and the first request should find it done.
  if (recovery.action !== 'finish_stop' && recovery.action !== 'finish_delete' && recovery.action !== 'finish_update')
    await done.catch(() => undefined)
  return recovery
}

/** A daemon that died over a restore may have left a guest without its name. One that was captured says itself that it stands still. */
function hold(worker: InstanceWorker, vm: Vm, { action }: Recovery, uses: ReconcileUses): void {
  if (action === 'finish_restore') worker.hold(vm, wakeRequestOf(worker.instance, uses.network, { isForeign: true }))
  else worker.hold(vm)
}

async function factsOf(instance: Instance, uses: ReconcileUses): Promise<{ facts: Facts; vm: Vm | undefined }> {
  const hasDisk = areDisksThere(instance, uses)
  const { sleep } = instance
  if (instance.vm === undefined) {
    const hasSleep = sleep && existsSync(uses.paths.instanceSleep(instance.id, sleep.generation))
    const holdsDevices = uses.devices.isHolding(instance.id)
    return { facts: { vm: 'none', hasDisk, holdsDevices, ...(hasSleep === undefined ? {} : { hasSleep }) }, vm: undefined }
  }
  try {
    const step = { signal: AbortSignal.timeout(LOOK_LIMIT_MS), log: uses.log }
    const vm = await uses.hypervisorOf(instance.hypervisor).reconnect(instance.vm, step)
    return { facts: { vm: vm ? 'running' : 'ended', hasDisk }, vm }
  } catch (error) {
    uses.log.warn({ err: error, instance: instance.id }, 'the VM of an instance could not be looked at')
    return {
      facts: { vm: 'unclear', hasDisk, why: `its VM could not be looked at: ${error instanceof Error ? error.message : error}` },
      vm: undefined,
    }
  }
}

function areDisksThere(instance: Instance, uses: ReconcileUses): boolean {
  const { id } = instance
  try {
    return disksOf(instance).every(({ layers }) => uses.disks.isWhole(layers))
  } catch (error) {
    uses.log.warn({ err: error, instance: id }, 'the disk of an instance could not be looked at')
    return false
  }
}

const transitionOf = ({ action }: Recovery): 'delete' | 'stop' | undefined =>
  action === 'finish_delete' ? 'delete' : action === 'finish_stop' ? 'stop' : undefined

async function carryOut(work: InstanceWork, recovery: Recovery): Promise<void> {
  switch (recovery.action) {
    case 'rest':
      return
    case 'undo_create':
      await work.step('sweep', 60_000)
      await work.sweep()
      await work.step('remove_files', 60_000)
      await removeFiles(work)
      await work.step('forget', 10_000)
      return forgetInstance(work, { isUnmade: true })
    case 'undo_start':
      await work.step('sweep', 60_000)
      await work.sweep()
      await work.step('settle', 10_000)
      work.change({ state: 'Stopped', operation: undefined, vm: undefined })
      return
    case 'finish_stop':
      return finishStop(work, {})
    case 'finish_delete':
      return finishDelete(work, {})
    case 'finish_update':
      return finishUpdate(work)
    case 'finish_restore':
      if (work.live) await finishRestore(work, work.live)
      return
    case 'adopt':
      return adopt(work)
    case 'finish_volumes':
      await adopt(work)
      if (work.live === undefined) return
      await (work.instance.volumes.some(({ moving }) => moving === 'in') ? finishAttach : finishDetach)(work, work.live)
      return
    case 'settle_ended':
      return settleVmExit(work, (await work.hypervisor.lastExit(work.runDir)) ?? { kind: 'lost', atMs: Date.now() })
    case 'settle_asleep':
      work.change({ state: 'Standby', operation: undefined, stateError: undefined })
      return
    case 'give_back_devices':
      await work.step('sweep', 60_000)
      // What may run for it has them open.
      return work.sweep()
    case 'mark_unknown':
      work.change({ state: 'Unknown', stateError: recovery.why })
      return
  }
}

async function adopt(work: InstanceWork): Promise<void> {
  if (work.live && work.instance.vm) work.change({ vm: work.live.vm.handle })
  // A daemon that died over a capture, or while it took a disk out, may have left it paused; no one else pauses.
  if (work.live) await runOn(work, work.live)
  await publishAsRecorded(work)
}

/** A daemon that died while it changed ports or rates, or how much disks move, may have left others than those on record. */
async function publishAsRecorded(work: InstanceWork): Promise<void> {
  const { live, instance } = work
  if (!live) return
  if (work.hypervisor.capabilities.has('disk_limit_live')) {
    await live.vm
      .setDiskRate(diskRateOf(instance, work.uses.settings.diskIo), await work.step('disk_rate', 10_000))
      .catch((err: unknown) => work.log.error({ err }, 'the rate of its disks could not be set again'))
  }
  if (work.hypervisor.capabilities.has('memory_hotplug')) await followMemory(work, live)
  const nic = nicOf(instance)
  if (nic === undefined) return
  const step = await work.step('ports', 10_000)
  await work.uses.network
    .publish(live.vm, nic, step)
    .catch((err: unknown) => work.log.error({ err }, 'host ports could not be published again'))
  await work.uses.network
    .pace(live.vm, nic, step)
    .catch((err: unknown) => work.log.error({ err }, 'the bandwidth could not be limited again'))
}

/** Memory that was added or given back while a daemon died over it: what the VM has is what there is. */
async function followMemory(work: InstanceWork, live: LiveVm): Promise<void> {
  try {
    const hotplugBytes = await live.vm.hotplugBytes(await work.step('memory', 10_000))
    if (hotplugBytes !== work.instance.hotplugBytes) work.change({ hotplugBytes })
  } catch (err) {
    work.log.error({ err }, 'it could not be seen how much memory was added to the VM')
  }
}

/** Run directories and files of instances that are not stored, or have no VM: what a daemon left that died in the middle. */
async function sweepStrays(uses: ReconcileUses, layers: readonly string[]): Promise<string[]> {
  const { paths, log } = uses
  const instances = uses.rows.list()
  const stored = new Set(instances.map(({ id }) => basename(paths.instanceDir(id))))
  const holding = instances.filter(({ vm, operation }) => vm !== undefined || operation !== undefined)
  const running = new Set(holding.map(({ id }) => basename(paths.vmRunDir(id))))
  const swept: string[] = []
  // A shim that was capturing for a daemon which died may be in the way for a moment; what stays is for the next start.
  const remove = (dir: string): Promise<void> =>
    rm(dir, { recursive: true, force: true, maxRetries: 5 }).catch((err: unknown) => log.error({ err, dir }, 'it could not be removed'))
  for (const name of namesIn(paths.vmsDir)) {
    if (running.has(name)) continue
    const dir = join(paths.vmsDir, name)
    swept.push(dir)
    log.warn({ dir }, 'a VM that belongs to no instance is ended')
    // Whose it was is not known any more; each driver ends what it finds there and leaves the rest.
    for (const hypervisor of uses.hypervisors.values()) {
      await hypervisor.sweep(dir).catch((error: unknown) => log.error({ err: error, dir }, 'a run directory could not be swept'))
    }
  }
  for (const name of namesIn(paths.instancesDir)) {
    if (stored.has(name)) continue
    const dir = join(paths.instancesDir, name)
    swept.push(dir)
    log.warn({ dir }, 'files that belong to no instance are removed')
    await remove(dir)
  }
  for (const name of await uses.disks.release(layers)) {
    const file = join(paths.disksDir, name)
    swept.push(file)
    log.warn({ file }, 'a layer of a disk that belongs to no one is removed')
  }
  const kept = new Set(uses.snapshots.list().map(({ id, generation }) => paths.snapshotDir(id, generation)))
  for (const [parent, isKept] of [
    [paths.pointsDir, () => false],
    [paths.snapshotsDir, (name: string) => kept.has(join(paths.snapshotsDir, name))],
  ] as const) {
    for (const name of namesIn(parent)) {
      if (isKept(name)) continue
      swept.push(join(parent, name))
      await remove(join(parent, name))
    }
  }
  for (const { id, sleep } of instances) {
    await removeSleepBut(paths, id, sleep?.generation).catch((err: unknown) =>
      log.error({ err, id }, 'sleeping states could not be removed'),
    )
  }
  await uses.memory.sweepBases().catch((err: unknown) => log.error({ err }, 'memory bases could not be removed'))
  return swept
}

function namesIn(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}
