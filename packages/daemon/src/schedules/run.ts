import { AppError } from '@dormouse/api/errors.ts'
import type { Clock } from '../host/clock.ts'
import type { Instance } from '../instances/instance.ts'
import type { Step } from '../lib/step.ts'
import type { SnapshotSchedule } from '../store/snapshot-schedules.ts'
import { cleanUp, wordsOf } from './clean-up.ts'
import type { FindInstance, ScheduledSnapshots } from './scheduled-snapshots.ts'

export interface RunUses {
  readonly instances: FindInstance
  readonly snapshots: ScheduledSnapshots
  readonly clock: Clock
  readonly step: Step
  /** Writes down what the run has made. Gives the schedule as it is now; undefined when it was removed meanwhile. */
  readonly made: (snapshotId: string) => SnapshotSchedule | undefined
}

export interface RunResult {
  readonly error?: string
  /** Its instance is gone and there is nothing left to do for it. */
  readonly isOver?: boolean
}

/** One run, whose beginning is on record: a snapshot of the instance as it is, then what has expired goes. Throws only when it is told to end. */
export async function run(begun: SnapshotSchedule, uses: RunUses): Promise<RunResult> {
  const { snapshots, clock, step } = uses
  const instance = uses.instances.find(begun.instanceId)
  if (instance === undefined) return runWithoutInstance(begun, uses)

  let schedule: SnapshotSchedule | undefined
  try {
    const { id } = await snapshots.create(instance.id, {
      kind: kindOf(instance),
      name: nameOf(begun, begun.lastRunAtMs ?? clock.wall()),
      tags: { ...begun.metadata, [SCHEDULED]: 'true', [SOURCE]: instance.id },
    })
    schedule = uses.made(id)
  } catch (error) {
    return { error: wordsOf(error, step) }
  }
  if (schedule === undefined) return {}
  const lives = uses.instances.find(instance.id) !== undefined
  const { troubles } = await cleanUp(snapshots, instance.id, schedule.retention, { nowMs: clock.wall(), lives, step })
  return troubles.length === 0 ? {} : { error: troubles.join('; ') }
}

/** What the schedule made outlives its instance, until it expires or a count is all that was asked for. */
async function runWithoutInstance({ instanceId, retention }: SnapshotSchedule, { snapshots, clock, step }: RunUses): Promise<RunResult> {
  const { left, troubles, isUnfinished } = await cleanUp(snapshots, instanceId, retention, { nowMs: clock.wall(), lives: false, step })
  if (troubles.length > 0) step.log.warn({ instance: instanceId, troubles }, 'snapshots of a deleted instance are not cleaned up yet')
  const isOver = left === 0 || (retention.maxAgeMs === undefined && !isUnfinished)
  return { isOver, ...(troubles.length === 0 ? {} : { error: troubles.join('; ') }) }
}

const DEFAULT_PREFIX = 'scheduled'
const SCHEDULED = 'dormouse.scheduled'
const SOURCE = 'dormouse.source-instance'

/** `nightly-20260131-020000`: a prefix has at most 47 characters, so that with a dash and 15 more it is a name. */
const nameOf = ({ namePrefix = DEFAULT_PREFIX }: Pick<SnapshotSchedule, 'namePrefix'>, atMs: number): string =>
  `${namePrefix}-${stampOf(atMs)}`

/** `20260131-020000`, UTC. */
export const stampOf = (atMs: number): string => new Date(atMs).toISOString().slice(0, 19).replaceAll(/[-:]/g, '').replace('T', '-')

function kindOf({ name, state }: Instance): 'Standby' | 'Stopped' {
  switch (state) {
    case 'Running':
    case 'Standby':
      return 'Standby'
    case 'Stopped':
      return 'Stopped'
    default:
      throw new AppError('conflict', `${name} was ${state}, and a schedule takes snapshots of what is Running, Standby or Stopped`)
  }
}
