import { endpoint, type RouteId } from '@dormouse/api/endpoints.ts'
import type { ServerUses } from './uses.ts'

type Uses = Pick<ServerUses, 'instances' | 'volumes' | 'devices' | 'images'>

/**
 * The id of what a path is about, or an image's whole name, before anything is done to it: afterwards it may be gone. Paths have names and
 * beginnings of ids, too. Undefined where there is nothing of that name, or where the path has no more than the id itself.
 */
export function resourceResolver({ instances, volumes, devices, images }: Uses) {
  return async (routeId: RouteId, params: Readonly<Record<string, string>>): Promise<string | undefined> => {
    const { id = '', name = '' } = params
    try {
      switch (endpoint(routeId).path.split('/').slice(1, 3).join('/')) {
        case 'instances/{id}':
          return instances.resolve(id).id
        case 'volumes/{id}':
          return volumes.resolve(id).id
        case 'devices/{id}':
          return (await devices.get(id)).id
        case 'images/{name}':
          return images.getImage(name).name
        default:
          return undefined
      }
    } catch {
      // What is wrong with it is the handler's to say.
      return undefined
    }
  }
}
