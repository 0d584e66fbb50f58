/** What requests of more than one kind of thing are made with. */
import { Type } from 'typebox'
import { Tags } from '../names.ts'

export const Key = Type.String({ minLength: 1, maxLength: 128 })
export const id = Type.Object({
  id: Type.String({ minLength: 1, maxLength: 128, description: 'Id, name, or a prefix of the id that only one has' }),
})
export const plainId = Type.Object({ id: Key })
export const strict = { additionalProperties: false } as const
export const page = {
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 10_000, description: 'At most so many; everything when left out' })),
  cursor: Type.Optional(Type.String({ maxLength: 2048, description: 'From the x-next-cursor header of the page before' })),
}
export const tagFilter = { tags: Type.Optional(Tags) }
export const listQuery = Type.Object({ ...tagFilter, ...page }, strict)
export const waitQuery = Type.Object(
  {
    wait: Type.Optional(Type.Enum(['running'], { description: 'Answer only once it is Running, or can no longer become so' })),
    timeout: Type.Optional(Type.String({ maxLength: 64, default: '60s', description: 'How long to wait, at most 5m' })),
  },
  strict,
)

/** Of what has the sizes of another, whose name may have other limits. */
export const sizeErrors = ['invalid_size', 'invalid_overlay_size', 'invalid_hotplug_size'] as const

/** What a rate that cannot be read is told by, and a text inside a policy. */
export const rateErrors = ['invalid_bandwidth_download', 'invalid_bandwidth_upload'] as const
