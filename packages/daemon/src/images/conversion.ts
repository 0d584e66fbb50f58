import { fork } from 'node:child_process'
import { setPriority } from 'node:os'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { AppError } from '@dormouse/api/errors.ts'
import { pollUntil } from '../host/poll-until.ts'
import {
  type Converted,
  type ConvertJob,
  type Filled,
  type FillJob,
  type FromWorker,
  fromPlainError,
  type Ingested,
  type IngestJob,
  type Job,
  type Pushed,
  type PushJob,
  type ToWorker,
} from './conversion-job.ts'

export interface JobOptions {
  readonly signal: AbortSignal
  readonly onProgress?: (layers: readonly number[]) => void
  readonly onConverting?: () => void
  /** What a fill job reads, and an ingest job without a path. */
  readonly input?: Readable
}

// Strangers' data is kept in buffers, which this does not count; it bounds what parsing and bookkeeping may take.
const MAX_HEAP_MB = 192
// Where short-lived objects are: it would grow to 16, and stay so, while headers of files pass through.
const MAX_SEMI_SPACE_MB = 1
const NICE = 5
// From the request to stop until the process is ended by force.
const CANCEL_GRACE_MS = 5000

/** Runs one job in a process of its own. Rejects with the job's own error; when `signal` aborts, with its reason. */
export function runJob(job: ConvertJob, options: JobOptions): Promise<Converted>
export function runJob(job: IngestJob, options: JobOptions): Promise<Ingested>
export function runJob(job: FillJob, options: JobOptions): Promise<Filled>
export function runJob(job: PushJob, options: JobOptions): Promise<Pushed>
export async function runJob(job: Job, options: JobOptions): Promise<Converted | Ingested | Filled | Pushed> {
  const { signal, input } = options
  signal.throwIfAborted()
  const worker = fork(workerFile(), {
    stdio: [input === undefined ? 'ignore' : 'pipe', 'ignore', 'pipe', 'ipc'],
    // Buffers go over as they are.
    serialization: 'advanced',
    // A group of its own, so that what it has started can be ended with it.
    detached: true,
    execArgv: [`--max-old-space-size=${MAX_HEAP_MB}`, `--max-semi-space-size=${MAX_SEMI_SPACE_MB}`, '--expose-gc'],
  })
  // What someone waits for in an instance goes first.
  worker.once('spawn', () => {
    if (worker.pid !== undefined && worker.exitCode === null) setPriority(worker.pid, NICE)
  })
  const tell = (message: ToWorker): void => {
    if (worker.connected) worker.send(message, () => undefined)
  }
  let killTimer: NodeJS.Timeout | undefined
  const cancel = (): void => {
    tell({ kind: 'cancel' })
    killTimer ??= setTimeout(() => worker.kill('SIGKILL'), CANCEL_GRACE_MS)
  }
  let said = ''
  worker.stderr?.on('data', (chunk: Buffer) => {
    said = (said + chunk.toString('utf8')).slice(-4096)
  })
  let uploadFailed: { reason: unknown } | undefined
  const ended = new Promise<string>((resolve) => {
    worker.once('error', (error) => resolve(error.message))
    worker.once('close', (code, by) => resolve(by ?? `code ${code}`))
  })
  signal.addEventListener('abort', cancel, { once: true })
  try {
    const answer = new Promise<Converted | Ingested | Filled | Pushed>((resolve, reject) => {
      worker.on('message', (message: FromWorker) => {
        switch (message.kind) {
          case 'progress':
            options.onProgress?.(message.layers)
            return
          case 'converting':
            try {
              options.onConverting?.()
            } catch (error) {
              reject(error)
            }
            return
          case 'done':
            resolve(message.result)
            return
          case 'failed':
            reject(fromPlainError(message.error))
        }
      })
      ended.then((how) => reject(died(how, said)))
    })
    tell({ kind: 'job', job })
    if (input && worker.stdin) {
      // When the upload is cut the process must not take what came for the whole.
      pipeline(input, worker.stdin).catch((error) => {
        uploadFailed = { reason: new AppError('invalid_image', 'The upload broke off', { cause: error }) }
        cancel()
      })
    }
    return await answer
  } catch (error) {
    if (signal.aborted) throw signal.reason
    throw uploadFailed ? uploadFailed.reason : error
  } finally {
    signal.removeEventListener('abort', cancel)
    killTimer ??= setTimeout(() => worker.kill('SIGKILL'), CANCEL_GRACE_MS)
    input?.destroy()
    await ended
    clearTimeout(killTimer)
    // One that ended by itself has waited for it.
    if (worker.pid !== undefined && worker.exitCode !== 0) await endGroup(worker.pid)
  }
}

/** A tar2sqfs whose worker was killed may only be about to make its file: whoever sweeps has to come after it. */
async function endGroup(pid: number): Promise<void> {
  const isGone = (): boolean => {
    try {
      return !process.kill(-pid, 'SIGKILL')
    } catch {
      return true
    }
  }
  if (isGone()) return
  await pollUntil('what a conversion had started to end', isGone, { signal: AbortSignal.timeout(CANCEL_GRACE_MS) }).catch(() => undefined)
}

function died(how: string, said: string): AppError {
  const detail = { how, said: said.slice(-1000) }
  // How Node ends when its heap is full.
  if (said.includes('heap out of memory'))
    return new AppError('image_too_large', 'The image needs more memory to be converted than is allowed', { detail })
  return new AppError('internal_error', `The process that converts images died (${how})`, { detail })
}

/** From source beside this file, and in a bundle beside that. */
function workerFile(): string {
  return fileURLToPath(new URL(import.meta.url.endsWith('.ts') ? './conversion-worker.ts' : './conversion-worker.js', import.meta.url))
}
