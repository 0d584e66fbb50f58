import type { DiskRole } from '../../hypervisors/vm-spec.ts'
import type { Instance } from '../instance.ts'
import { disksOf, withLayers } from '../instance-disks.ts'
import type { InstanceWork } from '../instance-work.ts'

/** Names of layers by the disks that they are the top of. */
export type Tops = ReadonlyMap<DiskRole, string>

/**
 * A new, empty layer over each of the instance's disks, on record: what it writes from now on goes there. Throws when the head of a layer
 * below is not as it was made: QEMU would follow a data file that is named there, whatever it is told to stand on.
 */
export async function addLayers(work: InstanceWork): Promise<Tops> {
  const { disks } = work.uses
  for (const { layers } of disksOf(work.instance)) for (const below of layers.slice(0, 1)) await disks.assertSound(below)
  const tops = await makeLayers(work, work.instance)
  try {
    work.change(putOn(work.instance, tops))
    return tops
  } catch (error) {
    await disks.release([...tops.values()])
    throw error
  }
}

/** The disks of `instance` with these layers on top. Pure. */
export const putOn = (instance: Pick<Instance, 'disk' | 'volumes' | 'overlayBytes'>, tops: Tops): Pick<Instance, 'disk' | 'volumes'> => {
  const below = new Map(disksOf(instance).map(({ role, layers }) => [role, layers]))
  return withLayers(instance, (role) => {
    const top = tops.get(role)
    return top === undefined ? undefined : [top, ...(below.get(role) ?? [])]
  })
}

/**
 * The files of new layers, one for each disk, flushed. They come before the row: one that no row names is swept when a daemon starts, a row
 * without its file would be a broken disk.
 */
export async function makeLayers(work: InstanceWork, instance: Pick<Instance, 'disk' | 'volumes' | 'overlayBytes' | 'uid'>): Promise<Tops> {
  const { disks } = work.uses
  const { uid } = instance
  await work.step('layer', 30_000)
  const tops = new Map<DiskRole, string>()
  try {
    for (const { role, bytes, limitBytes } of disksOf(instance)) {
      // A volume is no one's: the shim opens it, whoever the VM runs as.
      const owner = role !== 'overlay' || uid === undefined ? undefined : { uid, gid: uid }
      tops.set(role, await disks.newLayer(bytes, { owner, limitBytes }))
    }
    await disks.flush([...tops.values()])
    return tops
  } catch (error) {
    await disks.release([...tops.values()])
    throw error
  }
}
