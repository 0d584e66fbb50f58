/** Volumes that are asked for, as attachments: which slot, which path, and on which layers. */
import { AppError } from '@dormouse/api/errors.ts'
import { formatSize } from '@dormouse/api/units.ts'
import type { Hypervisor } from '../hypervisors/hypervisor.ts'
import { checkMountPath, checkMountPaths, type PreparedDisk, type Volume, type Volumes } from '../volumes/volumes.ts'
import { readerBytes } from './driver-limits.ts'
import type { Attachment, MountRequest } from './instance.ts'

export interface PlannedMount {
  readonly volume: Volume
  readonly request: MountRequest
  readonly slot: number
}

/** Throws what is wrong with the requests, beside what is attached already. Changes nothing. */
export function planMounts(
  requests: readonly MountRequest[],
  attached: readonly Attachment[],
  { volumes, slots }: { readonly volumes: Pick<Volumes, 'resolve'>; readonly slots: number },
): PlannedMount[] {
  const checked = requests.map((request) => ({ ...request, mountPath: checkMountPath(request.mountPath) }))
  checkMountPaths([...attached, ...checked].map(({ mountPath }) => mountPath))
  if (attached.length + checked.length > slots) {
    throw new AppError('invalid_request', `An instance of this hypervisor takes at most ${slots} volumes`, {
      hint: 'Detach one first, or put more onto one volume',
    })
  }
  const taken = new Set(attached.map(({ slot }) => slot))
  const ids = new Set(attached.map(({ volumeId }) => volumeId))
  return checked.map((request) => {
    const volume = volumes.resolve(request.volume)
    if (ids.has(volume.id)) throw new AppError('conflict', `The volume ${volume.name} is attached to the instance already`)
    ids.add(volume.id)
    checkOverlay(request, volume)
    let slot = 0
    while (taken.has(slot)) slot++
    taken.add(slot)
    return { volume, request, slot }
  })
}

const MIB = 2 ** 20
// ext4 with what it keeps for itself wants some room to be of use.
const MIN_OVERLAY = 16 * MIB

function checkOverlay({ readOnly, overlayBytes }: MountRequest, volume: Volume): void {
  if (overlayBytes === undefined) return
  if (!readOnly) throw new AppError('invalid_request', 'An overlay is for a volume that is shared: it needs `readonly`')
  if (overlayBytes < MIN_OVERLAY || overlayBytes > volume.bytes) {
    throw new AppError(
      'invalid_overlay_size',
      `overlay_size of the volume ${volume.name} must be between ${formatSize(MIN_OVERLAY)} and its own size, ${formatSize(volume.bytes)}`,
    )
  }
}

/** What they take of the host's disk beyond the volumes themselves. Pure. */
export const roomOf = (planned: readonly PlannedMount[], driver: Pick<Hypervisor, 'capabilities'>): number =>
  planned.reduce((sum, { volume: { bytes }, request: { readOnly, overlayBytes } }) => {
    const reader = { bytes, ...(overlayBytes === undefined ? {} : { overlayBytes }) }
    return readOnly ? sum + readerBytes(driver, reader) : sum
  }, 0)

const attachmentOf = ({ volume, request, slot }: PlannedMount, { disk }: PreparedDisk): Attachment => ({
  volumeId: volume.id,
  volumeName: volume.name,
  mountPath: request.mountPath,
  readOnly: request.readOnly,
  ...(request.overlayBytes === undefined ? {} : { overlayBytes: request.overlayBytes }),
  bytes: volume.bytes,
  slot,
  disk,
})

/** Disks for all of them. Disposed of, layers that no row names by then are gone. */
export async function prepareMounts(
  planned: readonly PlannedMount[],
  { volumes, release }: { readonly volumes: Volumes; readonly release: (layers: readonly string[]) => Promise<unknown> },
): Promise<{ readonly attachments: readonly Attachment[]; readonly assertUnchanged: () => void } & AsyncDisposable> {
  await using undo = new AsyncDisposableStack()
  const disks: PreparedDisk[] = []
  const attachments: Attachment[] = []
  for (const mount of planned) {
    const prepared = await volumes.prepare(mount.volume, mount.request)
    undo.defer(async () => void (await release(prepared.made)))
    disks.push(prepared)
    attachments.push(attachmentOf({ ...mount, volume: prepared.volume }, prepared))
  }
  const held = undo.move()
  return {
    attachments,
    assertUnchanged: () => {
      for (const disk of disks) volumes.assertUnchanged(disk)
    },
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  }
}
