/**
 * One health check, asked of the guest from within: the agent connects to the port, or runs the program. So it is the same in every kind of
 * network and without one, needs no port of the host, and no program in the image. The guest is not trusted with more than a few words.
 */
import { once } from 'node:events'
import { type IncomingMessage, request } from 'node:http'
import type { Duplex, Readable } from 'node:stream'
import { connect as connectTls } from 'node:tls'
import { AppError } from '@dormouse/api/errors.ts'
import { formatDuration } from '@dormouse/api/units.ts'
import type { GuestClient, GuestExec } from '../guest/guest-client.ts'
import type { HealthCheck, HealthProbe } from '../instances/instance.ts'
import type { Step } from '../lib/step.ts'
import type { CheckResult } from './verdict.ts'

export interface CheckUses {
  readonly guest: Pick<GuestClient, 'dial' | 'exec'>
  /** The guest's own; its loopback when it has none. */
  readonly address?: string | undefined
  /** Its signal ends the wait for the guest; the check's own limit is part of the check. */
  readonly step: Step
}

type Probe<Kind> = Extract<HealthProbe, { kind: Kind }>

const ERROR_MAX = 500
/** Of a program's output; what comes then is passed over. */
const OUTPUT_KEPT = 2048
/** Beyond it a program is not checking anything any more. */
const OUTPUT_MAX = 1 << 20
/** From the end of a program's time to the guest's word that it is gone. */
const LAST_WORDS_MS = 5000

/** Never throws. */
export async function perform({ probe, timeoutMs }: HealthCheck, uses: CheckUses): Promise<CheckResult> {
  const limit = AbortSignal.timeout(timeoutMs + (probe.kind === 'exec' ? LAST_WORDS_MS : 0))
  const step = { ...uses.step, signal: AbortSignal.any([uses.step.signal, limit]) }
  try {
    const error = await failureOf(probe, timeoutMs, { ...uses, step })
    return error === undefined ? { kind: 'success' } : { kind: 'failure', error: plain(error) }
  } catch (thrown) {
    if (limit.aborted) return { kind: 'failure', error: lateness(timeoutMs) }
    const error = plain(thrown instanceof Error ? thrown.message : String(thrown))
    const isNoAnswer = thrown instanceof AppError && NO_ANSWERS.has(thrown.code)
    return { kind: isNoAnswer || step.signal.aborted ? 'inconclusive' : 'failure', error }
  }
}

/** A guest that is older than the question, stands still for a capture, or has ended. */
const NO_ANSWERS: ReadonlySet<string> = new Set(['not_supported', 'conflict', 'invalid_state'])

const lateness = (timeoutMs: number): string => `it took longer than ${formatDuration(timeoutMs)}`

/** What was not as it should be; undefined when all was. */
function failureOf(probe: HealthProbe, timeoutMs: number, uses: CheckUses): Promise<string | undefined> {
  switch (probe.kind) {
    case 'none':
      return Promise.resolve(undefined)
    case 'tcp':
      return withConnection(probe.port, timeoutMs, uses, async () => undefined)
    case 'http':
      return withConnection(probe.port, timeoutMs, uses, (connection) => answerTo(probe, connection, uses))
    case 'exec':
      return endOf(probe, timeoutMs, uses)
  }
}

async function withConnection<T>(port: number, timeoutMs: number, uses: CheckUses, use: (connection: Duplex) => Promise<T>): Promise<T> {
  const { guest, address, step } = uses
  const connection = await guest.dial({ port, timeoutMs, ...(address !== undefined && { address }) }, step)
  // What is asked over it is told of its end; nothing else listens.
  connection.on('error', () => undefined)
  try {
    return await use(connection)
  } finally {
    connection.destroy()
  }
}

/** A GET, of which only the status is looked at: no redirect is followed, no body read. */
async function answerTo(probe: Probe<'http'>, connection: Duplex, { address = 'localhost', step }: CheckUses): Promise<string | undefined> {
  const { scheme, port, path, expectedStatus } = probe
  // Who is asked is the guest itself: there is no one whose certificate could prove more.
  const line = scheme === 'https' ? connectTls({ socket: connection, rejectUnauthorized: false }) : connection
  const asking = request({
    path,
    headers: { host: `${address}:${port}`, 'user-agent': 'dormouse-health-check', accept: '*/*', connection: 'close' },
    createConnection: () => line,
  })
  // Whichever of them the other side breaks, and when, is told by the one that is waited for.
  for (const part of [line, asking]) part.on('error', () => undefined)
  try {
    asking.end()
    const [answer] = (await once(asking, 'response', { signal: step.signal })) as [IncomingMessage]
    answer.on('error', () => undefined)
    const { statusCode } = answer
    return statusCode === expectedStatus ? undefined : `it answered ${statusCode}, not ${expectedStatus}`
  } finally {
    asking.destroy()
    line.destroy()
  }
}

async function endOf({ command, workingDir }: Probe<'exec'>, timeoutMs: number, { guest, step }: CheckUses): Promise<string | undefined> {
  const asked = { command, timeoutMs, ...(workingDir !== undefined && { cwd: workingDir }) }
  const program = await guest.exec(asked, step)
  const stop = (): void => program.kill()
  step.signal.addEventListener('abort', stop, { once: true })
  try {
    program.stdin.end()
    const [{ code, message }, output] = await Promise.all([orAborted(program.exit, step.signal), outputOf(program)])
    if (output === undefined) return `it wrote more than ${OUTPUT_MAX >> 20} MiB`
    if (code === 124) return lateness(timeoutMs)
    return code === 0 ? undefined : `${message}${output === '' ? '' : `: ${output}`}`
  } finally {
    step.signal.removeEventListener('abort', stop)
  }
}

async function orAborted<T>(awaited: Promise<T>, signal: AbortSignal): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>()
  const giveUp = (): void => reject(signal.reason)
  if (signal.aborted) giveUp()
  else signal.addEventListener('abort', giveUp, { once: true })
  try {
    return await Promise.race([awaited, promise])
  } finally {
    signal.removeEventListener('abort', giveUp)
  }
}

/** The beginning of what it writes, errors first. Undefined when it was killed for writing without end. */
async function outputOf(program: GuestExec): Promise<string | undefined> {
  let total = 0
  const kept = { err: '', out: '' }
  const read = async (stream: Readable, where: keyof typeof kept): Promise<void> => {
    try {
      for await (const chunk of stream as AsyncIterable<Buffer>) {
        total += chunk.length
        if (total > OUTPUT_MAX) return program.kill()
        if (kept[where].length < OUTPUT_KEPT) kept[where] += chunk.toString('utf8', 0, OUTPUT_KEPT)
      }
    } catch {
      // The guest was lost, which the program's end tells.
    }
  }
  await Promise.all([read(program.stderr, 'err'), read(program.stdout, 'out')])
  return total > OUTPUT_MAX ? undefined : `${kept.err}${kept.out}`.trim()
}

/** One line of bounded length, safe to print. */
const plain = (text: string): string =>
  text
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
    .replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, ' ')
    .trim()
    .slice(0, ERROR_MAX)
