import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { Worker } from 'node:worker_threads'
import { AppError } from '@dormouse/api/errors.ts'
import {
  type Converted,
  type ConvertJob,
  type FromWorker,
  fromPlainError,
  type Ingested,
  type IngestJob,
  type Job,
  type ToWorker,
} from './conversion-job.ts'

export interface JobOptions {
  readonly signal: AbortSignal
  readonly onProgress?: (layers: readonly number[]) => void
  readonly onConverting?: () => void
  /** What an ingest job without a path reads. */
  readonly input?: Readable
  /** Blobs that a failed ingest has put into the store. */
  readonly onLeftBehind?: (stored: readonly string[]) => void
}

// Strangers' data is kept in buffers, which this does not count; it bounds what parsing and bookkeeping may take.
const MAX_HEAP_MB = 192
// From the request to stop until the thread is ended by force.
const CANCEL_GRACE_MS = 5000

/** Runs one job in a thread of its own. Rejects with the job's own error; when `signal` aborts, with its reason. */
export function runJob(job: ConvertJob, options: JobOptions): Promise<Converted>
export function runJob(job: IngestJob, options: JobOptions): Promise<Ingested>
export async function runJob(job: Job, options: JobOptions): Promise<Converted | Ingested> {
  const { signal, input } = options
  signal.throwIfAborted()
  const worker = new Worker(workerFile(), {
    workerData: job,
    stdin: input !== undefined,
    resourceLimits: { maxOldGenerationSizeMb: MAX_HEAP_MB },
    env: {},
    execArgv: [],
  })
  let uploadFailed: { reason: unknown } | undefined
  const cancel = (): void => {
    worker.postMessage({ kind: 'cancel' } satisfies ToWorker)
    setTimeout(() => void worker.terminate(), CANCEL_GRACE_MS).unref()
  }
  signal.addEventListener('abort', cancel, { once: true })
  const exited = new Promise<void>((resolve) => worker.once('exit', () => resolve()))
  try {
    const answer = new Promise<Converted | Ingested>((resolve, reject) => {
      worker.on('message', (message: FromWorker) => {
        switch (message.kind) {
          case 'progress':
            options.onProgress?.(message.layers)
            return
          case 'converting':
            options.onConverting?.()
            return
          case 'done':
            resolve(message.result)
            return
          case 'failed':
            options.onLeftBehind?.(message.stored)
            reject(fromPlainError(message.error))
        }
      })
      worker.once('error', (error) => reject(threadDied(error)))
      worker.once('exit', (code) => reject(threadDied(new Error(`The thread ended with code ${code}`))))
    })
    if (input && worker.stdin) {
      // When the upload is cut the thread must not take what came for the whole.
      pipeline(input, worker.stdin).catch((error) => {
        uploadFailed = { reason: new AppError('invalid_image', 'The upload of the image broke off', { cause: error }) }
        cancel()
      })
    }
    const result = await answer
    // Buffers come over as plain byte arrays.
    return 'image' in result
      ? { ...result, image: { ...result.image, manifest: Buffer.from(result.image.manifest), config: Buffer.from(result.image.config) } }
      : result
  } catch (error) {
    if (signal.aborted) throw signal.reason
    throw uploadFailed ? uploadFailed.reason : error
  } finally {
    signal.removeEventListener('abort', cancel)
    input?.destroy()
    const force = setTimeout(() => void worker.terminate(), CANCEL_GRACE_MS)
    await exited
    clearTimeout(force)
  }
}

function threadDied(cause: Error): AppError {
  if ((cause as NodeJS.ErrnoException).code === 'ERR_WORKER_OUT_OF_MEMORY') {
    return new AppError('image_too_large', 'The image needs more memory to be converted than is allowed', { cause })
  }
  return new AppError('internal_error', 'The thread that converts images died', { cause })
}

/** From source beside this file, and in a bundle beside that. */
function workerFile(): URL {
  return new URL(import.meta.url.endsWith('.ts') ? './conversion-worker.ts' : './conversion-worker.js', import.meta.url)
}
