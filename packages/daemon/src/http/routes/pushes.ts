import type { Push } from '@dormouse/api/images.ts'
import type { Handlers } from '../handler.ts'
import { type PlaceOf, pageOf } from '../list-page.ts'
import { admitRegistry } from '../loopback-registries.ts'
import type { ServerUses } from '../uses.ts'

type PushRoutes = Pick<Handlers, 'listPushes' | 'createPush' | 'getPush'>

const PLACE: PlaceOf<Push> = { key: ({ id }) => id, createdAt: ({ created_at }) => created_at }
const ASK_AGAIN_S = 2

export function pushRoutes({ images }: Pick<ServerUses, 'images'>): PushRoutes {
  return {
    listPushes: ({ query, setHeader }) => {
      const page = pageOf(images.pushes(), PLACE, query)
      if (page.nextCursor !== undefined) setHeader('x-next-cursor', page.nextCursor)
      return [...page.items]
    },

    createPush: async ({ body, caller, setHeader }) => {
      admitRegistry(caller, images, body.target)
      const push = await images.push(body)
      setHeader('location', `/pushes/${push.id}`)
      setHeader('retry-after', String(ASK_AGAIN_S))
      return push
    },

    getPush: ({ params }) => images.getPush(params.id),
  }
}
