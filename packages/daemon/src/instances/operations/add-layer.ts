import type { Instance } from '../instance.ts'
import type { InstanceWork } from '../instance-work.ts'

/**
 * A new, empty layer over `disk`, on record: what the instance writes from now on goes there. Returns its name. Throws when the head of the
 * layer below it is not as it was made: QEMU would follow a data file that is named there, whatever it is told to stand on.
 */
export async function addLayer(work: InstanceWork, disk: readonly string[]): Promise<string> {
  const [below] = disk
  if (below !== undefined) await work.uses.disks.assertSound(below)
  const top = await makeLayer(work, work.instance)
  try {
    work.change({ disk: [top, ...disk] })
    return top
  } catch (error) {
    await work.uses.disks.release([top])
    throw error
  }
}

/**
 * The file of a new layer, flushed. It comes before the row: one that no row names is swept when a daemon starts, a row without its file
 * would be a broken disk.
 */
export async function makeLayer(work: InstanceWork, { overlayBytes, uid }: Pick<Instance, 'overlayBytes' | 'uid'>): Promise<string> {
  const { disks } = work.uses
  await work.step('layer', 30_000)
  const top = await disks.newLayer(overlayBytes, { owner: uid === undefined ? undefined : { uid, gid: uid } })
  await disks.flush([top])
  return top
}
