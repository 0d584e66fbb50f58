import { rm } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'
import type { Snapshot } from '../../store/snapshots.ts'
import type { Instance } from '../instance.ts'
import type { InstanceWork } from '../instance-work.ts'
import { removeSleepBut } from '../sleep-files.ts'
import { makeLayer } from './add-layer.ts'
import { goOnFrom, type TargetState } from './fork.ts'
import type { Point } from './take-point.ts'

// It reads all that the guest has ever used.
const VERIFY_LIMIT_MS = 600_000

/**
 * Stopped or Standby → as it was when the snapshot was taken: disk, memory, sizes, environment, when it was started and how it had
 * ended. Its id, name, ports and expiry are those of today. The record of where it goes on is the commit point: what was written since
 * the snapshot is given up with it, and a snapshot that cannot be gone back to leaves the instance as it was.
 */
export async function restoreSnapshot(work: InstanceWork, snapshot: Snapshot, target: TargetState): Promise<void> {
  await work.step('intent', 10_000)
  const { paths, disks, sleepJobs } = work.uses
  const { id, disk: given } = work.instance
  if (!disks.isWhole(snapshot.disk))
    throw new AppError('snapshot_unusable', `A layer of the disk of the snapshot ${snapshot.id} is missing`)
  for (const layer of snapshot.disk.slice(0, 1)) await disks.assertSound(layer)
  const point = pointOf(snapshot, paths.snapshotDir(snapshot.id, snapshot.generation))
  // A VM that has loaded it proves that it is whole. One that is to sleep proves nothing, and what is given up for it would be lost.
  if (target === 'Standby' && point.capture) await work.uses.memory.verify(point.capture, await work.step('verify', VERIFY_LIMIT_MS))
  await sleepJobs.cancel(id)
  const then = rememberedOf(snapshot)
  await using after = new AsyncDisposableStack()
  const top = await makeLayer(work, { ...work.instance, ...then })
  // Whichever way it ends, what the record does not name then goes.
  after.defer(() => disks.release([top, ...given]).then(() => undefined, work.leaveForSweep('layers of disks')))
  after.defer(() => removeSleepBut(paths, id, work.instance.sleep?.generation).catch(work.leaveForSweep('sleeping states')))
  await rm(paths.instanceLogs(id).journal, { force: true })
  await goOnFrom(work, point, target, { ...then, disk: [top, ...snapshot.disk], sleep: undefined, stateError: undefined })
  await work.uses.memory.sweepBases().catch(work.leaveForSweep('memory bases'))
}

/** What a snapshot says to whoever goes on from it. */
export const pointOf = ({ instance, disk, base }: Snapshot, dir: string): Point => ({
  instance,
  disk,
  ...(base === undefined ? {} : { capture: { dir, base, isShared: true } }),
})

/** Which states a snapshot can lead to; the first is the default. Throws `invalid_request` for another. */
export function targetOf({ kind }: Pick<Snapshot, 'kind'>, wanted: TargetState | undefined): TargetState {
  const possible: readonly TargetState[] = kind === 'Standby' ? ['Running', 'Standby', 'Stopped'] : ['Stopped', 'Running']
  const target = wanted ?? possible[0]
  if (target !== undefined && possible.includes(target)) return target
  throw new AppError('invalid_request', `A snapshot of the kind ${kind} leads to ${possible.join(' or ')}, not to ${wanted}`)
}

function rememberedOf({ instance, createdAtMs }: Snapshot): Partial<Instance> {
  const { image, imageDigest, platform, hypervisor, vcpus, memoryBytes, hotplugBytes, overlayBytes, entrypoint, cmd, env, tags } = instance
  const { snapshotPolicy, skipGuestAgent, skipKernelHeaders, freshBoot, startedAtMs, exitCode, exitMessage } = instance
  // Of one that ran, what is gone back to ended when the snapshot was taken.
  const { stoppedAtMs = createdAtMs } = instance
  return {
    ...{ image, imageDigest, platform, hypervisor, vcpus, memoryBytes, hotplugBytes, overlayBytes, entrypoint, cmd, env, tags },
    ...{ snapshotPolicy, skipGuestAgent, skipKernelHeaders, freshBoot, startedAtMs, stoppedAtMs, exitCode, exitMessage },
  }
}
