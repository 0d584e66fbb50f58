/**
 * The kernel's word on who is connected to the guests of a bridge, by way of one small program that follows it (shim/conntrack.c): it is
 * started with the first question and ends with the daemon. Questions are answered in the order in which they were asked.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { IgnoredConnections, Inbound } from '../hypervisors/hypervisor.ts'
import { ignoredWords, parseInbound } from '../hypervisors/inbound-words.ts'
import type { Step } from '../lib/step.ts'
import { formatSubnet4, formatSubnet6, type Subnet4, type Subnet6 } from '../lib/subnet.ts'
import type { Logger } from '../log.ts'

export interface ConntrackUses {
  readonly shimPath: string
  readonly subnet4: Subnet4
  readonly subnet6: Subnet6
  readonly log: Logger
}

const ANSWER_LIMIT_MS = 5000
const MAX_LINE = 4096
const TOLD_MAX = 2000

/** One life of the program. */
interface Life {
  readonly child: ChildProcessByStdio<Writable, Readable, Readable>
  readonly waiting: PromiseWithResolvers<string>[]
}

export class Conntrack implements AsyncDisposable {
  readonly #uses: ConntrackUses
  #life: Life | undefined
  /** When a life ended that was not to end, and with it all that it had seen. */
  #lostAt: number | undefined
  #isClosed = false

  constructor(uses: ConntrackUses) {
    this.#uses = uses
  }

  /** Of the guest with that number in its subnets. Throws `not_supported` with the reason where the kernel cannot be followed. */
  async inbound(host: number, ignored: IgnoredConnections, step: Step): Promise<Inbound> {
    const life = this.#live()
    const asked = Promise.withResolvers<string>()
    asked.promise.catch(() => undefined)
    life.waiting.push(asked)
    life.child.stdin.write(`inbound ${[host, ...ignoredWords(ignored)].join(' ')}\n`)
    const signal = AbortSignal.any([step.signal, AbortSignal.timeout(ANSWER_LIMIT_MS)])
    const onAbort = (): void =>
      asked.reject(new AppError('timed_out', 'The connections of a guest could not be counted in time', { cause: signal.reason }))
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      if (signal.aborted) onAbort()
      const inbound = parseInbound(answerOf(await asked.promise))
      // Someone may have been there until then: no one knows.
      if (inbound.quietMs !== undefined || this.#lostAt === undefined) return inbound
      return { ...inbound, quietMs: Math.round(performance.now() - this.#lostAt) }
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true
    const child = this.#life?.child
    if (child === undefined) return
    const closed = new Promise((resolve) => child.once('close', resolve))
    child.kill('SIGKILL')
    await closed
  }

  #live(): Life {
    if (this.#isClosed) throw new AppError('shutting_down', 'The daemon is shutting down')
    if (this.#life !== undefined) return this.#life
    const { shimPath, subnet4, subnet6, log } = this.#uses
    const child = spawn(shimPath, ['conntrack', formatSubnet4(subnet4), formatSubnet6(subnet6)], {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: {},
    })
    // It is no reason for the daemon to stay, and has ended soon after it.
    child.unref()
    const life: Life = { child, waiting: [] }
    this.#life = life
    let [text, told] = ['', '']
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      const lines = (text + chunk).split('\n')
      text = (lines.pop() ?? '').slice(-MAX_LINE)
      for (const line of lines) {
        if (line === 'ready') continue
        // What it says in place of an answer before it ends is the reason of that.
        if (line.startsWith('error ') && life.waiting.length === 0) told = line
        else life.waiting.shift()?.resolve(line)
      }
    })
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
      told = (told + chunk).slice(-TOLD_MAX)
    })
    child.stdin.on('error', () => undefined)
    child.once('error', (error) => {
      told = error.message
    })
    child.once('close', (code, signal) => {
      if (this.#life === life) this.#life = undefined
      const cause = new Error(told.trim() || `it ended with ${signal ?? code}`)
      for (const asked of life.waiting)
        asked.reject(new AppError('not_supported', 'The connections of guests cannot be counted', { cause }))
      if (this.#isClosed) return
      this.#lostAt = performance.now()
      log.warn({ err: cause }, 'what follows the connections of guests has ended; the next question starts it anew')
    })
    return life
  }
}

function answerOf(line: string): string {
  if (line.startsWith('ok ')) return line.slice('ok '.length)
  throw new AppError('internal_error', `The connections of a guest were not counted: ${line.slice(0, 200)}`)
}
