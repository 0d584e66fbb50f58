import { AppError } from '@dormouse/api/errors.ts'
import { volumeConfigOf } from '../guest-config-of.ts'
import type { Attachment } from '../instance.ts'
import { volumeRole } from '../instance-disks.ts'
import type { InstanceWork } from '../instance-work.ts'
import type { LiveVm } from '../live-vm.ts'
import { settleVolumes } from './attach-volume.ts'

const UNMOUNT_LIMIT_MS = 150_000
const EJECT_LIMIT_MS = 30_000

/**
 * A volume leaves an instance, with all that was written. Of one that runs it is unmounted first, which is refused while something uses
 * it: then all stays as it is. The record that it is gone is the commit point; a daemon that dies before goes forward at its next start.
 */
export async function detachVolume(work: InstanceWork, volumeId: string): Promise<void> {
  await work.step('intent', 10_000)
  const { instance, live } = work
  const leaving = instance.volumes.find((attachment) => attachment.volumeId === volumeId)
  if (leaving === undefined) throw new AppError('not_found', `The volume ${volumeId} is not attached to the instance ${instance.name}`)
  if (live === undefined) return forgetVolume(work, leaving)
  work.change({
    operation: 'detach_volume',
    volumes: instance.volumes.map((attachment) => (attachment === leaving ? { ...attachment, moving: 'out' } : attachment)),
  })
  await finishDetach(work, live)
}

/** All of a detach behind its intent, while the VM runs. */
export async function finishDetach(work: InstanceWork, live: LiveVm): Promise<void> {
  const leaving = work.instance.volumes.find(({ moving }) => moving === 'out')
  if (leaving === undefined) return settleVolumes(work)
  try {
    const unmount = await work.step('unmount', UNMOUNT_LIMIT_MS)
    await (await live.connected(unmount)).unmount(volumeConfigOf(leaving), unmount)
  } catch (error) {
    // It is mounted as before, or may be.
    if (!work.isEnding && live.exit === undefined) settleVolumes(work)
    throw error
  }
  await live.vm.diskHotplug?.ejectDisk(volumeRole(leaving), await work.step('eject', EJECT_LIMIT_MS))
  await forgetVolume(work, leaving)
}

/** The layer that a reader had of its own goes; a writer's layers are the volume's again. */
async function forgetVolume(work: InstanceWork, leaving: Attachment): Promise<void> {
  await work.step('record', 10_000)
  const { operation } = work.instance
  work.change({
    volumes: work.instance.volumes.filter(({ slot }) => slot !== leaving.slot),
    ...(operation === 'detach_volume' ? { operation: undefined } : {}),
  })
  await work.step('sweep', 10_000)
  await work.uses.disks.release(leaving.disk).catch(work.leaveForSweep('the layers of a volume'))
}
