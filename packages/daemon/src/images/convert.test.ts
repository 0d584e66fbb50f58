import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { Paths } from '../paths.ts'
import { BlobStore } from './blob-store.ts'
import type { ConvertJob } from './conversion-job.ts'
import { convert } from './convert.ts'
import { DEFAULT_LIMITS } from './limits.ts'
import { type ImageFixture, imageOf, sha256, tarOf } from './tar-fixtures.ts'

const signal = new AbortController().signal
const watcher = { onProgress: () => undefined, onConverting: () => undefined }

/** An image of two layers whose layers are in the store, and the work to convert it by a configuration that lies about the first. */
async function lyingImage(t: TestContext): Promise<{ store: BlobStore; image: ImageFixture; paths: Paths; job: ConvertJob }> {
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const dirs = { dataDir: join(dir, 'data'), runDir: join(dir, 'run') }
  const paths = new Paths(dirs)
  const store = new BlobStore(paths)
  await store.prepare()
  const image = imageOf([tarOf([{ name: 'a', content: 'x' }]), tarOf([{ name: 'b', content: 'y' }])])
  for (const { digest } of image.layers) writeFileSync(paths.imageLayer(digest), image.blobs.get(digest) ?? assert.fail())
  const diffIds = [sha256(Buffer.from('other')), sha256(Buffer.from('another'))]
  const job = { kind: 'convert', dirs, drafts: '', layers: image.layers, diffIds, rootfs: join(dir, 'rootfs') } as const
  return { store, image, paths, job: { ...job, compression: 'lz4', limits: DEFAULT_LIMITS } }
}

test('a configuration that lies about a layer costs no other image the layer', async (t) => {
  const { store, image, job } = await lyingImage(t)
  await assert.rejects(convert(job, watcher, signal), { code: 'invalid_image', message: /unpacks to sha256/ })
  for (const { digest, size } of image.layers) assert.equal(await store.sizeOf(digest), size)
})

test('a stored layer that has rotted is removed, so that the next pull gets a fresh one', async (t) => {
  const { store, image, paths, job } = await lyingImage(t)
  const [first, second] = image.layers
  assert.ok(first && second)
  // A byte of the time in the header of gzip: it unpacks to the same.
  const rotted = Buffer.from(image.blobs.get(first.digest) ?? assert.fail())
  rotted[4] = (rotted[4] ?? 0) ^ 1
  writeFileSync(paths.imageLayer(first.digest), rotted)
  await assert.rejects(convert(job, watcher, signal), { code: 'invalid_image', message: /unpacks to sha256/ })
  assert.equal(await store.sizeOf(first.digest), undefined)
  assert.equal(await store.sizeOf(second.digest), second.size)
})
