/**
 * The process that pulls, hashes, decompresses and merges, so that the daemon neither waits for any of it nor falls with it. One
 * job, which comes as the first message, then it ends. It says what happens by messages and touches nothing but the store's files.
 * Standard input is the archive that is uploaded, where there is one.
 */
import { open } from 'node:fs/promises'
import { Readable } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import { CommandError, runCommand } from '../host/run-command.ts'
import { Paths } from '../paths.ts'
import { openArchive, readArchive } from './archive.ts'
import { checkedConfig, imageInArchive } from './archive-image.ts'
import { BlobStore } from './blob-store.ts'
import type { Converted, Filled, FillJob, FromWorker, Ingested, IngestJob, Job, Pushed, ToWorker } from './conversion-job.ts'
import { toPlainError } from './conversion-job.ts'
import { convert } from './convert.ts'
import { readPlainPath } from './layer-path.ts'
import { LayerMerge, TakesTwoPasses } from './merged-tar.ts'
import { invalidImage, tooLarge } from './tar-entry.ts'

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
    end({ kind: 'done', result: await resultOf(job) })
  } catch (error) {
    end({ kind: 'failed', error: toPlainError(error) })
  }
}

async function resultOf(job: Job): Promise<Converted | Ingested | Filled | Pushed> {
  switch (job.kind) {
    case 'convert':
      return convert(job, watcher(), cancel.signal)
    case 'ingest':
      return ingest(job)
    case 'fill':
      return fill(job)
    case 'push': {
      // The HTTP client is half of what this process would load: not for the others.
      const { pushImage } = await import('./push/push-image.ts')
      return pushImage(job, cancel.signal)
    }
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

/** One pass: what comes is checked, written anew and handed to the program that knows the file system. */
async function fill({ file, program, user, limits }: FillJob): Promise<Filled> {
  const merge = new LayerMerge(limits, readPlainPath)
  let entries = 0
  const tar = merge.scanAndStream({ open: uploaded }, (scanned) => {
    entries = scanned.entries
  })
  const input = Readable.from(tar, { objectMode: false, highWaterMark: 1 << 20 })
  try {
    // By descriptor: its user need not get through to where the file lies.
    await using disk = await open(file, 'r+')
    const as = { inherit: [disk.fd], ...(user === undefined ? {} : { user }) }
    await runCommand([program, '/proc/self/fd/3'], { step: { signal: cancel.signal }, input, ...as })
  } catch (error) {
    throw whyNotFilled(error)
  }
  return { entries }
}

const DOES_NOT_FIT = 3
const CANNOT_BE = 4
const HOST_IS_FULL = 5

function whyNotFilled(error: unknown): unknown {
  if (!(error instanceof CommandError)) return error
  const { cause, exitCode, stderr } = error
  if (cause instanceof TakesTwoPasses) return invalidImage('An entry of the archive takes the place of another')
  if (cause instanceof Error && error.message.includes('lost its input')) return cause
  if (exitCode === DOES_NOT_FIT) return tooLarge(`The archive does not fit into the volume: ${stderr.slice(-300)}`)
  if (exitCode === HOST_IS_FULL) return new AppError('insufficient_resources', 'The disk of the data directory is full', { cause: error })
  if (exitCode === CANNOT_BE) return invalidImage(`An entry of the archive cannot be: ${stderr.slice(-300)}`)
  return error
}

/** The upload; a daemon that has lost it says so by a message. */
function uploaded(): AsyncIterable<Buffer> {
  cancel.signal.addEventListener('abort', () => process.stdin.destroy(cancel.signal.reason))
  return process.stdin
}
