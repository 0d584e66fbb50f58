import type { Handlers } from '../handler.ts'
import { presentSchedule } from '../present-schedule.ts'
import { toSetSchedule } from '../schedule-requests.ts'
import type { ServerUses } from '../uses.ts'

type ScheduleRoutes = Pick<Handlers, 'getSnapshotSchedule' | 'setSnapshotSchedule' | 'deleteSnapshotSchedule'>

export function scheduleRoutes({ instances, schedules }: Pick<ServerUses, 'instances' | 'schedules'>): ScheduleRoutes {
  return {
    getSnapshotSchedule: ({ params }) => presentSchedule(schedules.get(instances.resolve(params.id))),

    setSnapshotSchedule: ({ params, body }) => presentSchedule(schedules.put(instances.resolve(params.id), toSetSchedule(body))),

    deleteSnapshotSchedule: ({ params }) => {
      schedules.delete(instances.resolve(params.id))
      return undefined
    },
  }
}
