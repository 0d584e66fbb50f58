/** What a host must offer for its devices to be given to instances. Nothing is changed: a module that is not loaded is looked for. */
import { readFile, stat } from 'node:fs/promises'
import path from 'node:path'
import { readHostFacts } from '../host/host-facts.ts'
import { hostSysfs, isThere, namesIn, type Sysfs } from '../host/sysfs.ts'
import type { Finding } from './doctor.ts'

const WHAT = 'devices'
const CAP_SYS_RESOURCE = 24n

export const checkDevices = (): Promise<Finding[]> => examineDevices(hostSysfs, `/lib/modules/${readHostFacts().kernel}`)

/** A host that has none to give is a good host; one that offers half of it is told what is missing. */
export async function examineDevices(sysfs: Sysfs, modulesDir: string): Promise<Finding[]> {
  const groups = (await namesIn(path.join(sysfs.root, 'kernel/iommu_groups'))).length
  if (groups === 0) {
    return [
      {
        what: WHAT,
        state: 'good',
        says: 'none of the host’s can be given to instances: no IOMMU is there, or it is off',
        mend: 'Where you want to: turn VT-d or AMD-Vi on in the firmware, boot the host with intel_iommu=on (AMD needs nothing)',
      },
    ]
  }
  const missing = [await vfio(sysfs, modulesDir), await node(sysfs), await rights(sysfs)].flat()
  return missing.length > 0
    ? missing
    : [
        {
          what: WHAT,
          state: 'good',
          says: `vfio-pci, and devices in ${groups} IOMMU ${groups === 1 ? 'group' : 'groups'}: dormouse device available lists what can be given`,
        },
      ]
}

async function vfio(sysfs: Sysfs, modulesDir: string): Promise<Finding[]> {
  if (await isThere(path.join(sysfs.root, 'bus/pci/drivers/vfio-pci'))) return []
  for (const list of ['modules.dep', 'modules.builtin']) {
    const text = await readFile(path.join(modulesDir, list), 'utf8').catch(() => '')
    if (/(^|\/)vfio[-_]pci\.ko/m.test(text)) return []
  }
  return [
    { what: WHAT, state: 'poor', says: 'the kernel has no vfio-pci: no device can be given', mend: 'Boot a kernel with CONFIG_VFIO_PCI' },
  ]
}

async function node({ dev }: Sysfs): Promise<Finding[]> {
  const file = path.join(dev, 'vfio/vfio')
  const found = await stat(file).catch(() => undefined)
  // It comes with the module.
  if (found === undefined || (found.mode & 0o006) === 0o006) return []
  return [
    {
      what: WHAT,
      state: 'poor',
      says: `only some may open ${file}, and each VMM is a user of its own`,
      mend: `As udev has it by default: chmod 0666 ${file}; it gives no one a device`,
    },
  ]
}

async function rights({ proc }: Sysfs): Promise<Finding[]> {
  const status = await readFile(path.join(proc, 'self/status'), 'utf8').catch(() => '')
  const uid = /^Uid:\t\d+\t(\d+)/m.exec(status)?.[1]
  const capabilities = BigInt(`0x${/^CapEff:\t([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`)
  if (uid !== '0') {
    return [
      { what: WHAT, state: 'poor', says: 'drivers are exchanged by root alone: no device can be given', mend: 'Run the daemon as root' },
    ]
  }
  if ((capabilities & (1n << CAP_SYS_RESOURCE)) !== 0n) return []
  return [
    {
      what: WHAT,
      state: 'poor',
      says: 'root may not let a VM lock its memory, which a device reaches by itself',
      mend: 'Give the daemon CAP_SYS_RESOURCE',
    },
  ]
}
