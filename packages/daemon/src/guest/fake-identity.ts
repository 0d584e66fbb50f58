import type { FieldReader } from './fields.ts'
import { TAG } from './wire.ts'

/** Who a fake guest is, as it was told last. */
export interface FakeIdentity {
  readonly hostname?: string
  readonly machineId?: string
  readonly mac?: string
  readonly address?: string
}

/** What a "go" or a wake says of it. */
export function fakeIdentityOf(fields: FieldReader): FakeIdentity {
  const hostname = fields.text(TAG.HOSTNAME)
  const machineId = fields.text(TAG.MACHINE_ID)
  const mac = fields.bytes(TAG.MAC)
  const address = fields.bytes(TAG.ADDRESS4)
  return {
    ...(hostname !== undefined && { hostname }),
    ...(machineId !== undefined && { machineId }),
    ...(mac && { mac: [...mac].map((byte) => byte.toString(16).padStart(2, '0')).join(':') }),
    ...(address && { address: address.join('.') }),
  }
}
