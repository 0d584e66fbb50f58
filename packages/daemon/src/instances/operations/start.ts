import { rename, rm } from 'node:fs/promises'
import type { InstanceWork } from '../instance-work.ts'
import { powerOn } from './power-on.ts'

export interface StartOverrides {
  readonly entrypoint?: readonly string[]
  readonly cmd?: readonly string[]
}

/** Stopped → Initializing. What is given in place of the image's own command is kept for later starts, also when this one fails. */
export async function start(work: InstanceWork, overrides: StartOverrides, admit: (work: InstanceWork) => Promise<void>): Promise<void> {
  const before = work.instance
  await work.step('intent', 10_000)
  await admit(work)
  work.change({
    state: 'Created',
    operation: 'start',
    exitCode: undefined,
    exitMessage: undefined,
    stateError: undefined,
    ...(overrides.entrypoint?.length ? { entrypoint: overrides.entrypoint } : {}),
    ...(overrides.cmd?.length ? { cmd: overrides.cmd } : {}),
  })
  await using undo = new AsyncDisposableStack()
  undo.defer(() => {
    const { exitCode, exitMessage } = before
    work.change({ state: 'Stopped', operation: undefined, vm: undefined, exitCode, exitMessage })
  })

  await work.step('logs', 10_000)
  await archiveLogs(work)
  await powerOn(work)
  undo.move()
}

/** The last boot's output makes room for this one's, and is kept until the next; its facts must not be taken for ours. */
async function archiveLogs(work: InstanceWork): Promise<void> {
  const { app, vmm, journal } = work.uses.paths.instanceLogs(work.instance.id)
  await rm(journal, { force: true })
  for (const log of [app, vmm]) {
    await rm(`${log}.1`, { force: true })
    await rename(log, `${log}.previous`).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error
    })
  }
}
