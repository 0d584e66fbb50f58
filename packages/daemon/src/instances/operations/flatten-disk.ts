import { isPlain } from '../../disks/layer.ts'
import type { Step } from '../../lib/step.ts'
import type { InstanceWork } from '../instance-work.ts'

/**
 * The disk becomes a raw layer that is no one else's, with the same contents; repeat is harmless. Only while no VM has it. The record is
 * the commit point: before it the copy is a file that no row names, behind it the old layers are, unless someone else stands on them.
 */
export async function flattenDisk(work: InstanceWork, step: Step): Promise<void> {
  const { disk, uid } = work.instance
  if (isPlain(disk)) return
  const flat = await work.uses.disks.flatten(disk, { step, owner: uid === undefined ? undefined : { uid, gid: uid } })
  work.change({ disk: [flat] })
  await work.uses.disks.release(disk).catch(work.leaveForSweep('layers of its disk'))
}
