/** `run` without -d: what the workload writes, until it is over, with its exit code. */
import type { Instance } from '@dormouse/api/instances.ts'
import type { Daemon } from '../daemon.ts'
import { EXIT, Failure } from '../failure.ts'
import { waitForState } from '../instance-life.ts'
import { safeText } from '../output/format.ts'
import { remark, warn } from '../output/print.ts'
import { writeOut } from '../output/write-out.ts'
import type { Interrupts } from './interrupts.ts'

const EVERY_LINE = 100_000

export async function runInForeground(daemon: Daemon, instance: Instance, options: { rm?: true }, interrupts: Interrupts): Promise<void> {
  const { id, name } = instance
  interrupts.listen((count) => {
    if (count === 1) remark(`Stopping ${name}; Ctrl-C again kills it`)
    // Told when the wait below ends; a stop that fails leaves the instance running, and that is told too.
    daemon.call('stopInstance', { params: { id }, body: count > 1 ? { force: true } : {} }).catch((error: Error) => warn(error.message))
  })
  try {
    await showLog(daemon, id)
    await waitForState(daemon, id, 'Stopped')
    endAs(await daemon.call('getInstance', { params: { id } }), interrupts.count > 0)
  } finally {
    if (options.rm) await remove(daemon, id)
  }
}

/** Every line from the first to the last: the stream ends once the instance has come to rest. */
async function showLog(daemon: Daemon, id: string): Promise<void> {
  const lines = daemon.stream('getInstanceLogs', { params: { id }, query: { follow: true, until: 'stopped', tail: EVERY_LINE } })
  try {
    for await (const line of daemon.follow(lines)) await writeOut(process.stdout, `${line}\n`)
  } catch (error) {
    // Nothing was ever written, or the daemon was restarted under us: how it ends is still to be seen.
    if (!(error instanceof Error && 'code' in error && error.code === 'log_not_found')) throw error
  }
}

function endAs(instance: Instance, wasInterrupted: boolean): void {
  if (typeof instance.exit_code === 'number') {
    process.exitCode = instance.exit_code
    const message = instance.exit_message ?? ''
    // That it exited with a code is said by the code.
    if (instance.exit_code !== 0 && message !== '' && !message.startsWith('exited with') && !wasInterrupted) {
      process.stderr.write(`${safeText(message)}\n`)
    }
    return
  }
  if (wasInterrupted) {
    process.exitCode = EXIT.interrupted
    return
  }
  const why = instance.exit_message ?? instance.state_error
  throw new Failure(`${instance.name} ended without an exit code${why ? `: ${why}` : ''}`, {
    hint: `See what the VM said: dormouse logs --source vmm ${instance.name}`,
  })
}

export async function remove(daemon: Daemon, id: string): Promise<void> {
  await daemon
    .call('deleteInstance', { params: { id }, query: { graceful_shutdown: false } })
    .catch((error: Error) => warn(`${id} could not be deleted: ${error.message}`))
}
