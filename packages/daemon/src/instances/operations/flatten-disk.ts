import { AppError } from '@dormouse/api/errors.ts'
import { isPlain } from '../../disks/layer.ts'
import type { DiskRole } from '../../hypervisors/vm-spec.ts'
import type { Step } from '../../lib/step.ts'
import { disksOf, withLayers } from '../instance-disks.ts'
import type { InstanceWork } from '../instance-work.ts'

/** Every read goes through the layers, and a VMM takes ten. */
const MANY_LAYERS = 8
// It reads and writes all that was written since the chain began.
const FLATTEN_LIMIT_MS = 1_800_000

/** Before layers are added to its disks: one that has many has few afterwards. */
export async function shortenDisks(work: InstanceWork): Promise<void> {
  for (const { role, layers } of disksOf(work.instance)) {
    if (layers.length < MANY_LAYERS) continue
    await flattenDisk(work, role, await work.step('flatten', FLATTEN_LIMIT_MS))
  }
}

/**
 * The disk becomes a raw layer that is no one else's, with the same contents; under a VM the layers between its top and its bottom go.
 * Repeat is harmless. The record is the commit point: before it the chain shows the same as after it, behind it the layers that were
 * left out are removed, unless someone else stands on them. A top that a VM never came to write is left out too: a daemon died over it.
 */
export async function flattenDisk(work: InstanceWork, role: DiskRole, step: Step): Promise<void> {
  const layers = layersIn(work, role)
  const flat =
    work.live === undefined ? await flattenAtRest(work, role, step) : believed(work, layers, await work.live.vm.flatten(role, step))
  if (flat.length === layers.length && flat[0] === layers[0]) return
  work.change(withLayers(work.instance, (one) => (one === role ? flat : undefined)))
  await work.uses.disks.release(layers).catch(work.leaveForSweep('layers of its disk'))
}

const layersIn = ({ instance }: InstanceWork, role: DiskRole): readonly string[] =>
  disksOf(instance).find((disk) => disk.role === role)?.layers ?? []

/**
 * What a VM says it is left with, which may have been taken over by its guest: layers that it has, in their order, down to the same bottom,
 * and on top one that is no one else's. The record would make anything else its own to read and to write.
 */
function believed({ instance: { id, name }, uses }: InstanceWork, layers: readonly string[], left: readonly string[]): readonly string[] {
  const depths = left.map((layer) => layers.indexOf(layer))
  const isInOrder = depths.every((depth, index) => depth > (depths[index - 1] ?? -1))
  const [top] = left
  if (top !== undefined && isInOrder && left.at(-1) === layers.at(-1) && !uses.disks.isShared(top, id)) return left
  throw new AppError('internal_error', `The VM of ${name} names layers of its disk that cannot be right`, {
    hint: 'It may have been taken over by its guest. Go back to a snapshot, or delete the instance',
  })
}

async function flattenAtRest(work: InstanceWork, role: DiskRole, step: Step): Promise<readonly string[]> {
  const layers = layersIn(work, role)
  if (isPlain(layers)) return layers
  const { uid } = work.instance
  if (role === 'overlay') return [await work.uses.disks.flatten(layers, { step, owner: uid === undefined ? undefined : { uid, gid: uid } })]
  const { disks, volumes } = work.uses
  const flat = await volumes.flatten(layers, step)
  const { bytes, limitBytes } = disksOf(work.instance).find((disk) => disk.role === role) ?? {}
  if (bytes === undefined || limitBytes === undefined) return [flat]
  // Only a layer can be limited, and not the whole disk.
  const top = await disks.newLayer(bytes, { limitBytes })
  await disks.flush([top])
  return [top, flat]
}
