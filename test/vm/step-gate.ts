/** A daemon that stops at named steps of its operations (`DORMOUSE_STOP_AT`), so that a test can do something just then. */
import { readFileSync, statSync } from 'node:fs'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { timeFactor } from '../harness/slow-host.ts'

/** Lets each daemon that writes to `log` pass wherever it stops, but where it is waited for. */
export class StepGate implements AsyncDisposable {
  readonly #log: string
  readonly #closing = new AbortController()
  readonly #tending: Promise<void>
  #read = 0
  #wanted: string | undefined
  #reached: PromiseWithResolvers<void> | undefined
  #held: number | undefined

  constructor(log: string) {
    this.#log = log
    this.#tending = this.#tend()
  }

  /** Resolves when a daemon stands still at `step`, from now on. It goes on by `pass`, unless it is killed there. */
  async until(step: string, limitMs = 30_000): Promise<void> {
    this.#wanted = step
    this.#reached = Promise.withResolvers()
    const late = Promise.withResolvers<never>()
    const limit = setTimeout(() => late.reject(new Error(`No daemon came to ${step}`)), limitMs * timeFactor)
    await Promise.race([this.#reached.promise, late.promise]).finally(() => clearTimeout(limit))
  }

  pass(): void {
    if (this.#held !== undefined) process.kill(this.#held, 'SIGCONT')
    this.#held = undefined
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort()
    await this.#tending
  }

  async #tend(): Promise<void> {
    const { signal } = this.#closing
    while (!signal.aborted) {
      for (const { at, pid } of this.#newStops()) await this.#attend(at, pid)
      const hasMore = () => (statSync(this.#log, { throwIfNoEntry: false })?.size ?? 0) > this.#read
      await pollUntil('a daemon to write to its log', hasMore, { signal }, { everyMs: 2, upToMs: 8 }).catch(() => undefined)
    }
  }

  async #attend(at: string, pid: number): Promise<void> {
    const state = () => stateOf(pid)
    await pollUntil(`the daemon to stop at ${at}`, () => state() !== 'runs', { signal: AbortSignal.timeout(10_000) }, { everyMs: 1 })
    if (at === this.#wanted) {
      this.#wanted = undefined
      this.#held = pid
      this.#reached?.resolve()
    } else if (state() === 'stands') process.kill(pid, 'SIGCONT')
  }

  /** Where daemons have stopped since the last look. */
  #newStops(): { at: string; pid: number }[] {
    if (statSync(this.#log, { throwIfNoEntry: false }) === undefined) return []
    const whole = readFileSync(this.#log).subarray(this.#read)
    const end = whole.lastIndexOf('\n') + 1
    this.#read += end
    const lines = whole.subarray(0, end).toString('utf8').split('\n')
    return lines.filter((line) => line.includes('"msg":"daemon stops itself"')).map((line) => JSON.parse(line))
  }
}

function stateOf(pid: number): 'runs' | 'stands' | 'gone' {
  try {
    // proc_pid_stat(5): the state follows the name of the program, which is in parentheses. T: stopped by a signal.
    return /\) T /.test(readFileSync(`/proc/${pid}/stat`, 'latin1')) ? 'stands' : 'runs'
  } catch {
    return 'gone'
  }
}
