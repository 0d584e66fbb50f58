import { readJournal } from '../../guest/journal.ts'
import { exitOf } from '../exit-of.ts'
import type { RestartHistory } from '../instance.ts'
import type { InstanceWork } from '../instance-work.ts'
import { HELD } from '../restart-policy.ts'
import { settleStopped } from './conclusions.ts'
import { powerOff } from './power-off.ts'

export interface StopOptions {
  /** Kill at once. */
  readonly force?: boolean
  /** How long the workload is given after its stop signal, in place of the configured time. */
  readonly graceMs?: number
  /** What is on record of its restarts from here on: by default, that someone holds it. */
  readonly restarts?: RestartHistory
}

/**
 * Running → Stopped. The record of the intent is the commit point: a stop that was begun is finished, by the next daemon if need
 * be. An Unknown instance is stopped by ending whatever may run in its run directory.
 */
export async function stop(work: InstanceWork, options: StopOptions): Promise<void> {
  await work.step('intent', 10_000)
  await work.uses.sleepJobs.cancel(work.instance.id)
  const isBooting = work.instance.state === 'Initializing'
  work.change({ state: 'Shutdown', operation: 'stop', restarts: options.restarts ?? HELD })
  await finishStop(work, isBooting ? { ...options, force: true } : options)
}

/** All of a stop behind its commit point. */
export async function finishStop(work: InstanceWork, options: StopOptions): Promise<void> {
  const { live, instance } = work
  const journalPath = work.uses.paths.instanceLogs(instance.id).journal
  if (live) {
    const { exit, killed } = await powerOff(work, live, options.force ? 0 : (options.graceMs ?? work.uses.settings.stopGraceMs))
    await settleStopped(work, exitOf(await readJournal(journalPath), exit, { killed }))
    return
  }
  await work.step('kill', 60_000)
  const seen = await work.hypervisor.lastExit(work.runDir)
  await work.sweep()
  const exit = seen ?? (instance.vm === undefined ? undefined : ({ kind: 'lost', atMs: Date.now() } as const))
  await settleStopped(work, exit === undefined ? undefined : exitOf(await readJournal(journalPath), exit))
}
