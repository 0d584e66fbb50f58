/** What a running QEMU says of its disks. It may have been taken over by its guest, so of what it says only names and numbers are taken. */
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../../lib/step.ts'
import type { DiskRole } from '../vm-spec.ts'
import { FIRST_GIVEN, isLayerSet, layerName } from './disk-nodes.ts'
import { type Qmp, QmpError } from './qmp.ts'

const DEEPEST = 100

export interface ShownDisk {
  readonly format: 'raw' | 'qcow2'
  /** The sets of its layers, top first. */
  readonly sets: readonly [number, ...number[]]
  readonly bytes: number
}

/** What the file of a layer is called. */
export async function layerFileOf(qmp: Qmp, set: number, step: Step): Promise<string> {
  const name = (await setsOf(qmp, step)).get(set)
  if (name !== undefined) return name
  throw new AppError('internal_error', `QEMU does not tell which file its descriptor set ${set} is`)
}

/** What the disk of `role` stands on now. */
export async function diskOf(qmp: Qmp, role: DiskRole, step: Step): Promise<ShownDisk> {
  const disk = await findDisk(qmp, role, step)
  if (disk !== undefined) return disk
  throw new AppError('not_found', `The VM has no disk ${role}`)
}

/** False for a slot that is empty, too. */
export const hasDisk = async (qmp: Qmp, role: DiskRole, step: Step): Promise<boolean> => (await findDisk(qmp, role, step)) !== undefined

async function findDisk(qmp: Qmp, role: DiskRole, step: Step): Promise<ShownDisk | undefined> {
  for (const disk of await listOf(qmp, 'query-block', undefined, step)) {
    // A device's own name on microvm, its path on q35, where the disk is a part of the device.
    if (!String(disk.qdev).split('/').includes(role) || !isRecord(disk.inserted)) continue
    const format = disk.inserted.drv === 'raw' ? 'raw' : 'qcow2'
    const { image } = disk.inserted
    const [top, ...below] = setsBelow(image)
    const bytes = isRecord(image) ? Number(image['virtual-size']) : Number.NaN
    if (top !== undefined) return { format, sets: [top, ...below], bytes }
  }
  return undefined
}

/** A layer's file is named plainly, or in a document that tells of all below it as well. */
function setsBelow(image: unknown): number[] {
  const sets: number[] = []
  for (let at = image; isRecord(at) && sets.length < DEEPEST; at = at['backing-image']) {
    const set = /^\/dev\/fdset\/(\d+)$/.exec(fileNameIn(String(at.filename)))?.[1]
    if (set === undefined) return []
    sets.push(Number(set))
  }
  return sets
}

function fileNameIn(name: string): string {
  if (!name.startsWith('json:')) return name
  let node: unknown = JSON.parse(name.slice('json:'.length))
  // The layer itself, perhaps what limits it, the file.
  for (let depth = 0; depth < 3 && isRecord(node) && isRecord(node.file); depth++) node = node.file
  return isRecord(node) ? String(node.filename) : ''
}

export const hasNode = async (qmp: Qmp, name: string, step: Step): Promise<boolean> =>
  (await nodesOf(qmp, step)).some((node) => node['node-name'] === name)

/** The devices of all disks that are there, as QEMU calls them; empty slots are left out. */
export async function diskDevices(qmp: Qmp, step: Step): Promise<string[]> {
  const disks = await listOf(qmp, 'query-block', undefined, step)
  return disks.flatMap(({ qdev, inserted }) => (typeof qdev === 'string' && isRecord(inserted) && inserted.drv !== 'null-co' ? [qdev] : []))
}

/** A set that QEMU has not. */
export async function freeSet(qmp: Qmp, step: Step): Promise<number> {
  return Math.max(FIRST_GIVEN - 1, ...(await setsOf(qmp, step)).keys()) + 1
}

/**
 * Takes away the layers that no disk stands on, but those in `kept`: nodes that a daemon prepared and did not live to use, and what a
 * flattening has left behind. Their files are closed, so that the space of one that was removed is free.
 */
export async function dropUnused(qmp: Qmp, kept: ReadonlySet<number>, step: Step): Promise<void> {
  const keptNodes = new Set([...kept].map(layerName))
  // A node in use is not let go of, and one becomes unused with the last that stands on it: until nothing more goes.
  for (let hasDropped = true; hasDropped; ) {
    hasDropped = false
    for (const { 'node-name': name } of await nodesOf(qmp, step)) {
      if (typeof name !== 'string' || !/^(block|layer)\d+$/.test(name) || keptNodes.has(name)) continue
      hasDropped = (await isDone(qmp.execute('blockdev-del', { 'node-name': name }, step))) || hasDropped
    }
  }
  const files = (await nodesOf(qmp, step)).map(({ file }) => String(file)).join('\n')
  const used = new Set([...files.matchAll(/\/dev\/fdset\/(\d+)/g)].map(([, set]) => Number(set)))
  for (const set of (await setsOf(qmp, step)).keys()) {
    if (isLayerSet(set) && !used.has(set)) await isDone(qmp.execute('remove-fd', { 'fdset-id': set }, step))
  }
}

const nodesOf = (qmp: Qmp, step: Step): Promise<Row[]> => listOf(qmp, 'query-named-block-nodes', { flat: true }, step)

/** All sets, each with what its file is called as far as that is known. */
async function setsOf(qmp: Qmp, step: Step): Promise<Map<number, string | undefined>> {
  const sets = new Map<number, string | undefined>()
  for (const { 'fdset-id': id, fds } of await listOf(qmp, 'query-fdsets', undefined, step)) {
    const [first] = Array.isArray(fds) ? fds.filter(isRecord) : []
    const name = first?.opaque
    if (typeof id === 'number' && Number.isSafeInteger(id)) sets.set(id, typeof name === 'string' && name !== '' ? name : undefined)
  }
  return sets
}

/** False when QEMU says no. */
async function isDone(asked: Promise<unknown>): Promise<boolean> {
  try {
    await asked
    return true
  } catch (error) {
    if (error instanceof QmpError) return false
    throw error
  }
}

type Row = Readonly<Record<string, unknown>>

async function listOf(qmp: Qmp, command: string, args: Row | undefined, step: Step): Promise<Row[]> {
  const answer = await qmp.execute(command, args, step)
  return Array.isArray(answer) ? answer.filter(isRecord) : []
}

const isRecord = (value: unknown): value is Row => typeof value === 'object' && value !== null
