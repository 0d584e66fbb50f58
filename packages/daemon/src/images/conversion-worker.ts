/**
 * The process that pulls, hashes, decompresses and merges, so that the daemon neither waits for any of it nor falls with it. One
 * job, which comes as the first message, then it ends. It says what happens by messages and touches nothing but the store's files.
 * Standard input is the archive that is uploaded, where there is one.
 */
import { Paths } from '../paths.ts'
import { openArchive, readArchive } from './archive.ts'
import { checkedConfig, imageInArchive } from './archive-image.ts'
import { BlobStore } from './blob-store.ts'
import type { FromWorker, Ingested, IngestJob, Job, ToWorker } from './conversion-job.ts'
import { toPlainError } from './conversion-job.ts'
import { convert } from './convert.ts'

const PROGRESS_EVERY_MS = 100

const cancel = new AbortController()
const stored = new Set<string>()

process.on('message', (message: ToWorker) => {
  if (message.kind === 'cancel') cancel.abort(new Error('The conversion was cancelled'))
  else void run(message.job)
})
// The daemon is gone: the next one sweeps, and begins again.
process.on('disconnect', () => process.exit(1))

async function run(job: Job): Promise<void> {
  try {
    end({ kind: 'done', result: job.kind === 'convert' ? await convert(job, watcher(), cancel.signal) : await ingest(job) })
  } catch (error) {
    end({ kind: 'failed', error: toPlainError(error) })
  }
}

const say = (message: FromWorker): void => {
  process.send?.(message)
}

/** The last word. A standard input that nobody reads to its end would keep the process. */
const end = (message: FromWorker): void => {
  process.send?.(message, () => process.exit(0))
}

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
  const store = new BlobStore(new Paths(job.dirs), job.drafts)
  const archive =
    job.path === undefined
      ? await readArchive(uploaded(), store, job.limits, stored)
      : await openArchive(job.path, store, job.limits, stored)
  const image = await imageInArchive(archive, { platform: job.platform, ...(job.name === undefined ? {} : { name: job.name }) }, job.limits)
  checkedConfig(image)
  return { image, stored: [...stored] }
}

/** The upload; a daemon that has lost it says so by a message. */
function uploaded(): AsyncIterable<Buffer> {
  cancel.signal.addEventListener('abort', () => process.stdin.destroy(cancel.signal.reason))
  return process.stdin
}
