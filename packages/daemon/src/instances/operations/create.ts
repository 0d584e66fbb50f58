import { mkdir, rm } from 'node:fs/promises'
import type { InstanceWork } from '../instance-work.ts'
import { powerOn } from './power-on.ts'

const FILES_LIMIT_MS = 60_000

/**
 * From a reserved row (name, ports, user and MAC are taken) to a VM that runs. Until the VM is recorded every failure takes away
 * all of it, the row last.
 */
export async function create(work: InstanceWork): Promise<void> {
  await using undo = new AsyncDisposableStack()
  undo.defer(() => forgetInstance(work))
  await makeFiles(work, undo)
  await powerOn(work)
  undo.move()
}

async function makeFiles(work: InstanceWork, undo: AsyncDisposableStack): Promise<void> {
  const { paths, disks } = work.uses
  const { id, overlayBytes, uid } = work.instance
  const step = await work.step('files', FILES_LIMIT_MS)
  undo.defer(() => removeFiles(work))
  // The VMM's user goes through to its disk and can list nothing.
  await mkdir(paths.instanceDir(id), { recursive: true, mode: 0o711 })
  await mkdir(paths.instanceLogsDir(id), { recursive: true, mode: 0o700 })
  const owner = uid === undefined ? {} : { owner: { uid, gid: uid } }
  await disks.createOverlay(paths.instanceOverlay(id), overlayBytes, { step, ...owner })
}

/** Takes away all files of an instance. Repeat is harmless. */
export async function removeFiles(work: InstanceWork): Promise<void> {
  await rm(work.uses.paths.instanceDir(work.instance.id), { recursive: true, force: true })
}

/** The last thing of an instance: its row, with the name, the ports and the user that it held. */
export async function forgetInstance(work: InstanceWork): Promise<void> {
  const { db, rows, events } = work.uses
  const { id, name } = work.instance
  db.transaction(() => {
    rows.delete(id)
    events.record({ kind: 'instance.deleted', subject: id, data: { name } })
  })
  await work.host.letGo()
  work.host.forget()
}
