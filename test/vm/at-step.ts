/** A daemon that stops at named steps of its operations (`DORMOUSE_STOP_AT`), so that a test can do something just then. */
import { readFileSync } from 'node:fs'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import type { DaemonProcess } from '../harness/daemon-process.ts'

/** Begins what `ask` asks for, does `deed` when the daemon stands still at `step`, and gives what came of it. */
export async function doAt<T>(daemon: DaemonProcess, step: string, ask: () => Promise<T>, deed: () => unknown): Promise<T> {
  let passed = (await stopsOf(daemon)).length
  const asked = ask()
  let isDone = false
  let isOver = false
  const over = asked.then(
    () => undefined,
    () => undefined,
  )
  void over.then(() => {
    isOver = true
  })
  const stands = async () => isOver || (isStopped(daemon.pid) && (await stopsOf(daemon)).length > passed)
  while (!isOver) {
    await pollUntil(`the daemon to stop at ${step}`, stands, { signal: AbortSignal.timeout(60_000) }, { everyMs: 2, upToMs: 10 })
    const stops = await stopsOf(daemon)
    if (stops.length === passed) break
    passed = stops.length
    if (!isDone && stops.at(-1) === step) {
      isDone = true
      await deed()
    }
    process.kill(daemon.pid, 'SIGCONT')
  }
  if (!isDone) throw new Error(`It never came to ${step}: ${JSON.stringify(await asked)}`)
  return await asked
}

/** Where it has stopped so far. */
async function stopsOf(daemon: DaemonProcess): Promise<string[]> {
  const lines = (await daemon.log()).split('\n').filter((line) => line.includes('"msg":"daemon stops itself"'))
  return lines.map((line) => (JSON.parse(line) as { at: string }).at)
}

// proc_pid_stat(5): the state follows the name of the program, which is in parentheses. T: stopped by a signal.
const isStopped = (pid: number): boolean => /\) T /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
