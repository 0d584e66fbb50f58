import type { Volume as Shown } from '@dormouse/api/volumes.ts'
import type { Instance } from '../../instances/instance.ts'
import type { Volume } from '../../volumes/volumes.ts'
import type { Handlers } from '../handler.ts'
import { toMountRequest } from '../instance-requests.ts'
import { type PlaceOf, pageOf } from '../list-page.ts'
import { presentInstance } from '../present-instance.ts'
import { presentVolume } from '../present-volume.ts'
import type { ServerUses } from '../uses.ts'

type VolumeRoutes = Pick<
  Handlers,
  | 'listVolumes'
  | 'createVolume'
  | 'createVolumeFromArchive'
  | 'getVolume'
  | 'updateVolume'
  | 'deleteVolume'
  | 'attachVolume'
  | 'detachVolume'
>

const PLACE: PlaceOf<Shown> = { key: ({ id }) => id, createdAt: ({ created_at }) => created_at }
const GIB = 2 ** 30

export function volumeRoutes({ instances, volumes, supervision }: Pick<ServerUses, 'instances' | 'volumes' | 'supervision'>): VolumeRoutes {
  const showInstance = (instance: Instance) => presentInstance(instance, Date.now(), supervision.of(instance, Date.now()))
  const show = (volume: Volume): Shown => presentVolume(volume, volumes.holders(volume.id))

  return {
    listVolumes: ({ query, setHeader }) => {
      const { tags, limit, cursor } = query
      const holders = Map.groupBy(volumes.holders(), ({ volumeId }) => volumeId)
      const all = volumes.list(tags === undefined ? {} : { tags }).map((volume) => presentVolume(volume, holders.get(volume.id) ?? []))
      const page = pageOf(all, PLACE, { limit, cursor })
      if (page.nextCursor !== undefined) setHeader('x-next-cursor', page.nextCursor)
      return [...page.items]
    },

    createVolume: async ({ body: { size_gb, ...request } }) => show(await volumes.create({ ...request, bytes: size_gb * GIB })),

    createVolumeFromArchive: async ({ query: { size_gb, ...request }, upload, signal }) =>
      show(await volumes.createFromArchive({ ...request, bytes: size_gb * GIB }, upload, { signal })),

    getVolume: ({ params }) => show(volumes.resolve(params.id)),

    updateVolume: async ({ params, body }) => show(await instances.growVolume(params.id, body.size_gb * GIB)),

    deleteVolume: async ({ params }) => {
      await volumes.delete(params.id)
      return undefined
    },

    attachVolume: async ({ params, body }) => {
      const { id } = instances.resolve(params.id)
      return showInstance(await instances.attachVolume(id, toMountRequest({ ...body, volume_id: params.volumeId })))
    },

    detachVolume: async ({ params }) => {
      const { id } = instances.resolve(params.id)
      return showInstance(await instances.detachVolume(id, params.volumeId))
    },
  }
}
