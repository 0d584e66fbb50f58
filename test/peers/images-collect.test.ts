/** What of images is given up, and when a pull is refused for want of room; against Debian's docker-registry. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { statfs, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { digestOf } from '../../packages/daemon/src/images/digest.ts'
import { imageOf, layoutOf, sha256, tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { scratchDir } from '../harness/scratch.ts'
import { pushFixture, startRegistry } from './images-registry.ts'
import { assertNothingLeft, filesOf, openRoom, pullReady, type Room, step, writeFiles } from './images-room.ts'
import { refusalOf, serveRegistry } from './served-registry.ts'

const DAY = 24 * 3_600_000
const large = () => imageOf([tarOf([{ name: 'a', content: randomBytes(300_000) }])])

/** As if no one had used it since. */
function ageBy({ db }: Room, digest: string, days: number): void {
  db.prepare('UPDATE images SET used_at_ms = used_at_ms - ? WHERE digest = ?').run(days * DAY, digest)
}

test('what no one has used for so long goes, and a dry run says before what that is', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  const base = tarOf([{ name: 'base', content: randomBytes(5000) }])
  const [one, two] = [imageOf([base, tarOf([{ name: 'one' }])]), imageOf([base, tarOf([{ name: 'two' }])])]
  for (const [name, image] of [
    ['one', one],
    ['two', two],
  ] as const) {
    await pushFixture(registry, `lib/${name}`, 'v1', image)
    await pullReady(room, { name: `${registry}/lib/${name}:v1` })
  }
  const wanted = { which: 'unused', unusedForMs: 30 * DAY } as const
  assert.deepEqual((await room.images.collect(wanted)).names, [])
  ageBy(room, one.digest, 31)
  const before = await filesOf(room)
  const told = await room.images.collect({ ...wanted, dryRun: true })
  assert.deepEqual(told.names, [`${registry}/lib/one:v1`])
  assert.deepEqual(await filesOf(room), before)
  assert.deepEqual(await room.images.collect(wanted), told)
  // The layer that both have stays.
  const { layers, rootfs } = await filesOf(room)
  assert.deepEqual([layers.length, rootfs.length], [2, 1])
  assert.ok(told.bytes > 0)
  ageBy(room, two.digest, 31)
  await room.images.collect(wanted)
  await assertNothingLeft(room)
})

test('to name an image, to pull it again or to take it anew is to use it', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  const image = large()
  const name = `${registry}/lib/x:v1`
  await pushFixture(registry, 'lib/x', 'v1', image)
  await pullReady(room, { name })
  const goes = async (): Promise<boolean> =>
    (await room.images.collect({ which: 'unused', unusedForMs: DAY, dryRun: true })).digests.includes(image.digest)
  for (const use of [() => room.images.pull({ name }), () => room.images.tag(name, 'mine:1')]) {
    ageBy(room, image.digest, 2)
    assert.ok(await goes())
    await use()
    assert.ok(!(await goes()))
  }
})

test('what is held, stood on or on its way is not collected', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  const image = large()
  const name = `${registry}/lib/x:v1`
  await pushFixture(registry, 'lib/x', 'v1', image)
  await room.images.pull({ name })
  const wanted = { which: 'unused', unusedForMs: 0 } as const
  const { digests } = await room.images.collect({ ...wanted, dryRun: true })
  // It is under way still, so it was then; once it is over its image is no one's, and would go.
  if (room.images.readyImage(name) === undefined) assert.deepEqual(digests, [])
  await room.images.whenReady(name, step())
  {
    using _create = room.images.hold(image.digest)
    using _another = room.images.hold(image.digest)
    assert.deepEqual((await room.images.collect(wanted)).digests, [])
    await assert.rejects(room.images.remove(name), { code: 'in_use' })
  }
  room.inUse.add(image.digest)
  assert.deepEqual((await room.images.collect(wanted)).digests, [])
  room.inUse.clear()
  assert.deepEqual((await room.images.collect(wanted)).digests, [image.digest])
})

test('a collection that meets a pull of the same image leaves one that is whole, whichever is first', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  const image = large()
  const name = `${registry}/lib/x:v1`
  await pushFixture(registry, 'lib/x', 'v1', image)
  await pullReady(room, { name })
  for (let turn = 0; turn < 12; turn++) {
    const pulling = room.images.pull({ name })
    for (let n = 0; n < turn; n++) await new Promise(setImmediate)
    await room.images.collect({ which: 'unused', unusedForMs: 0 })
    await pulling
    // Where the collection came after the pull it has taken the image again.
    if (room.images.findImage(name) === undefined) await room.images.pull({ name })
    const { rootfs } = await room.images.whenReady(name, step())
    assert.ok(existsSync(rootfs.path))
  }
})

test('a daemon that dies between the rows of a collection and its files leaves none', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  await pushFixture(registry, 'lib/x', 'v1', large())
  await pullReady(room, { name: `${registry}/lib/x:v1` })
  room.crashAt = 'collect:image_files'
  void room.images.collect({ which: 'unused', unusedForMs: 0 })
  await room.crashed
  assert.equal((await filesOf(room)).rootfs.length, 1)
  const next = await room.restart()
  await assertNothingLeft(next)
})

