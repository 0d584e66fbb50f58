import { rename, rm } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'
import type { RestartHistory } from '../instance.ts'
import type { InstanceWork } from '../instance-work.ts'
import { restarted } from '../restart-policy.ts'
import { powerOn } from './power-on.ts'

export interface StartOverrides {
  readonly entrypoint?: readonly string[]
  readonly cmd?: readonly string[]
}

/** By its policy, not by someone. */
export interface StartByPolicy {
  readonly attempt?: RestartHistory
}

/** Looks at the host; what it gives judges at once, so that nothing comes between the judgement and the record. */
export type Admit = (work: InstanceWork) => Promise<() => void>

/** Stopped → Initializing. What is given in place of the image's own command is kept for later starts, also when this one fails. */
export async function start(work: InstanceWork, overrides: StartOverrides, admit: Admit, { attempt }: StartByPolicy = {}): Promise<void> {
  await work.step('intent', 10_000)
  const judge = await admit(work)
  judge()
  work.change(
    {
      state: 'Created',
      operation: 'start',
      stateError: undefined,
      ...(attempt === undefined ? {} : { restarts: attempt }),
      ...(overrides.entrypoint?.length ? { entrypoint: overrides.entrypoint } : {}),
      ...(overrides.cmd?.length ? { cmd: overrides.cmd } : {}),
    },
    { evenWhenFull: false },
  )
  await using undo = new AsyncDisposableStack()
  undo.defer(() => {
    work.change({ state: 'Stopped', operation: undefined, vm: undefined })
  })

  await work.step('logs', 10_000)
  await archiveLogs(work)
  await powerOn(work, { along: { restarts: attempt && restarted(attempt) } }).catch((error) =>
    Promise.reject(leadToLog(error, work.instance.name)),
  )
  undo.move()
}

/** A create that fails takes its logs along; here they stay, so the error can lead there. */
export function leadToLog(error: unknown, name: string): unknown {
  if (!(error instanceof AppError) || error.detail?.vmm_log === undefined) return error
  const { code, message, detail, cause } = error
  return new AppError(code, message, { detail, cause, hint: `The VMM's log says more: dormouse logs --source vmm ${name}` })
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
