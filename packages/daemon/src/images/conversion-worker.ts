/**
 * The thread that pulls, hashes, decompresses and merges, so that the daemon's own event loop never waits for any of it. One job,
 * then it ends. It says what happens by messages and touches nothing but the store's files.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { Paths } from '../paths.ts'
import { openArchive, readArchive } from './archive.ts'
import { checkedConfig, imageInArchive } from './archive-image.ts'
import { BlobStore } from './blob-store.ts'
import type { FromWorker, Ingested, IngestJob, Job, ToWorker } from './conversion-job.ts'
import { toPlainError } from './conversion-job.ts'
import { convert } from './convert.ts'

const PROGRESS_EVERY_MS = 100

const job = workerData as Job
const cancel = new AbortController()
const stored = new Set<string>()

const say = (message: FromWorker): void => parentPort?.postMessage(message)
parentPort?.on('message', (message: ToWorker) => {
  if (message.kind === 'cancel') cancel.abort(new Error('The conversion was cancelled'))
})

try {
  say({ kind: 'done', result: job.kind === 'convert' ? await convert(job, watcher(), cancel.signal) : await ingest(job) })
} catch (error) {
  say({ kind: 'failed', error: toPlainError(error), stored: [...stored] })
}
// A standard input that nobody reads to its end would keep the thread.
process.exit(0)

function watcher(): Parameters<typeof convert>[1] {
  let latest: readonly number[] = []
  let timer: NodeJS.Timeout | undefined
  const flush = (): void => {
    timer = undefined
    say({ kind: 'progress', layers: [...latest] })
  }
  return {
    onProgress(layers) {
      latest = layers
      timer ??= setTimeout(flush, PROGRESS_EVERY_MS).unref()
    },
    onConverting() {
      clearTimeout(timer)
      flush()
      say({ kind: 'converting' })
    },
  }
}

async function ingest(job: IngestJob): Promise<Ingested> {
  const store = new BlobStore(new Paths(job.dirs))
  const archive =
    job.path === undefined
      ? await readArchive(uploaded(), store, job.limits, stored)
      : await openArchive(job.path, store, job.limits, stored)
  const image = await imageInArchive(archive, { platform: job.platform, ...(job.name === undefined ? {} : { name: job.name }) }, job.limits)
  checkedConfig(image)
  return { image, stored: [...stored] }
}

/** The main thread hands an upload over as this thread's standard input. */
function uploaded(): AsyncIterable<Buffer> {
  cancel.signal.addEventListener('abort', () => process.stdin.destroy(cancel.signal.reason))
  return process.stdin
}
