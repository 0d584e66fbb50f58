import { Type } from 'typebox'
import { Image, ImageProgress, PruneImagesResponse, PullImageRequest, TagImageRequest } from '../images.ts'
import { Platform } from '../names.ts'
import { listQuery, strict } from './params.ts'
import type { Route } from './route.ts'

const imageName = Type.Object({
  name: Type.String({ minLength: 1, maxLength: 1024, description: 'Reference, tag or digest; slashes percent-encoded' }),
})

export const imageRoutes = {
  listImages: {
    tag: 'images',
    summary: 'List images, newest first',
    scope: 'image:read',
    query: listQuery,
    status: 200,
    answer: Type.Array(Image),
  },
  pullImage: {
    tag: 'images',
    summary: 'Pull an image from its registry',
    scope: 'image:write',
    body: PullImageRequest,
    status: 202,
    answer: Image,
    errors: [
      'invalid_name',
      'invalid_platform',
      'not_found',
      'platform_not_available',
      'credential_conflict',
      'registry_unauthorized',
      'registry_unavailable',
      'registry_refused',
      'rate_limited',
      'invalid_image',
      'image_too_large',
      'not_supported',
      'insufficient_resources',
    ],
  },
  importImage: {
    tag: 'images',
    summary: 'Import a docker-archive or oci-archive tar, sent as the body',
    scope: 'image:write',
    query: Type.Object(
      {
        name: Type.Optional(
          Type.String({ minLength: 1, maxLength: 512, description: 'What to call it; else its own name from the archive' }),
        ),
        platform: Type.Optional(Platform),
      },
      strict,
    ),
    rawBody: ['application/x-tar', 'application/octet-stream', 'application/gzip', 'application/zstd'],
    status: 201,
    answer: Image,
    errors: [
      'invalid_name',
      'invalid_image',
      'image_too_large',
      'platform_not_available',
      'invalid_platform',
      'timed_out',
      'dependency_missing',
      'conflict',
    ],
  },
  pruneImages: {
    tag: 'images',
    summary: 'Delete every image that no instance stands on',
    scope: 'image:delete',
    body: Type.Object({}, strict),
    bodyOptional: true,
    status: 200,
    answer: PruneImagesResponse,
  },
  getImage: {
    tag: 'images',
    summary: 'Look at an image',
    scope: 'image:read',
    params: imageName,
    status: 200,
    answer: Image,
    errors: ['not_found', 'invalid_name'],
  },
  deleteImage: {
    tag: 'images',
    summary: 'Delete an image, and its data when no other name has it',
    scope: 'image:delete',
    params: imageName,
    status: 204,
    errors: ['not_found', 'invalid_name', 'in_use', 'conflict', 'ambiguous'],
  },
  tagImage: {
    tag: 'images',
    summary: 'Give an image a second name',
    scope: 'image:write',
    params: imageName,
    body: TagImageRequest,
    status: 200,
    answer: Image,
    errors: ['not_found', 'invalid_name', 'image_not_ready'],
  },
  getImageProgress: {
    tag: 'images',
    summary: 'Follow the pull of an image until it is ready or has failed',
    scope: 'image:read',
    params: imageName,
    status: 200,
    answer: ImageProgress,
    stream: 'sse',
    errors: ['not_found', 'invalid_name'],
  },
} as const satisfies Readonly<Record<string, Route>>
