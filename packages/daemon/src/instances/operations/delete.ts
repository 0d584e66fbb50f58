import type { InstanceWork } from '../instance-work.ts'
import { forgetInstance, removeFiles } from './create.ts'
import { powerOff } from './power-off.ts'

export interface DeleteOptions {
  /** Give the workload a moment to end by itself; true when absent. */
  readonly graceful?: boolean
}

/**
 * Any state → gone. The record of the intent is the commit point: from there a delete only goes forward, by a retry or by the next
 * daemon if need be. The row goes last, so that nothing of an instance outlives the knowledge of it.
 */
export async function deleteInstance(work: InstanceWork, options: DeleteOptions): Promise<void> {
  await work.step('intent', 10_000)
  await work.uses.sleepJobs.cancel(work.instance.id)
  work.change({ operation: 'delete' })
  await finishDelete(work, options)
}

/** All of a delete behind its commit point. */
export async function finishDelete(work: InstanceWork, options: DeleteOptions): Promise<void> {
  if (work.live) await powerOff(work, work.live, options.graceful === false ? 0 : work.uses.settings.deleteGraceMs)
  await work.host.letGo()
  await work.step('sweep', 60_000)
  await Promise.all([work.sweep(), work.hypervisor.unexpect?.(work.instance.id)])
  await work.step('remove_files', 60_000)
  await removeFiles(work)
  await work.step('forget', 10_000)
  await forgetInstance(work)
}
