import type { AvailableDevice, Device as Shown } from '@dormouse/api/devices.ts'
import type { AvailableFunction, SeenDevice } from '../../devices/devices.ts'
import type { Handlers } from '../handler.ts'
import { type PlaceOf, pageOf } from '../list-page.ts'
import type { ServerUses } from '../uses.ts'

type DeviceRoutes = Pick<Handlers, 'listDevices' | 'createDevice' | 'listAvailableDevices' | 'getDevice' | 'deleteDevice'>

const PLACE: PlaceOf<Shown> = { key: ({ id }) => id, createdAt: ({ created_at }) => created_at }

// They were there before anyone looked: by address.
const PLACE_IN_HOST: PlaceOf<AvailableDevice> = {
  key: ({ pci_address }) => pci_address,
  createdAt: () => new Date(0).toISOString(),
  isUpwards: true,
}

export function deviceRoutes({ devices }: Pick<ServerUses, 'devices'>): DeviceRoutes {
  return {
    listDevices: async ({ query, setHeader }) => {
      const { tags, limit, cursor } = query
      const all = (await devices.list(tags === undefined ? {} : { tags })).map(presentDevice)
      const page = pageOf(all, PLACE, { limit, cursor })
      if (page.nextCursor !== undefined) setHeader('x-next-cursor', page.nextCursor)
      return [...page.items]
    },

    createDevice: async ({ body: { pci_address: pciAddress, ...request } }) =>
      presentDevice(await devices.register({ pciAddress, ...request })),

    listAvailableDevices: async ({ query, setHeader }) => {
      const all = (await devices.listAvailable()).map(presentAvailable)
      const page = pageOf(all, PLACE_IN_HOST, query)
      if (page.nextCursor !== undefined) setHeader('x-next-cursor', page.nextCursor)
      return [...page.items]
    },

    getDevice: async ({ params }) => presentDevice(await devices.get(params.id)),

    deleteDevice: async ({ params }) => {
      await devices.delete(params.id)
      return undefined
    },
  }
}

const presentDevice = (device: SeenDevice): Shown => ({
  id: device.id,
  name: device.name,
  type: device.type,
  pci_address: device.address,
  vendor_id: device.vendorId,
  device_id: device.deviceId,
  iommu_group: device.iommuGroup,
  bound_to_vfio: device.isBoundToVfio,
  attached_to: device.holder?.instanceId ?? null,
  created_at: new Date(device.createdAtMs).toISOString(),
  ...(Object.keys(device.tags).length > 0 && { tags: device.tags }),
})

const presentAvailable = ({
  address,
  vendorId,
  deviceId,
  iommuGroup,
  driver,
  vendorName,
  deviceName,
}: AvailableFunction): AvailableDevice => ({
  pci_address: address,
  vendor_id: vendorId,
  device_id: deviceId,
  iommu_group: iommuGroup,
  current_driver: driver ?? null,
  ...(vendorName !== undefined && { vendor_name: vendorName }),
  ...(deviceName !== undefined && { device_name: deviceName }),
})
