import { AppError } from '@dormouse/api/errors.ts'
import { volumeConfigOf } from '../guest-config-of.ts'
import { volumeRole } from '../instance-disks.ts'
import type { InstanceWork } from '../instance-work.ts'

const GROW_LIMIT_MS = 150_000

/**
 * A volume that the instance writes to becomes larger. At rest the record of the larger disk is the commit point, and the filesystem grows
 * with the next mount. While it runs the record comes first: what is cut short then is done with the next mount too.
 */
export async function growVolume(
  work: InstanceWork,
  volumeId: string,
  bytes: number,
  { judge }: { readonly judge: (bytes: number) => Promise<() => void> },
): Promise<void> {
  await work.step('intent', 10_000)
  const { instance, live } = work
  const { volumes, disks, events } = work.uses
  const attachment = instance.volumes.find((one) => one.volumeId === volumeId && !one.readOnly)
  if (attachment === undefined) throw new AppError('conflict', `The instance ${instance.name} does not write to the volume any more`)
  if (bytes <= attachment.bytes) return assertNotSmaller(bytes, attachment.bytes)
  const admit = await judge(bytes - attachment.bytes)
  // Before the files as well: they may not be able to become as large as that.
  admit()
  const step = await work.step('grow', GROW_LIMIT_MS)
  if (live === undefined) {
    const disk = await volumes.enlarge(attachment.disk, bytes, instance.id)
    try {
      record(disk)
    } catch (error) {
      await disks.release(disk.filter((layer) => !attachment.disk.includes(layer)))
      throw error
    }
    return
  }
  if (live.vm.diskHotplug === undefined) throw new AppError('not_supported', 'Its disks cannot grow while it runs')
  const role = volumeRole(attachment)
  await live.vm.diskHotplug.growDisk(role, bytes, step)
  record(attachment.disk)
  await work.step('mount', GROW_LIMIT_MS)
  await (await live.connected(step)).grow(volumeConfigOf(attachment), bytes, step)

  function record(disk: readonly string[]): void {
    work.change(
      { volumes: work.instance.volumes.map((one) => (one.volumeId === volumeId ? { ...one, bytes, disk } : one)) },
      {
        evenWhenFull: false,
        also: () => {
          admit()
          events.record({ kind: 'volume.changed', subject: volumeId, data: { bytes } })
        },
      },
    )
  }
}

function assertNotSmaller(bytes: number, has: number): void {
  if (bytes < has) throw new AppError('invalid_size', 'A volume can only grow')
}
