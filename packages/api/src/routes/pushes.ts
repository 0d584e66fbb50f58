import { Type } from 'typebox'
import { Push, PushImageRequest } from '../images.ts'
import { page, plainId, strict } from './params.ts'
import type { Route } from './route.ts'

export const pushRoutes = {
  listPushes: {
    tag: 'images',
    summary: 'List pushes, newest first',
    scope: 'image:read',
    query: Type.Object(page, strict),
    status: 200,
    answer: Type.Array(Push),
  },
  createPush: {
    tag: 'images',
    summary: 'Push an image to a registry; the answer comes at once, GET /pushes/{id} tells how it goes on',
    scope: 'image:write',
    body: PushImageRequest,
    status: 202,
    answer: Push,
    headers: { location: 'Where the push is found', 'retry-after': 'Seconds after which to look at it' },
    errors: ['not_found', 'invalid_name', 'registry_refused', 'invalid_target', 'image_not_ready', 'credential_conflict', 'conflict'],
    conflicts: ['image_not_ready'],
  },
  getPush: {
    tag: 'images',
    summary: 'Look at a push',
    scope: 'image:read',
    params: plainId,
    status: 200,
    answer: Push,
    errors: ['not_found'],
  },
} as const satisfies Readonly<Record<string, Route>>
