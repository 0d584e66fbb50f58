/** What only some drivers can do is refused before anything is made. */
import { AppError } from '@dormouse/api/errors.ts'
import type { Hypervisor } from '../hypervisors/hypervisor.ts'
import type { Network } from '../network/network.ts'
import type { Instance } from './instance.ts'
import { checkDiskRate, checkHotplug, type Limits } from './limits.ts'

type Driver = Pick<Hypervisor, 'name' | 'capabilities'>

/** A guest without a network needs none. */
export function assertNetworked({ name, networks }: Pick<Hypervisor, 'name' | 'networks'>, { kind }: Pick<Network, 'kind'>): void {
  if (networks === undefined || networks.has(kind === 'bridged' ? 'tap' : 'user')) return
  if (networks.size === 0) {
    throw new AppError('not_supported', `The hypervisor ${name} cannot put a guest on a network`, {
      hint: 'Make the instance without one, with network.enabled false, or use the hypervisor qemu',
    })
  }
  throw new AppError('not_supported', `The hypervisor ${name} cannot put a guest on this daemon's network: it needs a bridge`, {
    hint: 'Start the daemon as root with DORMOUSE_NETWORK=bridged, or make the instance without a network, with network.enabled false',
  })
}

export function assertVcpus({ name, mostVcpus = Number.POSITIVE_INFINITY }: Pick<Hypervisor, 'name' | 'mostVcpus'>, vcpus: number): void {
  if (vcpus <= mostVcpus) return
  throw new AppError('not_supported', `The hypervisor ${name} gives a VM at most ${mostVcpus} processors, not ${vcpus}`, {
    hint: 'Ask for fewer, or use the hypervisor qemu',
  })
}

export function assertHotplug({ name, capabilities }: Driver, hotplugBytes: number, memoryBytes: number, limits: Limits): void {
  checkHotplug(hotplugBytes, memoryBytes, limits)
  if (hotplugBytes === 0 || capabilities.has('memory_hotplug')) return
  throw new AppError('not_supported', `The hypervisor ${name} cannot add memory to a VM that runs (no hotplug-memory)`, {
    hint: 'Use the hypervisor qemu, or give it a larger size',
  })
}

export function assertDiskRate({ name, capabilities }: Driver, bytesPerSecond: number): void {
  checkDiskRate(bytesPerSecond)
  if (capabilities.has('disk_limit')) return
  throw new AppError('not_supported', `The hypervisor ${name} cannot limit how much its disks move`, {
    hint: 'Leave out disk_io_bps, or use the hypervisor qemu',
  })
}

/** Of one that has a VM: a start or a restore gives its disks the rate that is on record then. */
export function assertDiskRateMoves({ name, capabilities }: Driver, instance: Pick<Instance, 'name' | 'state'>): void {
  if (capabilities.has('disk_limit_live')) return
  throw new AppError(
    'invalid_state',
    `The hypervisor ${name} cannot change how much the disks of a VM move: ${instance.name} is ${instance.state}, and would have to be Stopped or in Standby`,
    { hint: `Stop it first: dormouse stop ${instance.name}` },
  )
}

export function assertFreshBoot({ name, capabilities }: Driver): void {
  if (capabilities.has('fresh_boot')) return
  throw new AppError('not_supported', `The hypervisor ${name} cannot boot an instance from the start: its VMs wake from golden boots`, {
    hint: 'Leave out fresh_boot (DORMOUSE_GOLDEN=false asks for it for all instances), or use the hypervisor qemu',
  })
}

export function assertDevices({ name, capabilities }: Driver): void {
  if (capabilities.has('gpu')) return
  throw new AppError('not_supported', `The hypervisor ${name} cannot be given devices of the host (no gpu-passthrough)`, {
    hint: 'Use the hypervisor qemu',
  })
}

/**
 * What a reader of a volume may take of the host's disk for itself: what is put over it, or where a VMM knows no layers a copy of all of it.
 */
export const readerBytes = (
  { capabilities }: Pick<Hypervisor, 'capabilities'>,
  { bytes, overlayBytes = 0 }: { readonly bytes: number; readonly overlayBytes?: number },
): number => (capabilities.has('disk_layers') ? overlayBytes : bytes)

/**
 * Throws `not_supported` for what an instance has and a VM of this driver could not: it was made for another's. Its memory is no part of that;
 * it is never another's.
 */
export function assertTakes(
  driver: Driver & Pick<Hypervisor, 'networks' | 'volumeSlots' | 'mostVcpus'>,
  instance: Pick<Instance, 'vcpus' | 'memoryBytes' | 'hotplugBytes' | 'diskIoBps' | 'freshBoot' | 'devices' | 'gpu' | 'volumes'> & {
    readonly network: Pick<Instance['network'], 'enabled'>
  },
  { limits, network, freshBoot }: { limits: Limits; network: Pick<Network, 'kind'>; freshBoot: boolean },
): void {
  const { vcpus, hotplugBytes, memoryBytes, diskIoBps, devices = [], gpu, volumes } = instance
  if (instance.network.enabled) assertNetworked(driver, network)
  assertVcpus(driver, vcpus)
  if (hotplugBytes > 0) assertHotplug(driver, hotplugBytes, memoryBytes, limits)
  if (diskIoBps !== undefined) assertDiskRate(driver, diskIoBps)
  if (instance.freshBoot === true || freshBoot) assertFreshBoot(driver)
  if (devices.length > 0 || gpu !== undefined) assertDevices(driver)
  const slots = volumes.map(({ slot }) => slot)
  if (slots.some((slot) => slot >= driver.volumeSlots)) {
    throw new AppError(
      'not_supported',
      `The hypervisor ${driver.name} has no place for the volumes of the snapshot: it takes ${driver.volumeSlots}`,
      { hint: 'Go on with the hypervisor that it was taken with, or with qemu' },
    )
  }
}
