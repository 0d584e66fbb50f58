import { AppError } from '@dormouse/api/errors.ts'
import { diskRateOf } from '../disk-rate.ts'
import { volumeConfigOf } from '../guest-config-of.ts'
import type { Attachment, MountRequest } from '../instance.ts'
import { volumeRole } from '../instance-disks.ts'
import type { InstanceWork } from '../instance-work.ts'
import type { LiveVm } from '../live-vm.ts'
import { planMounts, prepareMounts, roomOf } from '../mounts.ts'
import { plainAttachments } from './plain-disks.ts'

const INSERT_LIMIT_MS = 30_000
const MOUNT_LIMIT_MS = 150_000

/**
 * A volume comes to an instance: its record is the commit point of one that is Stopped. Of one that runs the record says that the volume
 * is on its way, before its VM and its guest are told: what fails then is taken back, also by the next daemon.
 */
export async function attachVolume(
  work: InstanceWork,
  request: MountRequest,
  { judge }: { readonly judge: (overlayBytes: number) => Promise<() => void> },
): Promise<void> {
  await work.step('intent', 10_000)
  const { volumes, disks } = work.uses
  const { instance, live } = work
  const planned = planMounts([request], instance.volumes, { volumes, slots: work.hypervisor.volumeSlots })
  const admit = await judge(roomOf(planned, work.hypervisor))
  await work.step('layer', 60_000)
  await using prepared = await prepareMounts(planned, { volumes, release: (layers) => disks.release(layers) })
  // One that runs is given a disk that its VMM can have.
  await using made = live === undefined ? undefined : await plainAttachments(work, prepared.attachments)
  await work.step('record', 10_000)
  const moving = live === undefined ? {} : { moving: 'in' as const }
  const attached = (made ?? prepared).attachments.map((attachment) => ({ ...attachment, ...moving }))
  work.change(
    { volumes: [...instance.volumes, ...attached], ...(live === undefined ? {} : { operation: 'attach_volume' as const }) },
    {
      evenWhenFull: false,
      also: () => {
        admit()
        prepared.assertUnchanged()
      },
    },
  )
  if (live !== undefined) await finishAttach(work, live)
}

/** All of an attach behind its record, while the VM runs. What fails is taken back. */
export async function finishAttach(work: InstanceWork, live: LiveVm): Promise<void> {
  const coming = work.instance.volumes.find(({ moving }) => moving === 'in')
  if (coming === undefined) return settleVolumes(work)
  try {
    await bringIn(work, live, coming)
  } catch (error) {
    // Cut short, not refused: the next daemon goes on.
    if (work.isEnding || live.exit !== undefined) throw error
    await takeBack(work, live, coming)
    throw error
  }
  await work.step('settle', 10_000)
  settleVolumes(work)
}

async function bringIn(work: InstanceWork, live: LiveVm, coming: Attachment): Promise<void> {
  const role = volumeRole(coming)
  const insert = await work.step('insert', INSERT_LIMIT_MS)
  const disk = work.vmSpec().disks.find((one) => one.role === role)
  if (disk === undefined || live.vm.diskHotplug === undefined) throw new AppError('not_supported', 'Its VM takes no disks while it runs')
  await live.vm.diskHotplug.insertDisk(disk, insert)
  // Before its guest has it: a disk that comes is not in the budget of the others.
  if (work.hypervisor.capabilities.has('disk_limit_live'))
    await live.vm.setDiskRate(diskRateOf(work.instance, work.uses.settings.diskIo), insert)
  const mount = await work.step('mount', MOUNT_LIMIT_MS)
  await (await live.connected(mount)).mount(volumeConfigOf(coming), mount)
}

async function takeBack(work: InstanceWork, live: LiveVm, coming: Attachment): Promise<void> {
  const step = work.undoStep(INSERT_LIMIT_MS)
  await live
    .connected(step)
    .then((guest) => guest.unmount(volumeConfigOf(coming), step))
    .catch((err: unknown) => work.log.warn({ err }, 'a volume that could not be attached may still be mounted'))
  await live.vm.diskHotplug?.ejectDisk(volumeRole(coming), step)
  work.change({ volumes: work.instance.volumes.filter(({ slot }) => slot !== coming.slot), operation: undefined })
  await work.uses.disks.release(coming.disk)
}

/** Nothing is on its way any more. */
export function settleVolumes(work: InstanceWork): void {
  const { volumes, operation } = work.instance
  const isMoving = operation === 'attach_volume' || operation === 'detach_volume'
  if (!isMoving && !volumes.some(({ moving }) => moving !== undefined)) return
  work.change({
    volumes: volumes.map(({ moving: _moving, ...attachment }) => attachment),
    ...(isMoving ? { operation: undefined } : {}),
  })
}
