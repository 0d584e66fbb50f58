import { Type } from 'typebox'
import { CreateVolumeRequest, UpdateVolumeRequest, Volume, VolumeFromArchiveQuery } from '../volumes.ts'
import { listQuery } from './params.ts'
import type { Route } from './route.ts'

const volumeId = Type.Object({ id: Type.String({ minLength: 1, maxLength: 128, description: 'Id, or a name that only one has' }) })

export const volumeRoutes = {
  listVolumes: {
    tag: 'volumes',
    summary: 'List volumes, newest first',
    scope: 'volume:read',
    query: listQuery,
    status: 200,
    answer: Type.Array(Volume),
  },
  createVolume: {
    tag: 'volumes',
    summary: 'Create an empty volume',
    scope: 'volume:write',
    body: CreateVolumeRequest,
    status: 201,
    answer: Volume,
    errors: ['already_exists', 'insufficient_resources', 'invalid_size'],
  },
  createVolumeFromArchive: {
    tag: 'volumes',
    summary: 'Create a volume and fill it from a tar, compressed or not, sent as the body',
    scope: 'volume:write',
    query: VolumeFromArchiveQuery,
    rawBody: ['application/gzip', 'application/octet-stream', 'application/x-tar'],
    status: 201,
    answer: Volume,
    errors: ['invalid_archive', 'archive_too_large', 'already_exists', 'insufficient_resources', 'invalid_size'],
  },
  getVolume: {
    tag: 'volumes',
    summary: 'Look at a volume',
    scope: 'volume:read',
    params: volumeId,
    status: 200,
    answer: Volume,
    errors: ['not_found', 'ambiguous'],
  },
  updateVolume: {
    tag: 'volumes',
    summary: 'Make a volume larger',
    scope: 'volume:write',
    params: volumeId,
    body: UpdateVolumeRequest,
    status: 200,
    answer: Volume,
    errors: ['not_found', 'ambiguous', 'invalid_size', 'conflict', 'invalid_state', 'insufficient_resources'],
  },
  deleteVolume: {
    tag: 'volumes',
    summary: 'Delete a volume that no instance has',
    scope: 'volume:delete',
    params: volumeId,
    status: 204,
    errors: ['not_found', 'ambiguous', 'conflict'],
  },
} as const satisfies Readonly<Record<string, Route>>
