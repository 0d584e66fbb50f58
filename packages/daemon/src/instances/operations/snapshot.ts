import { rm } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'
import { publishDirectory } from '../../host/files.ts'
import type { Snapshot } from '../../store/snapshots.ts'
import { bytesIn } from '../bytes-in.ts'
import type { InstanceWork } from '../instance-work.ts'
import { takePoint } from './take-point.ts'

export type SnapshotRequest = Pick<Snapshot, 'id' | 'kind' | 'name' | 'tags' | 'isScheduled'>

/**
 * A kept point of the instance, which goes on. The snapshot's row is the commit point: what was written for one without a row is
 * swept. Returns with the snapshot whole and flushed.
 */
export async function snapshot(work: InstanceWork, request: SnapshotRequest): Promise<void> {
  const { uses, instance } = work
  await work.step('intent', 10_000)
  assertKind(instance, request.kind)
  if (request.name !== undefined && uses.snapshots.findByName(instance.id, request.name)) {
    throw new AppError('conflict', `${instance.name} has a snapshot named ${request.name} already`, { hint: 'Take another name, or none' })
  }
  const target = uses.paths.snapshotDir(request.id)
  const draft = `${target}.draft`
  await using undo = new AsyncDisposableStack()
  undo.defer(() => rm(draft, { recursive: true, force: true }))
  const point = await takePoint(work, { dir: draft, close: async () => 1 })
  undo.defer(async () => void (await uses.disks.release(point.disk)))
  undo.defer(async () => void (await point.fresh?.settle()))

  if (point.capture !== undefined) {
    await work.step('publish', 30_000)
    await publishDirectory(point.capture.dir, target)
    undo.defer(() => rm(target, { recursive: true, force: true }))
  }
  const bytes = (await bytesIn(target)) + (await uses.disks.allocatedBytes(point.disk))
  await work.step('record', 10_000)
  const { base } = point.capture ?? {}
  const createdAtMs = Date.now()
  const row = { ...request, createdAtMs, instance: point.instance, disk: point.disk, bytes, compressionState: 'none' } as const
  uses.db.transaction(() => {
    uses.snapshots.insert({ ...row, ...(base === undefined ? {} : { base }) })
    uses.events.record({ kind: 'snapshot.published', subject: request.id, data: { instance: instance.id, name: request.name } })
  })
  undo.move()
  await point.fresh?.settle()
  await rm(draft, { recursive: true, force: true }).catch(work.leaveForSweep('snapshot draft'))
}

function assertKind({ name, state }: InstanceWork['instance'], kind: Snapshot['kind']): void {
  if ((kind === 'Stopped') === (state === 'Stopped')) return
  throw new AppError('conflict', `A snapshot of the kind ${kind} cannot be taken of ${name} while it is ${state}`, {
    hint: kind === 'Stopped' ? 'Stop it first, or ask for the kind Standby' : 'Ask for the kind Stopped, or start it first',
  })
}
