/**
 * Who may have a volume: one that writes, or any number that read. An instance's record says what it has, with the layers; the volume's
 * own row has its layers while no one writes. Both change in one transaction, which is where the rule is kept.
 */
import { AppError } from '@dormouse/api/errors.ts'
import type { EventKind } from '@dormouse/api/events.ts'
import type { Events } from '../events/events.ts'
import type { Attachment, Instance } from '../store/instance-record.ts'
import type { Holder, Volume, VolumeRows } from '../store/volumes.ts'

export interface AttachmentsUses {
  readonly rows: VolumeRows
  readonly events: Pick<Events, 'record'>
}

/** What is written is the volume's own. */
export const isWriter = ({ readOnly }: Pick<Attachment, 'readOnly'>): boolean => !readOnly

const MIB = 2 ** 20
/** ext4 has no larger journal, and a guest's kernel completes one that was left open, whatever it is mounted for. */
const READER_LIMIT = 1152 * MIB
/** A guest is kept to the size of its overlay by its own kernel; what is written over in place, and the layer's tables, come on top. */
const OVERLAY_SLACK = 64 * MIB

/** What the layer may take that an instance has over a volume that it shares. A volume of its own is limited by its size. */
export function layerLimit({ readOnly, overlayBytes }: Pick<Attachment, 'readOnly' | 'overlayBytes'>): number | undefined {
  if (!readOnly) return undefined
  return overlayBytes === undefined ? READER_LIMIT : Math.ceil((overlayBytes * 5) / 4) + OVERLAY_SLACK
}

/** Throws `conflict`, naming who has it, when `attachment` cannot be had beside them. Pure. */
export function assertCompatible(
  volume: Pick<Volume, 'id' | 'name'>,
  { readOnly }: Pick<Attachment, 'readOnly'>,
  others: readonly Holder[],
): void {
  const writer = others.find(isWriter)
  const [reader] = others
  const rival = readOnly ? writer : (writer ?? reader)
  if (rival === undefined) return
  const how = isWriter(rival) ? 'which writes to it' : `which reads it, as do ${others.length - 1} others`
  const told = isWriter(rival) || others.length > 1 ? how : 'which reads it'
  throw new AppError('conflict', `The volume ${volume.name} is attached to the instance ${rival.instanceName}, ${told}`, {
    hint: readOnly
      ? `Detach it there first: dormouse volume detach ${rival.instanceName} ${volume.id}`
      : 'One instance can write to a volume, or many can read it: detach it there, or attach it read-only',
    detail: { instance: rival.instanceId },
  })
}

/**
 * The volumes' rows after what `instance` has of them changes from `before` to `after`: call it in the transaction, before the
 * instance's own row is written. Throws `conflict` or `not_found`, and then nothing has changed.
 */
export function followAttachments(
  { rows, events }: AttachmentsUses,
  instance: Pick<Instance, 'id' | 'name'>,
  before: readonly Attachment[],
  after: readonly Attachment[],
): void {
  if (before === after) return
  const record = (kind: EventKind, { volumeId, mountPath, readOnly }: Attachment): void =>
    events.record({ kind, subject: volumeId, data: { instance: instance.id, mount_path: mountPath, readonly: readOnly } })
  for (const old of before) {
    const kept = after.find(({ volumeId }) => volumeId === old.volumeId)
    if (kept !== undefined && isWriter(kept) === isWriter(old)) continue
    const volume = rows.find(old.volumeId)
    if (volume !== undefined && isWriter(old)) rows.update({ ...volume, disk: old.disk, bytes: old.bytes })
    record('volume.detached', old)
  }
  for (const now of after) {
    const old = before.find(({ volumeId }) => volumeId === now.volumeId)
    const volume = rows.find(now.volumeId)
    if (volume === undefined) throw goneError(now)
    if (old !== undefined && isWriter(old) === isWriter(now)) {
      if (isWriter(now) && volume.bytes !== now.bytes) rows.update({ ...volume, bytes: now.bytes })
      continue
    }
    const others = rows.holders(now.volumeId).filter(({ instanceId }) => instanceId !== instance.id)
    assertCompatible(volume, now, others)
    if (isWriter(now)) rows.update({ ...volume, disk: [], bytes: now.bytes })
    record('volume.attached', now)
  }
}

const goneError = ({ volumeName, volumeId }: Attachment): AppError =>
  new AppError('conflict', `The volume ${volumeName} (${volumeId}) is gone`, { hint: 'List what there is with: dormouse volume ls' })
