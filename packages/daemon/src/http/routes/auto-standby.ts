import type { Handlers } from '../handler.ts'
import { presentAutoStandbyStatus } from '../present-auto-standby.ts'
import type { ServerUses } from '../uses.ts'

type AutoStandbyRoutes = Pick<Handlers, 'getAutoStandbyStatus' | 'holdAutoStandby'>

export function autoStandbyRoutes({ instances, autoStandby }: Pick<ServerUses, 'instances' | 'autoStandby'>): AutoStandbyRoutes {
  return {
    getAutoStandbyStatus: async ({ params }) => presentAutoStandbyStatus(await autoStandby.status(instances.resolve(params.id).id)),
    holdAutoStandby: async ({ params }) => presentAutoStandbyStatus(await autoStandby.hold(instances.resolve(params.id).id)),
  }
}
