import type { Instance } from '../instance.ts'
import type { InstanceWork } from '../instance-work.ts'

/**
 * A new, empty layer over `disk`, on record with what changes `along` with it: what the instance writes from now on goes there. Returns its name. The file comes before
 * the row: one that no row names is swept when a daemon starts, a row without its file would be a broken disk.
 */
export async function addLayer(work: InstanceWork, disk: readonly string[], along: Partial<Instance> = {}): Promise<string> {
  const { overlayBytes, uid } = { ...work.instance, ...along }
  const { disks } = work.uses
  await work.step('layer', 30_000)
  const top = await disks.newLayer(overlayBytes, { owner: uid === undefined ? undefined : { uid, gid: uid } })
  await disks.flush([top])
  work.change({ ...along, disk: [top, ...disk] })
  return top
}
