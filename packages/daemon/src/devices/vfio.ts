/**
 * A PCI function goes from the driver that it has to vfio-pci, which lets a VMM drive it, and back. What each is given back to is on
 * record before it is taken, so that a daemon that finds the record can do it.
 */
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { isThere, readAttribute, type Sysfs } from '../host/sysfs.ts'
import type { Step } from '../lib/step.ts'
import type { Binding } from '../store/devices.ts'
import { type PciFunction, pciDir, readPci, VFIO } from './pci.ts'

type Found = Pick<Binding, 'driver' | 'override'>

/** What is to be known of a function to give it back later. */
export async function placeOf(sysfs: Sysfs, { address, driver }: Pick<PciFunction, 'address' | 'driver'>): Promise<Found> {
  const override = await readAttribute(overrideOf(sysfs, address))
  return {
    ...(driver === undefined ? {} : { driver }),
    // As the kernel writes that there is none.
    ...(override === undefined || override === '(null)' ? {} : { override }),
  }
}

/** vfio-pci drives it when this resolves. Repeat is harmless. */
export async function takeFunction(sysfs: Sysfs, address: string, step: Step): Promise<void> {
  const now = await readPci(sysfs, address)
  if (now === undefined) throw new AppError('conflict', `The device ${address} is gone from the host`)
  if (now.driver === VFIO) return
  await assertVfio(sysfs, step)
  const dir = pciDir(sysfs, address)
  await sysfs.write(overrideOf(sysfs, address), VFIO, step)
  if (now.driver !== undefined) await sysfs.write(path.join(dir, 'driver/unbind'), address, step)
  await sysfs.write(path.join(sysfs.root, 'bus/pci/drivers_probe'), address, step)
  const after = await readPci(sysfs, address)
  if (after?.driver === VFIO) return
  throw new AppError('conflict', `The device ${address} could not be given to ${VFIO}: it has ${after?.driver ?? 'no driver'}`, {
    hint: 'The kernel says why: dmesg on the host',
  })
}

/**
 * It has the driver that it had. No VMM may have it any more: the kernel waits for that without an end. A driver that does not take it
 * back is told as a sentence; it can be mended by hand then, and by nothing else. Repeat is harmless.
 */
export async function giveFunctionBack(sysfs: Sysfs, { address, driver, override }: Binding, step: Step): Promise<string | undefined> {
  const now = await readPci(sysfs, address)
  if (now === undefined || driver === VFIO) return undefined
  await sysfs.write(overrideOf(sysfs, address), override ?? '\n', step)
  if (now.driver === VFIO) await sysfs.write(path.join(pciDir(sysfs, address), 'driver/unbind'), address, step)
  // Who had taken its driver away does not want one back.
  if (driver === undefined || now.driver === driver) return undefined
  const ask = (file: string): Promise<void> =>
    sysfs.write(path.join(sysfs.root, 'bus/pci', file), address, step).catch((error: unknown) => {
      if (step.signal.aborted) throw error
    })
  await ask('drivers_probe')
  const after = await readPci(sysfs, address)
  if (after?.driver === driver) return undefined
  await ask(`drivers/${driver}/bind`)
  const last = await readPci(sysfs, address)
  return last?.driver === driver ? undefined : `the driver ${driver} does not take ${address} back: it has ${last?.driver ?? 'none'}`
}

const groupNode = ({ dev }: Pick<Sysfs, 'dev'>, group: number): string => path.join(dev, 'vfio', `${group}`)

/** The VMM's user may open the group's node, and no one else. */
export async function ownGroup(sysfs: Sysfs, group: number, user: { readonly uid: number; readonly gid: number }): Promise<void> {
  const node = groupNode(sysfs, group)
  if (!(await isThere(node))) {
    throw new AppError('dependency_missing', `There is no ${node}: the kernel offers the IOMMU group ${group} to no one`, {
      hint: 'See what the host lacks with: dormouse doctor',
    })
  }
  await sysfs.own(node, user)
}

/** Root's again, where it is still there. */
export async function disownGroup(sysfs: Sysfs, group: number): Promise<void> {
  const node = groupNode(sysfs, group)
  if (await isThere(node)) await sysfs.own(node, { uid: 0, gid: 0 })
}

async function assertVfio(sysfs: Sysfs, step: Step): Promise<void> {
  const dir = path.join(sysfs.root, 'bus/pci/drivers', VFIO)
  if (await isThere(dir)) return
  const cause = await sysfs.loadModule(VFIO, step).catch((error: unknown) => error)
  if (await isThere(dir)) return
  throw new AppError('dependency_missing', `The host's kernel has no ${VFIO}: no device can be given to an instance`, {
    hint: 'See what the host lacks with: dormouse doctor',
    cause,
  })
}

const overrideOf = (sysfs: Sysfs, address: string): string => path.join(pciDir(sysfs, address), 'driver_override')
