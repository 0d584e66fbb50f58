import { AppError } from '@dormouse/api/errors.ts'
import { Paths } from '../paths.ts'
import { downloadBlob } from './blob-download.ts'
import { type BlobDraft, BlobStore } from './blob-store.ts'
import type { Converted, ConvertJob } from './conversion-job.ts'
import { algorithmOf } from './digest.ts'
import type { Descriptor } from './manifest.ts'
import { type LayerFile, LayerMerge, TakesTwoPasses } from './merged-tar.ts'
import type { RegistryClient } from './registry-client.ts'
import { writeRootfs } from './rootfs-writer.ts'
import { invalidImage } from './tar-entry.ts'

export interface ConversionWatcher {
  onProgress(layers: readonly number[]): void
  /** All layers are here and good. */
  onConverting(): void
}

const PARALLEL_DOWNLOADS = 3

/**
 * Layers to rootfs: downloads what is missing, a few at a time from the bottom, and looks through each layer while it arrives. The
 * rootfs is written when all are here and verified. On throw the rootfs file may be there in part; whole layers stay in the store.
 */
export async function convert(job: ConvertJob, watcher: ConversionWatcher, signal: AbortSignal): Promise<Converted> {
  const store = new BlobStore(new Paths(job.dirs), job.drafts)
  const givingUp = new AbortController()
  const step = { signal: AbortSignal.any([signal, givingUp.signal]) }
  await using stack = new AsyncDisposableStack()
  const arrivals = stack.use(await Arrivals.begin(job, store, watcher, step.signal))
  const write = (merge: LayerMerge, tar: AsyncIterable<Buffer>): Promise<{ sizeBytes: number }> =>
    writeRootfs(job.rootfs, tar, { compression: job.compression, inodes: () => merge.inodes, step })
  try {
    const [only, ...others] = job.layers
    if (only && others.length === 0) {
      const sizeBytes = await convertOne(job, only, arrivals, store, watcher, write)
      if (sizeBytes !== undefined) return { rootfsBytes: sizeBytes }
    }
    const merge = new LayerMerge(job.limits)
    for (const [index, layer] of job.layers.entries()) {
      const { diffId } = await orDamage(arrivals, layer, merge.scan(arrivals.file(layer.digest)))
      await checkDiffId(store, layer, diffId, job.diffIds[index])
      step.signal.throwIfAborted()
    }
    await arrivals.all
    watcher.onConverting()
    const { sizeBytes } = await write(merge, merge.stream())
    return { rootfsBytes: sizeBytes }
  } catch (error) {
    givingUp.abort(error)
    throw error
  }
}

/** An image of one layer is written while it arrives. Undefined when it takes two passes. */
async function convertOne(
  job: ConvertJob,
  layer: Descriptor,
  arrivals: Arrivals,
  store: BlobStore,
  watcher: ConversionWatcher,
  write: (merge: LayerMerge, tar: AsyncIterable<Buffer>) => Promise<{ sizeBytes: number }>,
): Promise<number | undefined> {
  const merge = new LayerMerge(job.limits)
  let diffId: string | undefined
  const tar = merge.scanAndStream(arrivals.file(layer.digest), (scanned) => {
    diffId = scanned.diffId
  })
  arrivals.all.then(
    () => watcher.onConverting(),
    () => undefined,
  )
  try {
    const { sizeBytes } = await orDamage(arrivals, layer, write(merge, tar))
    await arrivals.all
    await checkDiffId(store, layer, diffId, job.diffIds[0])
    return sizeBytes
  } catch (error) {
    if (error instanceof TakesTwoPasses) return undefined
    throw error
  }
}

/** What went wrong with a layer shows in its contents first; that its digest is wrong says more. */
async function orDamage<T>(arrivals: Arrivals, layer: Descriptor, work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (error) {
    if (!(error instanceof TakesTwoPasses)) await arrivals.arrived(layer.digest)
    throw error
  }
}

