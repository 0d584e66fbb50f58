import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough, Readable } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import { Paths } from '../../paths.ts'
import { BlobStore } from '../blob-store.ts'
import { digestOf } from '../digest.ts'
import { RegistryError } from './registry-error.ts'
import { type Upload, type UploadLimits, type UploadPart, Uploads } from './uploads.ts'

interface Desk {
  readonly uploads: Uploads
  readonly paths: Paths
  /** Which repository was given which blob. */
  readonly given: string[]
  drafts(): string[]
}

async function desk(
  t: TestContext,
  limits: Partial<UploadLimits> = {},
  checkRoom: (bytes: number) => Promise<void> = async () => undefined,
): Promise<Desk> {
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  const paths = new Paths({ dataDir: join(dir, 'data'), runDir: join(dir, 'run') })
  const store = new BlobStore(paths)
  await store.prepare()
  const given: string[] = []
  const uploads = new Uploads({
    store,
    checkRoom,
    limits: {
      maxUploads: 4,
      maxPerOwner: 4,
      maxBlobBytes: 1000,
      forgottenAfterMs: 1000,
      emptyForgottenAfterMs: 100,
      idleLimitMs: 60_000,
      ...limits,
    },
    onVerified: async (repository, digest) => void given.push(`${repository} ${digest}`),
  })
  t.after(async () => {
    await uploads[Symbol.asyncDispose]()
    assert.deepEqual(readdirSync(paths.imageDraftsDir), [])
    rmSync(dir, { recursive: true })
  })
  return { uploads, paths, given, drafts: () => readdirSync(paths.imageDraftsDir) }
}

const part = (text: string, range?: UploadPart['range']): UploadPart => ({
  source: Readable.from([Buffer.from(text)]),
  range,
  cut: () => undefined,
})
const nothing: UploadPart = { source: Readable.from([]), cut: () => undefined }
const refused = (code: string) => (error: unknown) => error instanceof RegistryError && error.code === code

test('a blob comes in parts and has its place under its digest', async (t) => {
  const { uploads, paths, given } = await desk(t)
  const upload = await uploads.begin('r')
  await upload.append(part('one ', { from: 0, to: 3 }))
  await upload.append(part('two', { from: 4, to: 6 }))
  const digest = digestOf(Buffer.from('one two'))
  assert.deepEqual(await upload.finish(digest, nothing), { digest, size: 7 })
  assert.equal(readFileSync(paths.imageLayer(digest), 'utf8'), 'one two')
  assert.deepEqual(given, [`r ${digest}`])
  assert.throws(() => uploads.get('r', upload.id), refused('BLOB_UPLOAD_UNKNOWN'))
})

test('what has another digest is given up and given to no one', async (t) => {
  const { uploads, paths, given, drafts } = await desk(t)
  const upload = await uploads.begin('r')
  await assert.rejects(upload.finish(digestOf(Buffer.from('other')), part('this')), refused('DIGEST_INVALID'))
  assert.deepEqual([given, drafts(), readdirSync(paths.imageLayersDir)], [[], [], []])
})

test('the digest may be of sha512, also when only the end says so', async (t) => {
  const { uploads } = await desk(t)
  const digest = digestOf(Buffer.from('x'), 'sha512')
  await (await uploads.begin('r')).finish(digest, part('x'))
  const known = await uploads.begin('r', { algorithm: 'sha512' })
  await known.append(part('x'))
  await known.finish(digest, nothing)
  const late = await uploads.begin('r')
  await late.append(part('x'))
  await assert.rejects(late.finish(digest, nothing), refused('DIGEST_INVALID'))
})

test('an upload belongs to its repository', async (t) => {
  const { uploads } = await desk(t)
  const mine = await uploads.begin('mine')
  assert.throws(() => uploads.get('yours', mine.id), refused('BLOB_UPLOAD_UNKNOWN'))
  assert.equal(uploads.get('mine', mine.id), mine)
})

