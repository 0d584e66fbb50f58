/** Images as the API shows and takes them. */
import { type Static, Type } from 'typebox'
import { DateTime, ImageName, nullable, Platform, Tags } from './names.ts'

const strict = { additionalProperties: false } as const

export const IMAGE_STATUSES = ['pending', 'pulling', 'converting', 'ready', 'failed'] as const

export const Image = Type.Object(
  {
    name: Type.String({ description: 'The whole reference, with registry and tag or digest' }),
    digest: Type.String(),
    status: Type.Enum([...IMAGE_STATUSES]),
    created_at: DateTime,
    platform: Type.Optional(Type.String()),
    queue_position: Type.Optional(nullable(Type.Integer({ description: 'From 1; null when it does not wait' }))),
    error: Type.Optional(nullable(Type.String({ description: 'Why it failed' }))),
    size_bytes: Type.Optional(nullable(Type.Integer({ description: 'Of the rootfs on disk' }))),
    entrypoint: Type.Optional(nullable(Type.Array(Type.String()))),
    cmd: Type.Optional(nullable(Type.Array(Type.String()))),
    env: Type.Optional(Type.Record(Type.String(), Type.String())),
    tags: Type.Optional(Type.Record(Type.String(), Type.String())),
    working_dir: Type.Optional(nullable(Type.String())),
  },
  { $id: 'Image' },
)
export type Image = Static<typeof Image>

export const RegistryCredentials = Type.Object(
  {
    username: Type.Optional(Type.String({ maxLength: 1024 })),
    password: Type.Optional(Type.String({ maxLength: 16_384 })),
    registry_token: Type.Optional(Type.String({ maxLength: 65_536 })),
  },
  {
    $id: 'RegistryCredentials',
    ...strict,
    description: 'Used for this one request and kept nowhere; empty means the keychain of the host',
  },
)
export type RegistryCredentials = Static<typeof RegistryCredentials>

export const PullImageRequest = Type.Object(
  { name: ImageName, platform: Type.Optional(Platform), credentials: Type.Optional(RegistryCredentials), tags: Type.Optional(Tags) },
  { $id: 'PullImageRequest', ...strict },
)
export type PullImageRequest = Static<typeof PullImageRequest>

export const TagImageRequest = Type.Object({ target: ImageName }, { $id: 'TagImageRequest', ...strict })

/** One step of a pull. The last one has status `ready` or `failed`, then the stream ends. */
export const ImageProgress = Type.Object(
  {
    name: Type.String(),
    digest: Type.Optional(Type.String()),
    status: Type.Enum([...IMAGE_STATUSES]),
    done_bytes: Type.Optional(Type.Integer()),
    total_bytes: Type.Optional(Type.Integer()),
    layers: Type.Optional(Type.Array(Type.Object({ digest: Type.String(), done_bytes: Type.Integer(), total_bytes: Type.Integer() }))),
    error: Type.Optional(Type.String()),
  },
  { $id: 'ImageProgress' },
)
export type ImageProgress = Static<typeof ImageProgress>

export const PruneImagesResponse = Type.Object(
  { deleted: Type.Array(Type.String()), freed_bytes: Type.Integer() },
  { $id: 'PruneImagesResponse' },
)
export type PruneImagesResponse = Static<typeof PruneImagesResponse>

export const Push = Type.Object(
  {
    id: Type.String(),
    image: Type.String({ description: 'The name of the image on this host' }),
    digest: Type.String({ description: 'Of the manifest, which is the same at the registry' }),
    target: Type.String({ description: 'Where it goes, as a whole reference' }),
    status: Type.Enum(['queued', 'pushing', 'pushed', 'failed']),
    created_at: DateTime,
    completed_at: Type.Optional(nullable(DateTime)),
    queue_position: Type.Optional(nullable(Type.Integer({ description: 'From 1; null when it does not wait' }))),
    error: Type.Optional(nullable(Type.String({ description: 'Why it failed' }))),
    layers: Type.Optional(Type.Integer({ description: 'How many the image has; once it is pushed' })),
    bytes: Type.Optional(Type.Integer({ description: 'Of its layers, compressed as they are, sent or there already; once it is pushed' })),
  },
  { $id: 'Push' },
)
export type Push = Static<typeof Push>

export const PushImageRequest = Type.Object(
  {
    image: ImageName,
    target: ImageName,
    insecure: Type.Optional(Type.Boolean({ default: false, description: 'Speak plain HTTP to the registry' })),
    credentials: Type.Optional(RegistryCredentials),
  },
  { $id: 'PushImageRequest', ...strict },
)
export type PushImageRequest = Static<typeof PushImageRequest>
