import { rm } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'
import type { Snapshot } from '../../store/snapshots.ts'
import { assertCompatible, isWriter } from '../../volumes/attachments.ts'
import type { Attachment, Instance } from '../instance.ts'
import { disksOf, layersOf } from '../instance-disks.ts'
import type { InstanceWork } from '../instance-work.ts'
import { HELD } from '../restart-policy.ts'
import { removeSleepBut } from '../sleep-files.ts'
import { makeLayers, putOn } from './add-layer.ts'
import { goOnFrom, type TargetState } from './fork.ts'
import type { Point } from './take-point.ts'

// It reads all that the guest has ever used.
const VERIFY_LIMIT_MS = 600_000

/**
 * Stopped or Standby → as it was when the snapshot was taken: disk, volumes, memory, sizes, environment, when it was started and how it
 * had ended. Its id, name, ports and expiry are those of today. The record of where it goes on is the commit point: what was written since
 * the snapshot is given up with it, and a snapshot that cannot be gone back to leaves the instance as it was.
 */
export async function restoreSnapshot(work: InstanceWork, snapshot: Snapshot, target: TargetState): Promise<void> {
  await work.step('intent', 10_000)
  const { paths, disks, sleepJobs } = work.uses
  const { id } = work.instance
  const { volumes } = snapshot.instance
  const given = [...layersOf(work.instance), ...replacedBy(work, volumes)]
  for (const { layers } of disksOf(snapshot.instance)) {
    if (!disks.isWhole(layers)) throw new AppError('snapshot_unusable', `A layer of a disk of the snapshot ${snapshot.id} is missing`)
    for (const layer of layers.slice(0, 1)) await disks.assertSound(layer)
  }
  const point = pointOf(snapshot, paths.snapshotDir(snapshot.id, snapshot.generation))
  // A VM that has loaded it proves that it is whole. One that is to sleep proves nothing, and what is given up for it would be lost.
  if (target === 'Standby' && point.capture) await work.uses.memory.verify(point.capture, await work.step('verify', VERIFY_LIMIT_MS))
  await sleepJobs.cancel(id)
  const then = { ...rememberedOf(snapshot), env: variablesOf(snapshot, work.instance) }
  await using after = new AsyncDisposableStack()
  const tops = await makeLayers(work, { ...work.instance, ...then, disk: snapshot.disk, volumes })
  // Whichever way it ends, what the record does not name then goes.
  after.defer(() => disks.release([...tops.values(), ...given]).then(() => undefined, work.leaveForSweep('layers of disks')))
  after.defer(() => removeSleepBut(paths, id, work.instance.sleep?.generation).catch(work.leaveForSweep('sleeping states')))
  await rm(paths.instanceLogs(id).journal, { force: true })
  const onTop = putOn(snapshot.instance, tops)
  // Who wants it Stopped does not want it started by its policy.
  const restarts = target === 'Stopped' ? HELD : undefined
  await goOnFrom(work, point, target, { ...then, ...onTop, sleep: undefined, stateError: undefined, restarts })
  await work.uses.memory.sweepBases().catch(work.leaveForSweep('memory bases'))
}

/** What a snapshot says to whoever goes on from it. */
export const pointOf = ({ instance, base }: Snapshot, dir: string): Point => ({
  instance,
  ...(base === undefined ? {} : { capture: { dir, base, isShared: true } }),
})

/** Which states a snapshot can lead to; the first is the default. Throws `invalid_request` for another. */
export function targetOf({ kind }: Pick<Snapshot, 'kind'>, wanted: TargetState | undefined): TargetState {
  const possible: readonly TargetState[] = kind === 'Standby' ? ['Running', 'Standby', 'Stopped'] : ['Stopped', 'Running']
  const target = wanted ?? possible[0]
  if (target !== undefined && possible.includes(target)) return target
  throw new AppError('invalid_request', `A snapshot of the kind ${kind} leads to ${possible.join(' or ')}, not to ${wanted}`)
}

/**
 * The layers of volumes that no one has now and that go back to what they were. Throws `conflict` when one of its volumes cannot be had any
 * more, before anything is given up.
 */
function replacedBy({ instance, uses }: InstanceWork, wanted: readonly Attachment[]): string[] {
  const { rows } = uses.volumes
  return wanted.flatMap((attachment) => {
    const { volumeId, volumeName } = attachment
    const hint = 'Fork the snapshot instead: the fork has volumes of its own, as they were'
    const volume = rows.find(volumeId)
    if (volume === undefined) throw new AppError('conflict', `The volume ${volumeName}, which the snapshot has, was deleted`, { hint })
    try {
      assertCompatible(
        volume,
        attachment,
        rows.holders(volumeId).filter(({ instanceId }) => instanceId !== instance.id),
      )
    } catch (cause) {
      throw new AppError('conflict', cause instanceof Error ? cause.message : String(cause), {
        hint: `Detach it there. Or: ${hint}`,
        cause,
      })
    }
    return isWriter(attachment) ? volume.disk : []
  })
}

/** As it was then, but for the values of credentials: one that has been rotated since does not come back. */
export function variablesOf({ instance: { env } }: Snapshot, now: Instance): Instance['env'] {
  const sources = Object.values(now.egress?.credentials ?? {}).map(({ source }) => source)
  const kept = sources.flatMap((name) => (now.env[name] === undefined ? [] : [[name, now.env[name]] as const]))
  return { ...env, ...Object.fromEntries(kept) }
}

function rememberedOf({ instance, createdAtMs }: Snapshot): Partial<Instance> {
  const { image, imageDigest, platform, hypervisor, vcpus, memoryBytes, hotplugBytes, overlayBytes, entrypoint, cmd, tags } = instance
  const { diskIoBps, snapshotPolicy, autoStandby, skipGuestAgent, skipKernelHeaders, freshBoot, startedAtMs, exitCode, exitMessage } =
    instance
  const { healthCheck, restartPolicy } = instance
  // Of one that ran, what is gone back to ended when the snapshot was taken.
  const { stoppedAtMs = createdAtMs } = instance
  return {
    ...{ image, imageDigest, platform, hypervisor, vcpus, memoryBytes, hotplugBytes, overlayBytes, entrypoint, cmd, tags },
    ...{
      diskIoBps,
      snapshotPolicy,
      autoStandby,
      skipGuestAgent,
      skipKernelHeaders,
      freshBoot,
      startedAtMs,
      stoppedAtMs,
      exitCode,
      exitMessage,
    },
    ...{ healthCheck, restartPolicy },
  }
}