test('there are so many at once: what is idle gives way, what is being written does not', async (t) => {
  const { uploads, drafts } = await desk(t, { maxUploads: 2 })
  const [idle, busy] = [await uploads.begin('r'), await uploads.begin('r')]
  const source = new PassThrough()
  const writing = busy.append({ source, cut: () => undefined })
  const next = await uploads.begin('r')
  assert.throws(() => uploads.get('r', idle.id), refused('BLOB_UPLOAD_UNKNOWN'))
  await assert.rejects(idle.append(part('x')), refused('BLOB_UPLOAD_UNKNOWN'))
  const other = new PassThrough()
  const alsoWriting = next.append({ source: other, cut: () => undefined })
  await assert.rejects(uploads.begin('r'), refused('TOOMANYREQUESTS'))
  for (const stream of [source, other]) stream.end()
  await Promise.all([writing, alsoWriting])
  assert.equal(drafts().length, 2)
})

test('who begins too many loses only his own', async (t) => {
  const { uploads } = await desk(t, { maxUploads: 10, maxPerOwner: 3 })
  const yours = await uploads.begin('r', { owner: 'you' })
  const mine: Upload[] = []
  for (let n = 0; n < 20; n++) mine.push(await uploads.begin('r', { owner: 'me' }))
  assert.equal(uploads.count, 4)
  assert.equal(uploads.get('r', yours.id), yours)
  for (const kept of mine.slice(-3)) assert.equal(uploads.get('r', kept.id), kept)
})

test('where all together are too many, one gives way of who has most', async (t) => {
  const { uploads } = await desk(t, { maxUploads: 4, maxPerOwner: 4 })
  const yours = await uploads.begin('r', { owner: 'you' })
  const mine: Upload[] = []
  for (let n = 0; n < 3; n++) mine.push(await uploads.begin('r', { owner: 'me' }))
  await uploads.begin('r', { owner: 'third' })
  assert.throws(() => uploads.get('r', mine[0]?.id ?? ''), refused('BLOB_UPLOAD_UNKNOWN'))
  for (const kept of [yours, ...mine.slice(1)]) assert.equal(uploads.get('r', kept.id), kept)
})

test('a part that is too long, too short or out of place is refused', async (t) => {
  const { uploads, drafts } = await desk(t)
  const gap = await uploads.begin('r')
  await assert.rejects(gap.append(part('x', { from: 1, to: 1 })), refused('RANGE_INVALID'))
  // Nothing was taken: the client may do better.
  await gap.append(part('x', { from: 0, to: 0 }))
  await assert.rejects((await uploads.begin('r')).append(part('xyz', { from: 0, to: 1 })), refused('SIZE_INVALID'))
  await assert.rejects((await uploads.begin('r')).append(part('x', { from: 0, to: 1 })), refused('SIZE_INVALID'))
  await assert.rejects((await uploads.begin('r')).append(part('x'.repeat(1001))), refused('SIZE_INVALID'))
  assert.equal(drafts().length, 1)
})

test('a source that stalls ends its request; the upload goes on from there', async (t) => {
  const { uploads } = await desk(t, { idleLimitMs: 20 })
  const upload = await uploads.begin('r')
  const stalling = new PassThrough()
  stalling.write('begun')
  await assert.rejects(upload.append({ source: stalling, cut: () => undefined }), refused('BLOB_UPLOAD_INVALID'))
  assert.equal(upload.size, 5)
  await upload.append(part(' and ended', { from: 5, to: 14 }))
  await upload.finish(digestOf(Buffer.from('begun and ended')), nothing)
})

test('a request that comes while another has the upload takes it over', async (t) => {
  const { uploads } = await desk(t)
  const upload = await uploads.begin('r')
  const first = new PassThrough()
  first.write('from the first')
  const source = first.iterator({ destroyOnReturn: false })
  const taken = Promise.withResolvers<void>()
  const seen = (async function* () {
    for await (const chunk of source) {
      yield chunk
      taken.resolve()
    }
  })()
  const held = upload.append({ source: seen, cut: () => first.destroy() })
  const lost = assert.rejects(held)
  await taken.promise
  await upload.append(part(', then the second'))
  await lost
  await upload.finish(digestOf(Buffer.from('from the first, then the second')), nothing)
})

