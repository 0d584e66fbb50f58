/** Devices of the host that can be given to an instance. */
import { type Static, Type } from 'typebox'
import { DateTime, nullable, Tags } from './names.ts'

const address = {
  pci_address: Type.String({ description: 'Domain, bus, slot and function, such as 0000:65:00.0' }),
  vendor_id: Type.String({ description: 'Four hexadecimal digits' }),
  device_id: Type.String({ description: 'Four hexadecimal digits' }),
  iommu_group: Type.Integer({ description: 'What is in one group goes to one instance' }),
}

export const Device = Type.Object(
  {
    id: Type.String({ description: 'Made by the daemon, 24 characters of the form of a CUID2' }),
    name: Type.Optional(Type.String()),
    type: Type.Enum(['gpu', 'pci']),
    ...address,
    bound_to_vfio: Type.Boolean({ description: 'Its own driver has let go of it: an instance that has it runs, or the host keeps it so' }),
    attached_to: Type.Optional(nullable(Type.String({ description: 'Id of the instance that has it' }))),
    created_at: DateTime,
    tags: Type.Optional(Type.Record(Type.String(), Type.String())),
  },
  { $id: 'Device' },
)
export type Device = Static<typeof Device>

export const AvailableDevice = Type.Object(
  {
    ...address,
    vendor_name: Type.Optional(Type.String({ description: 'Where the host has pci.ids' })),
    device_name: Type.Optional(Type.String({ description: 'Where the host has pci.ids' })),
    current_driver: Type.Optional(nullable(Type.String())),
  },
  { $id: 'AvailableDevice' },
)
export type AvailableDevice = Static<typeof AvailableDevice>

export const CreateDeviceRequest = Type.Object(
  {
    pci_address: Type.String({ minLength: 1, maxLength: 32, description: 'Such as 0000:65:00.0, or 65:00.0' }),
    name: Type.Optional(
      Type.String({
        maxLength: 128,
        description:
          'Of its own: letters, digits, dots, dashes and underscores, two at least, beginning with a letter or a digit; made of the address when left out, such as pci-0000-65-00-0',
      }),
    ),
    tags: Type.Optional(Tags),
  },
  { $id: 'CreateDeviceRequest', additionalProperties: false },
)
