/** Disks of a VMM that knows no layers: each is one raw file, and what is a chain is copied into one before its VM comes to it. */
import { isPlain } from '../../disks/layer.ts'
import type { Hypervisor } from '../../hypervisors/hypervisor.ts'
import type { DiskRole } from '../../hypervisors/vm-spec.ts'
import type { Attachment, Instance } from '../instance.ts'
import { disksOf, withLayers } from '../instance-disks.ts'
import type { InstanceWork } from '../instance-work.ts'

// It reads and writes all that is in the disk.
const FLATTEN_LIMIT_MS = 1_800_000

export const hasLayers = ({ capabilities }: Pick<Hypervisor, 'capabilities'>): boolean => capabilities.has('disk_layers')

/**
 * What the instance becomes `along` with the start of its VM, with disks that its VMM can have. When it is disposed of, files that no row
 * names by then go: those that were made, or those that they replace.
 */
export async function plainDisks(
  work: InstanceWork,
  along: Partial<Instance>,
): Promise<{ readonly along: Partial<Instance> } & AsyncDisposable> {
  const becoming = { ...work.instance, ...along }
  const chains = hasLayers(work.hypervisorWith(along)) ? [] : disksOf(becoming).filter(({ layers }) => !isPlain(layers))
  if (chains.length === 0) return { along, [Symbol.asyncDispose]: async () => undefined }
  const { disks, volumes } = work.uses
  const { uid } = becoming
  const step = await work.step('flatten', FLATTEN_LIMIT_MS)
  await using undo = new AsyncDisposableStack()
  const left = chains.flatMap(({ layers }) => layers)
  const flat = new Map<DiskRole, string>()
  undo.defer(() => disks.release([...left, ...flat.values()]).then(() => undefined, work.leaveForSweep('layers of disks')))
  for (const { role, layers } of chains) {
    const owner = uid === undefined ? undefined : { uid, gid: uid }
    // A volume is no VM's, and what looks into it is none of them.
    flat.set(role, await (role === 'overlay' ? disks.flatten(layers, { step, owner }) : volumes.flatten(layers, step)))
  }
  const plain = withLayers(becoming, (role) => {
    const layer = flat.get(role)
    return layer === undefined ? undefined : [layer]
  })
  const settle = undo.move()
  return { along: { ...along, ...plain }, [Symbol.asyncDispose]: () => settle.disposeAsync() }
}

/** Attachments for a VM that runs, with disks that its VMM can have. Disposed of, layers that no row names by then are gone. */
export async function plainAttachments(
  work: InstanceWork,
  attachments: readonly Attachment[],
): Promise<{ readonly attachments: readonly Attachment[] } & AsyncDisposable> {
  const chains = hasLayers(work.hypervisor) ? [] : attachments.filter(({ disk }) => !isPlain(disk))
  if (chains.length === 0) return { attachments, [Symbol.asyncDispose]: async () => undefined }
  const { disks, volumes } = work.uses
  const step = await work.step('flatten', FLATTEN_LIMIT_MS)
  await using undo = new AsyncDisposableStack()
  const flat = new Map<Attachment, string>()
  const left = chains.flatMap(({ disk }) => disk)
  undo.defer(() => disks.release([...left, ...flat.values()]).then(() => undefined, work.leaveForSweep('layers of a volume')))
  for (const chain of chains) flat.set(chain, await volumes.flatten(chain.disk, step))
  const settle = undo.move()
  return {
    attachments: attachments.map((one) => ({ ...one, disk: flat.has(one) ? [String(flat.get(one))] : one.disk })),
    [Symbol.asyncDispose]: () => settle.disposeAsync(),
  }
}
