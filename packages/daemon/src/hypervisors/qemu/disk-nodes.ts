/**
 * Disks as QEMU knows them. Each layer is a node over a descriptor set of its own:
 *
 *     device `overlay` ─► block1 ─► layer41 ─► layer42        at a start: the numbers are those of the descriptors
 *                  ╰────► layer100 ─► block1 ─► ...           after a pivot: the next that is free, from FIRST_GIVEN on
 *
 * Every node names its driver and what lies below it. What a guest writes onto its disk is never looked into, and no name in a layer's
 * own head is followed.
 */
import { basename } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import type { Descriptor } from '../shim.ts'
import type { DiskLayer, DiskRole, DiskSpec } from '../vm-spec.ts'

/** Layers of one disk: the sets of its slot. Long before that many a chain has become slow, so who makes layers keeps it shorter. */
const MAX_LAYERS = 10
const FIRST_SET = 30
/** Sets below it are those that QEMU was born with. */
export const FIRST_GIVEN = 100

/** The block node of what is in slot `index` when QEMU starts. */
export const nodeName = (index: number): string => `block${index}`

/** The node of a layer by its set, which is all that QEMU tells of a layer deep down. */
export function layerName(set: number): string {
  const index = (set - FIRST_SET) / MAX_LAYERS
  return set < FIRST_GIVEN && Number.isInteger(index) ? nodeName(index) : `layer${set}`
}

const FIXED: readonly DiskRole[] = ['rootfs', 'overlay', 'modules']
/** Slots that the machine's own disks have; those of volumes follow. */
export const FIXED_SLOTS = FIXED.length

/** Where a disk sits. */
export const slotOf = (role: DiskRole): number =>
  role.startsWith('volume-') ? FIXED_SLOTS + Number(role.slice('volume-'.length)) : FIXED.indexOf(role)

/** Disks that every instance may have and that no one writes. */
const COMMON: ReadonlySet<DiskRole> = new Set(['rootfs', 'modules'])

/** Which disk belongs into a slot. */
export const roleOf = (slot: number): DiskRole => FIXED[slot] ?? `volume-${slot - FIXED_SLOTS}`

/**
 * How a device is called: by its disk's role, by which it is found again. A slot of the machine's own that stays empty has another name,
 * as its guest shall not find it.
 */
export const deviceName = (slot: number, isEmpty: boolean): string => (isEmpty && slot < FIXED_SLOTS ? `empty${slot}` : roleOf(slot))

/** The device of a disk, for what is changed of it while QEMU runs. */
export const deviceOf = (role: DiskRole): string => `/machine/peripheral/${role}`

export interface LayerFile extends DiskLayer {
  readonly set: number
  readonly isWritten: boolean
  /** No one writes it, whoever else has it. */
  readonly isCommon?: boolean
}

/** The files of a disk, top first: the top for writing unless it is read-only, all below for reading. */
export const layerFiles = (disk: DiskSpec): LayerFile[] => layersFrom(disk, FIRST_SET + slotOf(disk.role) * MAX_LAYERS)

/** The same, with sets from `first` on. */
export const layersFrom = (disk: DiskSpec, first: number): LayerFile[] =>
  layersOf(disk).map(({ path, format, limitBytes }, depth) => ({
    path,
    format,
    set: first + depth,
    isWritten: depth === 0 && !disk.readOnly,
    ...(COMMON.has(disk.role) ? { isCommon: true } : {}),
    ...(limitBytes === undefined || depth > 0 ? {} : { limitBytes }),
  }))

/** What the shim opens for the disks. */
export const diskDescriptors = (disks: readonly DiskSpec[]): Descriptor[] =>
  disks.flatMap((disk) =>
    layerFiles(disk).map(({ set, path, isWritten }) => ({ number: set, kind: isWritten ? 'write' : 'read', file: path })),
  )

/** The arguments that make the nodes of a disk. */
export function diskNode(disk: DiskSpec): string[] {
  const sets = layerFiles(disk).flatMap(({ set, path }) => ['-add-fd', `fd=${set},set=${set}${disk.readOnly ? '' : noteOf(path)}`])
  return [...sets, '-blockdev', JSON.stringify(diskOptions(disk))]
}

/** The nodes of a disk, each with what lies below it. */
export function diskOptions(disk: DiskSpec): Readonly<Record<string, unknown>> {
  const [top, ...below] = layerFiles(disk)
  if (top === undefined) throw new AppError('internal_error', `The disk ${disk.role} has no layer`)
  return layerNode(
    top,
    below.reduceRight<object | null>((lower, layer) => layerNode(layer, lower), null),
  )
}

/** QEMU keeps it with the descriptor: a daemon that adopts the VM learns from it on which layers the disk really stands. */
function noteOf(path: string): string {
  const name = basename(path)
  return /^[\w.-]+$/.test(name) ? `,opaque=${name}` : ''
}

/** One layer and what is below it: nothing, as long as it is no one's. */
export function layerNode(layer: Omit<LayerFile, 'path'>, below: object | null): Record<string, unknown> {
  const file = {
    driver: 'file',
    'node-name': fileName(layer.set),
    filename: `/dev/fdset/${layer.set}`,
    'read-only': !layer.isWritten,
    'auto-read-only': false,
    // Another VMM that reads it may hold all of it, as Cloud Hypervisor does, and QEMU would take that for a writer.
    locking: layer.isCommon === true ? 'off' : 'on',
    ...(layer.isWritten ? { discard: 'unmap' } : {}),
  }
  // As it says itself where it ends, what would be written behind that does not fit. Of a raw layer it would say how large the disk is.
  const { limitBytes } = layer
  const isLimited = limitBytes !== undefined && layer.format === 'qcow2'
  const kept = { 'read-only': !layer.isWritten, ...(layer.isWritten ? { discard: 'unmap' } : {}) }
  return nodeOver(layer, isLimited ? { driver: 'raw', 'node-name': limitName(layer.set), size: limitBytes, ...kept, file } : file, below)
}

/** The options of a layer that is open already, which must be named all, over the nodes that it has. */
export const openLayerOptions = (
  { set, format, isLimited }: { readonly set: number; readonly format: DiskLayer['format']; readonly isLimited: boolean },
  below: string | null,
): Record<string, unknown> => nodeOver({ set, format, isWritten: true }, isLimited ? limitName(set) : fileName(set), below)

const nodeOver = (
  { set, format, isWritten }: { readonly set: number; readonly format: DiskLayer['format']; readonly isWritten: boolean },
  file: object | string,
  below: object | string | null,
): Record<string, unknown> => ({
  driver: format,
  'node-name': layerName(set),
  'read-only': !isWritten,
  ...(isWritten ? { discard: 'unmap', 'detect-zeroes': 'unmap' } : {}),
  ...(format === 'qcow2' ? { backing: below } : {}),
  file,
})

/** What keeps a layer's file from growing. */
export const limitName = (set: number): string => `limit${set}`

const fileName = (set: number): string => `file${set}`

function layersOf(disk: DiskSpec): readonly DiskLayer[] {
  const layers = [disk, ...(disk.backing ?? [])]
  if (layers.length > MAX_LAYERS) {
    throw new AppError('not_supported', `The disk ${disk.role} has ${layers.length} layers, this hypervisor takes at most ${MAX_LAYERS}`)
  }
  if (layers.slice(0, -1).some(({ format }) => format === 'raw')) {
    throw new AppError('internal_error', `The disk ${disk.role} has a raw layer with something below it, which it would hide`)
  }
  return layers
}

/** True for the set of a disk's layer; the others are for other things. */
export const isLayerSet = (set: number): boolean => set >= FIRST_SET