test('what is said to be too large is refused before any of it is read', async (t) => {
  const { uploads } = await desk(t)
  const source = new PassThrough()
  const upload = await uploads.begin('r')
  await assert.rejects(upload.append({ source, bytes: 1001, cut: () => undefined }), refused('SIZE_INVALID'))
  assert.equal(source.readableFlowing, null)
})

test('an upload that no one comes back for is given up', async (t) => {
  const { uploads, drafts } = await desk(t)
  const upload = await uploads.begin('r')
  await upload.append(part('x'))
  await uploads.collect(upload.touchedAtMs + 999)
  assert.equal(uploads.get('r', upload.id), upload)
  await uploads.collect(upload.touchedAtMs + 1000)
  assert.throws(() => uploads.get('r', upload.id), refused('BLOB_UPLOAD_UNKNOWN'))
  assert.deepEqual(drafts(), [])
  // Nothing of this one is lost.
  const empty = await uploads.begin('r')
  await uploads.collect(empty.touchedAtMs + 99)
  assert.equal(uploads.get('r', empty.id), empty)
  await uploads.collect(empty.touchedAtMs + 100)
  assert.throws(() => uploads.get('r', empty.id), refused('BLOB_UPLOAD_UNKNOWN'))
})

test('where the disk has no room nothing is begun', async (t) => {
  const full = new AppError('insufficient_resources', 'The disk is full')
  const { uploads, drafts } = await desk(t, {}, async () => Promise.reject(full))
  await assert.rejects(uploads.begin('r'), full)
  assert.deepEqual([uploads.count, drafts()], [0, []])
})

test('what is on its way is counted before it has come, and no longer than it is on its way', async (t) => {
  const told: (readonly [bytes: number, arriving: object])[] = []
  const { uploads } = await desk(t, {}, async (bytes) => void told.push([bytes, uploads.arriving]))
  const [one, two] = [await uploads.begin('r'), await uploads.begin('r', { expectedBytes: 100 })]
  await one.append(part('12345'))
  const source = new PassThrough()
  const writing = one.append({ source, bytes: 10, cut: () => void source.destroy(new Error('gone')) })
  source.write('678')
  while (one.size < 8) await new Promise((resolve) => setImmediate(resolve))
  assert.deepEqual(uploads.arriving, { bytes: 115, unwrittenBytes: 107 })
  source.destroy(new Error('gone'))
  await assert.rejects(writing, /gone/)
  assert.deepEqual(uploads.arriving, { bytes: 108, unwrittenBytes: 100 })
  await two.cancel()
  await one.finish(digestOf(Buffer.from('12345678')), nothing)
  assert.deepEqual(uploads.arriving, { bytes: 0, unwrittenBytes: 0 })
  assert.deepEqual(told, [
    [0, { bytes: 0, unwrittenBytes: 0 }],
    [100, { bytes: 100, unwrittenBytes: 100 }],
    // Of a part that does not say how long it is, when it has come.
    [0, { bytes: 105, unwrittenBytes: 100 }],
    [10, { bytes: 115, unwrittenBytes: 110 }],
  ])
})

test('of two uploads at once that one has room for, one is refused and nothing of it is left', async (t) => {
  const full = new AppError('insufficient_resources', 'There is no room')
  const { uploads, drafts } = await desk(t, {}, async () => {
    // As rooms do that look at a disk.
    await new Promise((resolve) => setImmediate(resolve))
    if (uploads.arriving.bytes > 100) throw full
  })
  const [one, two] = [await uploads.begin('r'), await uploads.begin('r')]
  const text = 'x'.repeat(60)
  const ends = await Promise.allSettled([one, two].map((upload) => upload.append({ ...part(text), bytes: text.length })))
  assert.deepEqual(
    ends.map(({ status }) => status),
    ['fulfilled', 'rejected'],
  )
  assert.deepEqual([uploads.count, drafts().length, uploads.arriving.bytes], [1, 1, 60])
  await assert.rejects(one.append(part('x'.repeat(50))), full)
  assert.deepEqual([uploads.count, drafts().length, uploads.arriving.bytes], [0, 0, 0])
})
