/**
 * Parts of GPUs, as their drivers offer them in sysfs: in one of two ways, which look the same from above.
 *
 *   mdev   a function of `class/mdev_bus` lists types, each with how many more there can be; a mediated device is made under a UUID
 *   vf     a virtual function of an NVIDIA GPU becomes one of the types that it lists, and is given to the VM itself
 */
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { isThere, linkedName, namesIn, readAttribute, type Sysfs } from '../host/sysfs.ts'
import type { Step } from '../lib/step.ts'
import type { Vgpu } from '../store/devices.ts'
import { parsePciAddress, pciDir } from './pci.ts'

export interface VgpuType {
  readonly id: string
  /** As people call it: `L40S-1Q`. */
  readonly profile: string
  /** 0: the driver does not say. */
  readonly framebufferMb: number
  /** How many more of them there can be now. */
  readonly available: number
}

export interface VgpuParent {
  readonly address: string
  readonly kind: 'mdev' | 'vf'
  readonly types: readonly VgpuType[]
  /** How many there are, of whatever type and whoever made them. */
  readonly used: number
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i

/** Every function that can be divided, by address. */
export async function listVgpuParents(sysfs: Sysfs): Promise<VgpuParent[]> {
  const mdevs = (await namesIn(path.join(sysfs.root, 'class/mdev_bus'))).filter((name) => parsePciAddress(name) === name)
  const functions = (await namesIn(path.join(sysfs.root, 'bus/pci/devices'))).filter(
    (name) => parsePciAddress(name) === name && !mdevs.includes(name),
  )
  const [divided, virtual] = await Promise.all([
    Promise.all(mdevs.map((address) => readMdevParent(sysfs, address))),
    Promise.all(functions.map((address) => readVf(sysfs, address))),
  ])
  return [...divided, ...virtual.filter((one) => one !== undefined)].sort((a, b) => (a.address < b.address ? -1 : 1))
}

async function readMdevParent(sysfs: Sysfs, address: string): Promise<VgpuParent> {
  const dir = path.join(sysfs.root, 'class/mdev_bus', address)
  const typesDir = path.join(dir, 'mdev_supported_types')
  const types = await Promise.all(
    (await namesIn(typesDir)).map(async (id): Promise<VgpuType> => {
      const [name, description, available] = await Promise.all(
        ['name', 'description', 'available_instances'].map((file) => readAttribute(path.join(typesDir, id, file))),
      )
      return { id, ...profileOf(name ?? id, description), available: countOf(available) }
    }),
  )
  return { address, kind: 'mdev', types, used: (await namesIn(dir)).filter((name) => UUID.test(name)).length }
}

async function readVf(sysfs: Sysfs, address: string): Promise<VgpuParent | undefined> {
  const dir = path.join(pciDir(sysfs, address), 'nvidia')
  const current = await readAttribute(path.join(dir, 'current_vgpu_type'))
  if (current === undefined) return undefined
  // A line for each: `1148 : NVIDIA L40S-1Q`. The first is a heading.
  const lines = ((await readAttribute(path.join(dir, 'creatable_vgpu_types'))) ?? '').split('\n')
  const types = lines.flatMap((line): VgpuType[] => {
    const match = /^(\d+)\s*:\s*(\S.*)$/.exec(line.trim())
    return match === null ? [] : [{ id: String(match[1]), ...profileOf(String(match[2])), available: current === '0' ? 1 : 0 }]
  })
  return { address, kind: 'vf', types, used: current === '0' ? 0 : 1 }
}

/** Does anyone have a part of it, or it as a part of another? */
export async function hasParts(sysfs: Sysfs, address: string): Promise<boolean> {
  const names = await namesIn(pciDir(sysfs, address))
  return names.some((name) => UUID.test(name)) || ((await readAttribute(currentTypeOf(sysfs, address))) ?? '0') !== '0'
}

const countOf = (text: string | undefined): number => (text !== undefined && /^\d{1,6}$/.test(text) ? Number(text) : 0)

/** `NVIDIA L40S-1Q` and `framebuffer=1024M`; without the latter its name says how many GiB. Pure. */
function profileOf(name: string, description = ''): Pick<VgpuType, 'profile' | 'framebufferMb'> {
  const profile = name.replace(/^(?:(?:NVIDIA|GRID)\s+)+/, '')
  const told = /framebuffer=(\d+)M/.exec(description)?.[1]
  const named = /-(\d+)[ABCQ](?:ME)?$/.exec(profile)?.[1]
  return { profile, framebufferMb: told !== undefined ? Number(told) : named !== undefined ? Number(named) * 1024 : 0 }
}

/** Is it there? Its record may have been written for one that was never made. */
async function isMade(sysfs: Sysfs, { uuid, parent, typeId }: Vgpu): Promise<boolean> {
  if (uuid !== undefined) return isThere(mdevDir(sysfs, uuid))
  return (await readAttribute(currentTypeOf(sysfs, parent))) === typeId
}

/** Its IOMMU group when this resolves. */
export async function makeVgpu(sysfs: Sysfs, vgpu: Vgpu, step: Step): Promise<number> {
  const { uuid, parent, typeId, profile } = vgpu
  try {
    if (uuid === undefined) await sysfs.write(currentTypeOf(sysfs, parent), typeId, step)
    else await sysfs.write(path.join(sysfs.root, 'class/mdev_bus', parent, 'mdev_supported_types', typeId, 'create'), uuid, step)
  } catch (cause) {
    if (step.signal.aborted) throw cause
    // Someone else was quicker, or the driver counts otherwise than it says.
    throw new AppError('insufficient_resources', `The GPU ${parent} does not give a ${profile}`, {
      hint: 'See what is left of each profile: dormouse df --json; the kernel may say more: dmesg on the host',
      cause,
    })
  }
  const dir = uuid === undefined ? pciDir(sysfs, parent) : mdevDir(sysfs, uuid)
  const group = await linkedName(path.join(dir, 'iommu_group'))
  if ((await isMade(sysfs, vgpu)) && group !== undefined && /^\d{1,9}$/.test(group)) return Number(group)
  throw new AppError('internal_error', `The ${profile} that the GPU ${parent} was asked for is not there`)
}

/** Repeat is harmless, also of one that was never made. No VMM may have it any more. */
export async function removeVgpu(sysfs: Sysfs, vgpu: Vgpu, step: Step): Promise<void> {
  if (!(await isMade(sysfs, vgpu))) return
  if (vgpu.uuid === undefined) await sysfs.write(currentTypeOf(sysfs, vgpu.parent), '0', step)
  else await sysfs.write(path.join(mdevDir(sysfs, vgpu.uuid), 'remove'), '1', step)
  if (await isMade(sysfs, vgpu)) throw new AppError('internal_error', `The ${vgpu.profile} of the GPU ${vgpu.parent} does not go away`)
}

const mdevDir = ({ root }: Pick<Sysfs, 'root'>, uuid: string): string => path.join(root, 'bus/mdev/devices', uuid)
const currentTypeOf = (sysfs: Sysfs, address: string): string => path.join(pciDir(sysfs, address), 'nvidia/current_vgpu_type')