test('files that no row speaks of go once they are old enough', async (t) => {
  const room = await openRoom(t)
  const digest = `sha256:${'1'.repeat(64)}`
  for (const file of [room.paths.imageLayer(digest), room.paths.imageRootfs(digest)]) await writeFile(file, 'x')
  assert.deepEqual((await room.images.collectStrays({ olderThanMs: DAY, dryRun: false })).names, [])
  assert.equal((await room.images.collectStrays({ olderThanMs: 0, dryRun: true })).names.length, 2)
  const { names, bytes } = await room.images.collectStrays({ olderThanMs: 0, dryRun: false })
  assert.deepEqual([names.length, bytes > 0], [2, true])
  await assertNothingLeft(room)
})

test('a blob that was pushed to us and waits for its manifest is neither collected nor told as what could go', async (t) => {
  const room = await openRoom(t)
  const content = randomBytes(8192)
  const upload = await room.images.registry.beginUpload('docker.io/library/x', {})
  const { digest } = await upload.finish(digestOf(content), { source: Readable.from([content]), cut: () => undefined })
  assert.deepEqual(await room.images.collectStrays({ olderThanMs: 0, dryRun: false }), { names: [], bytes: 0 })
  assert.ok(existsSync(room.paths.imageLayer(digest)))
  const { images, layers } = await room.images.diskUsage()
  assert.ok(layers.bytes >= content.length)
  assert.deepEqual([layers.count, layers.reclaimableBytes, images.reclaimableBytes], [1, 0, 0])
})

test('a pull that would take more than the images’ share of the disk is refused, with the figures; an import is not', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t, { maxStorageShare: 1e-12 })]
  const image = large()
  await pushFixture(registry, 'lib/x', 'v1', image)
  await assert.rejects(room.images.pull({ name: `${registry}/lib/x:v1` }), {
    code: 'insufficient_resources',
    message: /lib\/x:v1 is not pulled: with 1MB more, images would take 1MB and may take 1MB, which is 1e-12 of the disk/,
  })
  await assertNothingLeft(room)
  const layout = await writeFiles(join(await scratchDir(t), 'layout'), layoutOf(image))
  await room.images.importArchive({ path: layout }, 'mine:1')
  // What is here needs no room.
  assert.equal((await room.images.pull({ name: `${registry}/lib/x:v1` })).status, 'ready')
})

test('a pull that would leave too little of the disk is refused, unless room can be made', async (t) => {
  const asked: number[] = []
  const [registry, room] = [
    await startRegistry(t),
    await openRoom(t, { minFreeBytes: 2 ** 50 }, { makeRoom: async (bytes) => void asked.push(bytes) }),
  ]
  await pushFixture(registry, 'lib/x', 'v1', large())
  await assert.rejects(room.images.pull({ name: `${registry}/lib/x:v1` }), { code: 'insufficient_resources', message: /are to stay free/ })
  assert.equal(asked.length, 1)
  assert.ok((asked[0] ?? 0) > 2 ** 40)
})

test('before an upload is refused for want of room, room is asked for', async (t) => {
  const asked: [number, string | undefined][] = []
  const room = await openRoom(t, {}, { makeRoom: async (bytes, of) => void asked.push([bytes, of]) })
  const expectedBytes = 2 ** 60
  await assert.rejects(room.images.registry.beginUpload('docker.io/library/x', { expectedBytes }), { code: 'insufficient_resources' })
  const [[bytes, of] = []] = asked
  assert.deepEqual([asked.length, of], [1, 'disk'])
  assert.ok(bytes !== undefined && bytes > 0 && bytes < expectedBytes + 2 ** 30)
})

test('pulls that were let in at the same time count together', async (t) => {
  const registry = await startRegistry(t)
  const [one, two] = [large(), large()]
  await pushFixture(registry, 'lib/one', 'v1', one)
  await pushFixture(registry, 'lib/two', 'v1', two)
  // Room for one of the two, on whatever disk this is.
  const room = await openRoom(t, { maxStorageShare: await shareOf(500_000) })
  const pulls = await Promise.allSettled(['one', 'two'].map((name) => room.images.pull({ name: `${registry}/lib/${name}:v1` })))
  assert.deepEqual(pulls.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
})

test('an upload that would take more than the images’ share is refused as registries refuse, and nothing of it is left', async (t) => {
  const served = await serveRegistry(t, { maxStorageShare: await shareOf(500_000) })
  const blob = Buffer.alloc(400_000, 'a')
  const put = (body: Uint8Array) => served.ask('POST', `x/blobs/uploads/?digest=${sha256(body)}`, { body })
  assert.equal((await put(blob)).status, 201)
  const place = (await served.ask('POST', 'x/blobs/uploads/')).headers.get('location')?.replace('/v2/', '') ?? ''
  const whole = await refusalOf(await put(Buffer.alloc(400_000, 'b')))
  assert.deepEqual([whole.status, whole.code], [409, 'DENIED'])
  assert.match(whole.message, /^The upload is not taken: with 1MB more, images would take 1MB and may take 1MB, .*dormouse prune --all$/)
  const part = await refusalOf(await served.ask('PATCH', place, { body: Buffer.alloc(300_000, 'c') }))
  assert.deepEqual([part.status, part.code], [409, 'DENIED'])
  assert.equal((await refusalOf(await served.ask('GET', place))).code, 'BLOB_UPLOAD_UNKNOWN')
  assert.equal((await put(Buffer.alloc(50_000, 'd'))).status, 201)
  const { drafts, layers } = await filesOf(served.room)
  assert.deepEqual([drafts, layers.length], [[], 2])
})

/** So many bytes, as a share of the disk that tests are on. */
async function shareOf(bytes: number): Promise<number> {
  const { blocks, bsize } = await statfs(tmpdir())
  return bytes / (blocks * bsize)
}
