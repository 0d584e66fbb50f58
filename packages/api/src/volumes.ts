/** Volumes: block files that outlive the instances they are attached to. */
import { type Static, Type } from 'typebox'
import { DateTime, Tags } from './names.ts'

const VolumeId = Type.String({ minLength: 1, maxLength: 64, pattern: '^[a-zA-Z0-9][a-zA-Z0-9_.-]*$' })
const VolumeName = Type.String({ minLength: 1, maxLength: 128 })
const SizeGb = Type.Integer({ minimum: 1, maximum: 1_000_000 })

export const VolumeAttachment = Type.Object(
  { instance_id: Type.String(), mount_path: Type.String(), readonly: Type.Boolean() },
  { $id: 'VolumeAttachment' },
)

export const Volume = Type.Object(
  {
    id: Type.String(),
    name: Type.String(),
    size_gb: Type.Integer(),
    created_at: DateTime,
    tags: Type.Optional(Type.Record(Type.String(), Type.String())),
    attachments: Type.Optional(Type.Array(VolumeAttachment)),
  },
  { $id: 'Volume' },
)
export type Volume = Static<typeof Volume>

export const CreateVolumeRequest = Type.Object(
  { name: VolumeName, size_gb: SizeGb, id: Type.Optional(VolumeId), tags: Type.Optional(Tags) },
  { $id: 'CreateVolumeRequest', additionalProperties: false },
)

export const UpdateVolumeRequest = Type.Object(
  { size_gb: Type.Integer({ minimum: 1, maximum: 1_000_000, description: 'It can only grow' }) },
  { $id: 'UpdateVolumeRequest', additionalProperties: false },
)

export const VolumeFromArchiveQuery = Type.Object(
  { name: VolumeName, size_gb: SizeGb, id: Type.Optional(VolumeId), tags: Type.Optional(Tags) },
  { additionalProperties: false },
)
