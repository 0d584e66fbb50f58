/** Devices of the host that can be given to an instance. */
import { type Static, Type } from 'typebox'
import { DateTime, nullable, Tags } from './names.ts'

const address = {
  pci_address: Type.String(),
  vendor_id: Type.String(),
  device_id: Type.String(),
  iommu_group: Type.Integer(),
}

export const Device = Type.Object(
  {
    id: Type.String(),
    name: Type.Optional(Type.String()),
    type: Type.Enum(['gpu', 'pci']),
    ...address,
    bound_to_vfio: Type.Boolean(),
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
    vendor_name: Type.Optional(Type.String()),
    device_name: Type.Optional(Type.String()),
    current_driver: Type.Optional(nullable(Type.String())),
  },
  { $id: 'AvailableDevice' },
)

export const CreateDeviceRequest = Type.Object(
  {
    pci_address: Type.String({ minLength: 1, maxLength: 32 }),
    name: Type.Optional(Type.String({ pattern: '^[a-zA-Z0-9][a-zA-Z0-9_.-]+$', maxLength: 128 })),
    tags: Type.Optional(Tags),
  },
  { $id: 'CreateDeviceRequest', additionalProperties: false },
)
