import { mkdir, rm } from 'node:fs/promises'
import { followAttachments } from '../../volumes/attachments.ts'
import { layersOf } from '../instance-disks.ts'
import type { InstanceWork } from '../instance-work.ts'
import { powerOn } from './power-on.ts'

const FILES_LIMIT_MS = 60_000

/**
 * From a reserved row (name, ports, user and MAC are taken) to a VM that runs. Until the VM is recorded every failure takes away
 * all of it, the row last; where a VM cannot be ended, its files and row stay, to be deleted by whoever can.
 */
export async function create(work: InstanceWork): Promise<void> {
  try {
    await makeFiles(work)
    // Beside the VM's start, which takes longer.
    const isDurable = work.uses.disks.flush(work.instance.disk)
    isDurable.catch(() => undefined)
    await powerOn(work, { isDurable })
  } catch (cause) {
    await undoCreate(work, cause)
    throw cause
  }
}

/** Takes away all of an instance that did not come to be. Throws `cause` when its VM cannot be ended: then it stays, Unknown. */
export async function undoCreate(work: InstanceWork, cause: unknown): Promise<void> {
  await work.host.letGo()
  try {
    // Harmless when there is nothing: the failed start has swept already, and this tells whether that worked.
    await work.sweep()
  } catch (error) {
    work.log.error({ err: error }, 'what a failed create started could not be ended')
    // A guest that has not been told who it is now must not be taken for one that has.
    const isWaking = work.instance.operation === 'restore' && work.instance.vm !== undefined
    work.change({
      state: 'Unknown',
      ...(isWaking ? {} : { operation: undefined }),
      stateError: 'A VM that did not start could not be ended either: delete the instance',
    })
    throw cause
  }
  await removeFiles(work)
  await forgetInstance(work, { isUnmade: true })
}

async function makeFiles(work: InstanceWork): Promise<void> {
  const { paths, disks } = work.uses
  const { id, disk, overlayBytes, uid } = work.instance
  const step = await work.step('files', FILES_LIMIT_MS)
  const makeDirectories = async (): Promise<void> => {
    await mkdir(paths.instanceDir(id), { recursive: true, mode: 0o711 })
    await mkdir(paths.instanceLogsDir(id), { recursive: true, mode: 0o700 })
  }
  const owner = uid === undefined ? {} : { owner: { uid, gid: uid } }
  // All have come to an end before a failure is told: what takes the files away must not be overtaken.
  const made = await Promise.allSettled([
    makeDirectories(),
    ...disk.map((layer) => disks.createOverlay(layer, overlayBytes, { step, ...owner })),
  ])
  for (const part of made) if (part.status === 'rejected') throw part.reason
}

/** Takes away all files of an instance, but layers of its disk that others stand on, and its volumes. Repeat is harmless. */
export async function removeFiles(work: InstanceWork): Promise<void> {
  const { id, disk } = work.instance
  await work.uses.disks.release(disk, id)
  await rm(work.uses.paths.instanceDir(id), { recursive: true, force: true })
}

/**
 * The last thing of an instance: its row, with the name, the ports and the user that it held. Its volumes are given back, as it left them;
 * those of a fork that did not come to be go with it.
 */
export async function forgetInstance(work: InstanceWork, { isUnmade = false } = {}): Promise<void> {
  const { db, rows, events, disks, volumes } = work.uses
  const { id, name, disk } = work.instance
  db.transaction(
    () => {
      followAttachments({ rows: volumes.rows, events }, work.instance, work.instance.volumes, [])
      if (isUnmade) for (const made of volumes.rows.madeFor(id)) volumes.rows.delete(made.id)
      rows.delete(id)
      events.record({ kind: 'instance.deleted', subject: id, data: { name } })
    },
    { evenWhenFull: true },
  )
  // Of two that shared a layer and went at the same time, each may have left it to the other. The top was never shared.
  await disks
    .release([...disk.slice(1), ...layersOf({ disk: [], volumes: work.instance.volumes })])
    .catch(work.leaveForSweep('layers of its disk'))
  await work.host.letGo()
  work.host.forget()
  await work.uses.memory.sweepBases().catch(work.leaveForSweep('memory bases'))
}
