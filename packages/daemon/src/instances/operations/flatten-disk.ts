import { AppError } from '@dormouse/api/errors.ts'
import { isPlain } from '../../disks/layer.ts'
import type { Step } from '../../lib/step.ts'
import type { InstanceWork } from '../instance-work.ts'

/** Every read goes through the layers, and a VMM takes ten. */
const MANY_LAYERS = 8
// It reads and writes all that was written since the chain began.
const FLATTEN_LIMIT_MS = 1_800_000

/** Before a layer is added to a disk: one that has many has few afterwards. */
export async function shortenDisk(work: InstanceWork): Promise<void> {
  if (work.instance.disk.length < MANY_LAYERS) return
  await flattenDisk(work, await work.step('flatten', FLATTEN_LIMIT_MS))
}

/**
 * The disk becomes a raw layer that is no one else's, with the same contents; under a VM the layers between its top and its bottom go.
 * Repeat is harmless. The record is the commit point: before it the chain shows the same as after it, behind it the layers that were
 * left out are removed, unless someone else stands on them. A top that a VM never came to write is left out too: a daemon died over it.
 */
export async function flattenDisk(work: InstanceWork, step: Step): Promise<void> {
  const { disk } = work.instance
  const flat = work.live === undefined ? await flattenAtRest(work, step) : believed(work, await work.live.vm.flatten('overlay', step))
  if (flat.length === disk.length && flat[0] === disk[0]) return
  work.change({ disk: flat })
  await work.uses.disks.release(disk).catch(work.leaveForSweep('layers of its disk'))
}

/**
 * What a VM says it is left with, which may have been taken over by its guest: layers that it has, in their order, down to the same bottom,
 * and on top one that is no one else's. The record would make anything else its own to read and to write.
 */
function believed({ instance: { id, name, disk }, uses }: InstanceWork, left: readonly string[]): readonly string[] {
  const depths = left.map((layer) => disk.indexOf(layer))
  const isInOrder = depths.every((depth, index) => depth > (depths[index - 1] ?? -1))
  const [top] = left
  if (top !== undefined && isInOrder && left.at(-1) === disk.at(-1) && !uses.disks.isShared(top, id)) return left
  throw new AppError('internal_error', `The VM of ${name} names layers of its disk that cannot be right`, {
    hint: 'It may have been taken over by its guest. Go back to a snapshot, or delete the instance',
  })
}

async function flattenAtRest({ instance: { disk, uid }, uses }: InstanceWork, step: Step): Promise<readonly string[]> {
  if (isPlain(disk)) return disk
  return [await uses.disks.flatten(disk, { step, owner: uid === undefined ? undefined : { uid, gid: uid } })]
}
