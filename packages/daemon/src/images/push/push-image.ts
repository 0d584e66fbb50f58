import { Readable } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import { Paths } from '../../paths.ts'
import { BlobStore } from '../blob-store.ts'
import type { Pushed, PushJob } from '../conversion-job.ts'
import { mediaTypeOf } from '../manifest.ts'
import { RegistryClient } from '../registry-client.ts'
import { retrying } from './retry.ts'

/** What is sent: a layer of the store, or the configuration. */
interface Blob {
  readonly digest: string
  readonly size: number
  open(from: number): Readable
}

const PARALLEL_UPLOADS = 3
// A registry that takes nothing for so long is as good as gone.
const STALL_MS = 60_000

/**
 * Image to registry: blobs that it does not have, a few at a time, then the manifest, by which the image is there. A blob that was cut
 * goes on where the registry says that it ended. What has arrived stays there when the push fails: the next one finds it.
 */
export async function pushImage(job: PushJob, signal: AbortSignal): Promise<Pushed> {
  const { origin, tag, credentials, policy, mountFrom } = job.to
  const store = new BlobStore(new Paths(job.dirs))
  const layers = [...new Map(job.layers.map((layer) => [layer.digest, layer])).values()]
  const blobs: Blob[] = []
  for (const { digest, size } of layers) {
    if ((await store.sizeOf(digest)) !== size) throw layerGone(digest)
    blobs.push({ digest, size, open: (from) => store.read(digest, { start: from }) })
  }
  const config = Buffer.from(job.config.bytes)
  blobs.push({ digest: job.config.digest, size: config.length, open: (from) => Readable.from([config.subarray(from)]) })

  const push = { mountFrom }
  await using client = new RegistryClient({ ...origin, credentials, policy, maxDocumentBytes: job.limits.maxDocumentBytes, push })
  const waiting = [...blobs]
  const givingUp = new AbortController()
  const either = AbortSignal.any([signal, givingUp.signal])
  const lane = async (): Promise<void> => {
    for (let blob = waiting.shift(); blob; blob = waiting.shift()) await pushBlob(client, blob, mountFrom, either)
  }
  const lanes = Array.from({ length: PARALLEL_UPLOADS }, () => lane())
  try {
    await Promise.all(lanes)
  } catch (error) {
    givingUp.abort(error)
    await Promise.allSettled(lanes)
    throw error
  }
  const manifest = { bytes: Buffer.from(job.manifest), mediaType: mediaTypeOf(Buffer.from(job.manifest)) }
  await retrying(() => client.putManifest(tag, manifest, signal), { signal })
  return { layers: job.layers.length, bytes: layers.reduce((sum, { size }) => sum + size, 0) }
}

async function pushBlob(client: RegistryClient, blob: Blob, mountFrom: string | undefined, signal: AbortSignal): Promise<void> {
  let location: URL | undefined
  let furthest = 0
  let isFurther = false
  const attempt = async (): Promise<void> => {
    isFurther = false
    // Also after a failure: the registry may have taken the last of it, and only the answer been lost.
    if (await client.hasBlob(blob.digest, signal)) return
    let from = location && (await client.uploadedBytes(location, signal))
    if (from === undefined || from > blob.size) {
      from = 0
      const begun = await client.beginUpload(signal, mountFrom === undefined ? undefined : { digest: blob.digest, from: mountFrom })
      if (!begun) return
      location = begun
    }
    if (from > furthest) {
      furthest = from
      isFurther = true
    }
    if (location && from < blob.size) location = await sendBlob(client, location, blob, from, signal)
    if (location) await client.finishUpload(location, blob.digest, signal)
  }
  await retrying(attempt, { signal, isGettingOn: () => isFurther })
}

/** Sends what is left, and ends when the registry stops taking it. */
async function sendBlob(client: RegistryClient, location: URL, blob: Blob, from: number, signal: AbortSignal): Promise<URL> {
  const stalled = new AbortController()
  const watch = setTimeout(() => stalled.abort(), STALL_MS)
  const open = (): Readable =>
    Readable.from(
      watched(
        () => blob.open(from),
        () => watch.refresh(),
      ),
      { objectMode: false },
    )
  try {
    return await client.appendUpload(location, { open, from, size: blob.size }, AbortSignal.any([signal, stalled.signal]))
  } catch (error) {
    if (!stalled.signal.aborted || signal.aborted) throw error
    throw new AppError('registry_unavailable', `The registry took nothing of the blob ${blob.digest} for ${STALL_MS / 1000} s`)
  } finally {
    clearTimeout(watch)
  }
}

/** Opened when it is read: a request that fails before leaves no file open. */
async function* watched(open: () => Readable, onChunk: () => void): AsyncGenerator<Buffer, void, void> {
  for await (const chunk of open() as AsyncIterable<Buffer>) {
    onChunk()
    yield chunk
  }
}

function layerGone(digest: string): AppError {
  return new AppError('image_not_ready', `The layer ${digest} of the image is no longer on this host`, {
    hint: 'Pull or import the image again, then push it',
  })
}
