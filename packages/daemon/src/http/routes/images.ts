import type { Image, ImageProgress } from '@dormouse/api/images.ts'
import type { Handlers } from '../handler.ts'
import { type PlaceOf, pageOf } from '../list-page.ts'
import { admitRegistry } from '../loopback-registries.ts'
import type { SseBatch } from '../streams/sse.ts'
import type { ServerUses } from '../uses.ts'

type ImageRoutes = Pick<
  Handlers,
  'listImages' | 'pullImage' | 'importImage' | 'pruneImages' | 'getImage' | 'deleteImage' | 'tagImage' | 'getImageProgress'
>

// A name may lead to an image for each platform.
const PLACE: PlaceOf<Image> = { key: ({ name, platform = '' }) => `${name}\n${platform}`, createdAt: ({ created_at }) => created_at }

export function imageRoutes({ images }: Pick<ServerUses, 'images'>): ImageRoutes {
  return {
    listImages: ({ query, setHeader }) => {
      const { tags, limit, cursor } = query
      const page = pageOf(images.list(tags === undefined ? {} : { tags }), PLACE, { limit, cursor })
      if (page.nextCursor !== undefined) setHeader('x-next-cursor', page.nextCursor)
      return [...page.items]
    },

    pullImage: ({ body, caller }) => {
      admitRegistry(caller, images, body.name)
      return images.pull(body)
    },

    importImage: ({ upload, query, signal, log }) => {
      const { name, platform } = query
      return images.importUpload(
        upload,
        { ...(name !== undefined && { name }), ...(platform !== undefined && { platform }) },
        { signal, log },
      )
    },

    pruneImages: () => images.prune(),

    getImage: ({ params }) => images.getImage(params.name),

    deleteImage: async ({ params }) => {
      await images.remove(params.name)
      return undefined
    },

    tagImage: ({ params, body }) => images.tag(params.name, body.target),

    getImageProgress: async ({ params, signal }) => asMessages(await images.progress(params.name, { signal })),
  }
}

async function* asMessages(steps: AsyncIterable<ImageProgress>): AsyncGenerator<SseBatch> {
  for await (const step of steps) yield [{ data: JSON.stringify(step) }]
}
