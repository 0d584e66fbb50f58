import { Type } from 'typebox'
import { AvailableDevice, CreateDeviceRequest, Device } from '../devices.ts'
import { listQuery, page, strict } from './params.ts'
import type { Route } from './route.ts'

const deviceId = Type.Object({ id: Type.String({ minLength: 1, maxLength: 128, description: 'Id or name' }) })

export const deviceRoutes = {
  listDevices: {
    tag: 'devices',
    summary: 'List registered devices, newest first',
    scope: 'device:read',
    query: listQuery,
    status: 200,
    answer: Type.Array(Device),
  },
  createDevice: {
    tag: 'devices',
    summary: 'Register a device of the host',
    scope: 'device:write',
    body: CreateDeviceRequest,
    status: 201,
    answer: Device,
    errors: ['invalid_name', 'invalid_pci_address', 'device_not_found', 'conflict'],
  },
  listAvailableDevices: {
    tag: 'devices',
    summary: 'List devices of the host that could be registered',
    scope: 'device:read',
    query: Type.Object(page, strict),
    status: 200,
    answer: Type.Array(AvailableDevice),
  },
  getDevice: {
    tag: 'devices',
    summary: 'Look at a device',
    scope: 'device:read',
    params: deviceId,
    status: 200,
    answer: Device,
    errors: ['not_found'],
  },
  deleteDevice: {
    tag: 'devices',
    summary: 'Unregister a device',
    scope: 'device:delete',
    params: deviceId,
    status: 204,
    errors: ['not_found', 'in_use'],
  },
} as const satisfies Readonly<Record<string, Route>>