async function checkDiffId(store: BlobStore, layer: Descriptor, diffId: string | undefined, expected: string | undefined): Promise<void> {
  if (diffId === expected) return
  // A stored copy may have rotted: without it the next pull gets a fresh one. Where the configuration lies, others' images stand on it.
  await store.removeIfDamaged(layer.digest)
  throw invalidImage(`The layer ${layer.digest} unpacks to ${diffId}, but the image's configuration says ${expected}`)
}

/** The layers, on their way or in the store. */
class Arrivals implements AsyncDisposable {
  readonly #files = new Map<string, LayerFile>()
  readonly #arrived = new Map<string, Promise<void>>()
  readonly #drafts: BlobDraft[] = []
  readonly #client: RegistryClient | undefined

  private constructor(client: RegistryClient | undefined) {
    this.#client = client
  }

  static async begin(job: ConvertJob, store: BlobStore, watcher: ConversionWatcher, signal: AbortSignal): Promise<Arrivals> {
    const client = job.from && (await clientOf(job.from, job.limits))
    const arrivals = new Arrivals(client)
    const distinct = [...new Map(job.layers.map((layer) => [layer.digest, layer])).values()]
    const done = distinct.map(() => 0)
    const missing: { layer: Descriptor; index: number }[] = []
    for (const [index, layer] of distinct.entries()) {
      if ((await store.sizeOf(layer.digest)) === layer.size) {
        arrivals.#files.set(layer.digest, store.file(layer.digest))
        done[index] = layer.size
      } else missing.push({ layer, index })
    }
    watcher.onProgress(done)
    const lanes = lanesOf(PARALLEL_DOWNLOADS)
    for (const { layer, index } of missing) {
      if (!client) throw new AppError('internal_error', `The layer ${layer.digest} is not in the store`)
      const draft = await store.beginDraft(algorithmOf(layer.digest))
      arrivals.#drafts.push(draft)
      arrivals.#files.set(layer.digest, draft.tail)
      const arrived = lanes(async () => {
        signal.throwIfAborted()
        const onBytes = (total: number): void => {
          done[index] = total
          watcher.onProgress(done)
        }
        await downloadBlob(client, layer, draft, { signal, onBytes })
        await draft.publish(layer)
      }).catch(async (error) => {
        await draft.discard(error)
        throw error
      })
      arrived.catch(() => undefined)
      arrivals.#arrived.set(layer.digest, arrived)
    }
    return arrivals
  }

  file(digest: string): LayerFile {
    const file = this.#files.get(digest)
    if (!file) throw new Error(`No layer ${digest}`)
    return file
  }

  /** Resolves when the layer is whole and verified. */
  async arrived(digest: string): Promise<void> {
    await this.#arrived.get(digest)
  }

  get all(): Promise<unknown> {
    return Promise.all(this.#arrived.values())
  }

  /** Waits for what is under way: abort it first. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled(this.#arrived.values())
    for (const draft of this.#drafts) await draft.discard()
    await this.#client?.[Symbol.asyncDispose]()
  }
}

/** The HTTP client is half of what this thread would load: not for an import. */
async function clientOf(
  { origin, credentials, policy }: NonNullable<ConvertJob['from']>,
  limits: ConvertJob['limits'],
): Promise<RegistryClient> {
  const { RegistryClient } = await import('./registry-client.ts')
  return new RegistryClient({ ...origin, credentials, policy, maxDocumentBytes: limits.maxDocumentBytes })
}

/** Runs a few at a time, in the order given. */
function lanesOf(count: number): (work: () => Promise<void>) => Promise<void> {
  const waiting: (() => void)[] = []
  let free = count
  return async (work) => {
    if (free > 0) free--
    else await new Promise<void>((resolve) => waiting.push(resolve))
    try {
      await work()
    } finally {
      const next = waiting.shift()
      if (next) next()
      else free++
    }
  }
}
