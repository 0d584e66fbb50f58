/** Pulls from Debian's docker-registry, with images that skopeo and we have put there. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { zstdCompressSync } from 'node:zlib'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import type { ImageProgress } from '@dormouse/api/images.ts'
import { imageOf, layoutOf, sha256, tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { Turns } from '../../packages/daemon/src/lib/turns.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { scratchDir } from '../harness/scratch.ts'
import { pushFixture, pushManifest, startProxy, startRegistry, startTokenServer } from './images-registry.ts'
import { assertNothingLeft, command, filesOf, openRoom, pullReady, step, writeFiles } from './images-room.ts'

const says =
  (code: ErrorCode, pattern = /./) =>
  (error: unknown) => {
    assert.ok(error instanceof AppError, String(error))
    assert.equal(error.code, code, error.message)
    assert.match(error.message, pattern)
    return true
  }
const small = (word = 'x') => imageOf([tarOf(['etc', { name: 'etc/a', content: word }]), tarOf([{ name: 'b', content: `${word}b` }])])

async function skopeo(...args: string[]): Promise<void> {
  await command(['skopeo', ...args])
}

async function busyboxLayout(t: TestContext): Promise<string> {
  return (await makeBusyboxImage(await scratchDir(t))).path
}

test('what skopeo has pushed is pulled, in each of its formats and compressions', async (t) => {
  const [registry, room, layout] = [await startRegistry(t), await openRoom(t), await busyboxLayout(t)]
  for (const [tag, ...options] of [
    ['oci', '--format', 'oci'],
    ['docker', '--format', 'v2s2'],
    ['zstd', '--format', 'oci', '--dest-compress-format', 'zstd', '--dest-compress'],
  ] as const) {
    await skopeo('copy', '-q', '--dest-tls-verify=false', ...options, `oci:${layout}:latest`, `docker://${registry}/lib/busybox:${tag}`)
    const ready = await pullReady(room, { name: `${registry}/lib/busybox:${tag}` })
    assert.equal(ready.platform, `linux/${process.arch === 'x64' ? 'amd64' : process.arch}`)
    assert.deepEqual(ready.config.env, ['PATH=/bin:/sbin'])
    const { size, mode } = await stat(ready.rootfs.path)
    assert.equal(size, ready.sizeBytes)
    assert.equal(mode & 0o777, 0o644)
    const listing = await command(['rdsquashfs', '-d', ready.rootfs.path])
    assert.match(listing, /^file \/?bin\/busybox 0755 0 0/m)
    assert.match(listing, /^dir \/?tmp 01777 0 0/m)
  }
  assert.deepEqual((await filesOf(room)).drafts, [])
})

test('a pull goes pending, pulling, converting, ready, in rows, events and progress', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  await pushFixture(registry, 'lib/x', 'v1', small())
  const name = `${registry}/lib/x:v1`
  const image = await room.images.pull({ name, tags: { team: 'a' } })
  assert.equal(image.name, name)
  assert.equal(image.digest, small().digest)
  assert.ok(['pending', 'pulling'].includes(image.status))
  const seen: ImageProgress[] = []
  for await (const one of await room.images.progress(name, step())) seen.push(one)
  assert.equal(seen.at(-1)?.status, 'ready')
  const total = small().layers.reduce((sum, layer) => sum + layer.size, 0)
  assert.ok(
    seen.some((one) => one.status === 'converting' && one.done_bytes === total && one.total_bytes === total && one.layers?.length === 2),
  )
  const statuses = room.events.filter(({ kind, subject }) => kind === 'image.changed' && subject === name).map(({ data }) => data.status)
  assert.deepEqual(statuses, ['pending', 'pulling', 'converting', 'ready'])
  assert.equal(room.events.at(-1)?.kind, 'image.pulled')
  assert.deepEqual(
    room.images.list({ tags: { team: 'a' } }).map((one) => one.status),
    ['ready'],
  )
  assert.deepEqual(room.images.list({ tags: { team: 'b' } }), [])
  const again = await Array.fromAsync(await room.images.progress(name, step()))
  assert.deepEqual(
    again.map((one) => one.status),
    ['ready'],
    'who comes late hears the end at once',
  )
})

test('pulls of one image at the same time are one, and a digest that is here is not pulled again', async (t) => {
  const registry = await startRegistry(t)
  const proxy = await startProxy(t, registry)
  const room = await openRoom(t)
  const image = small()
  await pushFixture(registry, 'lib/x', 'v1', image)
  await pushManifest(registry, 'lib/x', 'v2', image.manifest)
  const blobs = () => proxy.requests.filter(({ line }) => image.layers.some(({ digest }) => line.endsWith(digest))).length
  await Promise.all([1, 2, 3, 4].map(() => pullReady(room, { name: `${proxy.host}/lib/x:v1` })))
  assert.equal(blobs(), 2)
  const second = await room.images.pull({ name: `${proxy.host}/lib/x:v2` })
  assert.equal(second.status, 'ready')
  assert.equal(blobs(), 2)
  assert.deepEqual(
    room.images
      .list()
      .map(({ name }) => name)
      .sort(),
    [`${proxy.host}/lib/x:v1`, `${proxy.host}/lib/x:v2`],
  )
  assert.equal((await filesOf(room)).rootfs.length, 1)
})

test('a layer of two images is fetched and kept once, and goes with the last of them', async (t) => {
  const registry = await startRegistry(t)
  const proxy = await startProxy(t, registry)
  const room = await openRoom(t)
  const base = tarOf(['etc', { name: 'etc/base', content: randomBytes(5000) }])
  const [one, two] = [imageOf([base, tarOf([{ name: 'one' }])]), imageOf([base, tarOf([{ name: 'two' }])])]
  await pushFixture(registry, 'lib/one', 'v1', one)
  await pushFixture(registry, 'lib/two', 'v1', two)
  await pullReady(room, { name: `${proxy.host}/lib/one:v1` })
  await pullReady(room, { name: `${proxy.host}/lib/two:v1` })
  assert.equal(proxy.requests.filter(({ line }) => line.endsWith(one.layers[0]?.digest ?? '?')).length, 1)
  assert.equal((await filesOf(room)).layers.length, 3)
  const used = await room.images.usage()
  await room.images.remove(`${proxy.host}/lib/one:v1`)
  assert.equal((await filesOf(room)).layers.length, 2)
  assert.ok((await room.images.usage()) < used)
  await room.images.remove(`${proxy.host}/lib/two:v1`)
  await assertNothingLeft(room)
})

test('a tag that moved in the registry moves here when the new image is ready, and prune takes the old one', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  const name = `${registry}/lib/x:latest`
  const [old, next] = [small('old'), small('new')]
  await pushFixture(registry, 'lib/x', 'latest', old)
  await pullReady(room, { name })
  await pushFixture(registry, 'lib/x', 'latest', next)
  await room.images.pull({ name })
  assert.equal(room.images.readyImage(name)?.digest, old.digest, 'until then instances are made of the old one')
  assert.equal((await room.images.whenReady(name, step())).digest, next.digest)
  assert.ok(room.images.byDigest(old.digest), 'an instance may still stand on it')
  assert.ok((await room.images.prune()).deleted.includes(name))
  await assertNothingLeft(room)
})

test('images are found by short and full names and by digest', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  const image = small()
  await pushFixture(registry, 'lib/x', 'latest', image)
  await pullReady(room, { name: `${registry}/lib/x` })
  for (const name of [`${registry}/lib/x`, `${registry}/lib/x:latest`, `${registry}/lib/x@${image.digest}`, image.digest]) {
    assert.equal(room.images.getImage(name).digest, image.digest, name)
  }
  assert.throws(() => room.images.getImage(`${registry}/lib/y`), says('not_found'))
  assert.throws(() => room.images.getImage('NOT a name'), says('invalid_name'))
  const byDigest = `${registry}/lib/x@${image.digest}`
  assert.equal((await pullReady(room, { name: byDigest })).name, byDigest)
})

test('a further name for an image is another way to it, and the image goes with its last name', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  await pushFixture(registry, 'lib/x', 'v1', small())
  await pullReady(room, { name: `${registry}/lib/x:v1` })
  assert.equal(room.images.tag(`${registry}/lib/x:v1`, 'mine:1').name, 'docker.io/library/mine:1')
  await room.images.remove(`${registry}/lib/x:v1`)
  assert.ok(room.images.readyImage('mine:1'))
  assert.throws(() => room.images.tag('nothing', 'a:b'), says('not_found'))
  assert.throws(() => room.images.tag('mine:1', `x@${small().digest}`), says('invalid_name'))
  await room.images.remove('mine:1')
  await assertNothingLeft(room)
})

test('an image that an instance stands on is not removed, and not pruned', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  const name = `${registry}/lib/x:v1`
  await pushFixture(registry, 'lib/x', 'v1', small())
  const { digest } = await pullReady(room, { name })
  room.inUse.add(digest)
  await assert.rejects(room.images.remove(name), says('in_use'))
  assert.deepEqual((await room.images.prune()).deleted, [])
  assert.ok(room.images.byDigest(digest))
  room.inUse.clear()
  const { deleted, freed_bytes: freed } = await room.images.prune()
  assert.deepEqual(deleted, [name])
  assert.ok(freed > 0)
  await assertNothingLeft(room)
})

test('Basic credentials come with the request or from the file, and without them the answer is registry_unauthorized', async (t) => {
  const registry = await startRegistry(t, { basic: true })
  const layout = await writeFiles(await scratchDir(t), layoutOf(small()))
  await skopeo(
    'copy',
    '-q',
    '--dest-tls-verify=false',
    '--dest-creds',
    'me:secret',
    `oci:${layout}:latest`,
    `docker://${registry}/lib/x:v1`,
  )
  const file = join(await scratchDir(t), 'config.json')
  await writeFile(file, JSON.stringify({ auths: { [registry]: { auth: Buffer.from('me:secret').toString('base64') } } }))
  const name = `${registry}/lib/x:v1`

  const room = await openRoom(t)
  await assert.rejects(room.images.pull({ name }), says('registry_unauthorized'))
  await assert.rejects(
    room.images.pull({ name, credentials: { username: 'me', password: 'wrong' } }),
    says('registry_unauthorized', /other credentials/),
  )
  await assertNothingLeft(room)
  await pullReady(room, { name, credentials: { username: 'me', password: 'secret' } })
  const database = await readFile(room.paths.database)
  assert.ok(!database.includes('secret'), 'credentials of a request are kept nowhere')

  const withFile = await openRoom(t, { keychain: { file, isNamed: true } })
  await pullReady(withFile, { name })
})

test('tokens are fetched from the realm and really checked by the registry', async (t) => {
  const tokens = await startTokenServer(t)
  const registry = await startRegistry(t, { tokens })
  const layout = await writeFiles(await scratchDir(t), layoutOf(small()))
  await skopeo(
    'copy',
    '-q',
    '--dest-tls-verify=false',
    '--dest-creds',
    'me:secret',
    `oci:${layout}:latest`,
    `docker://${registry}/lib/x:v1`,
  )
  const room = await openRoom(t)
  const name = `${registry}/lib/x:v1`
  await assert.rejects(room.images.pull({ name }), says('registry_unauthorized'))
  await assert.rejects(
    room.images.pull({ name, credentials: { username: 'me', password: 'wrong' } }),
    says('registry_unauthorized', /token service/),
  )
  tokens.asked.length = 0
  await pullReady(room, { name, credentials: { username: 'me', password: 'secret' } })
  assert.ok(tokens.asked.every(({ scope }) => scope === 'repository:lib/x:pull'))
  assert.ok(tokens.asked.length <= 2, 'one token for the answer, one for the work in its thread')
})

test('an index gives the image of the platform, and an absent platform is refused at once', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  const amd = imageOf([tarOf([{ name: 'amd' }])], { platform: { os: 'linux', architecture: 'amd64' } })
  const arm = imageOf([tarOf([{ name: 'arm' }])], { platform: { os: 'linux', architecture: 'arm64' } })
  await pushFixture(registry, 'lib/x', 'amd', amd)
  await pushFixture(registry, 'lib/x', 'arm', arm)
  const index = (...images: readonly (typeof amd)[]) =>
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: 'application/vnd.oci.image.index.v1+json',
        manifests: images.map((image) => ({
          mediaType: 'application/vnd.oci.image.manifest.v1+json',
          digest: image.digest,
          size: image.manifest.length,
          platform: { os: 'linux', architecture: image === amd ? 'amd64' : 'arm64' },
        })),
      }),
    )
  await pushManifest(registry, 'lib/x', 'both', index(amd, arm))
  await pushManifest(registry, 'lib/x', 'one', index(process.arch === 'x64' ? arm : amd))
  const name = `${registry}/lib/x:both`
  assert.equal((await pullReady(room, { name, platform: 'linux/amd64' })).digest, amd.digest)
  await room.images.pull({ name, platform: 'linux/arm64' })
  await Array.fromAsync(await room.images.progress(arm.digest, step()))
  assert.equal(room.images.readyImage(name, 'linux/arm64')?.digest, arm.digest)
  assert.equal(room.images.readyImage(name, 'linux/amd64')?.digest, amd.digest)
  await assert.rejects(room.images.pull({ name: `${registry}/lib/x:one` }), says('platform_not_available'))
  await assert.rejects(
    room.images.pull({ name: `${registry}/lib/x:${process.arch === 'x64' ? 'arm' : 'amd'}` }),
    says('platform_not_available'),
  )
  await assert.rejects(room.images.pull({ name, platform: 'windows/amd64' }), says('invalid_platform'))
  await room.images.remove(name)
  await assertNothingLeft(room)
})

test('what is not there is not_found at once, and leaves nothing', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  await assert.rejects(room.images.pull({ name: `${registry}/lib/none:v1` }), says('not_found'))
  await assert.rejects(room.images.pull({ name: `${registry}/lib/x@${sha256(Buffer.from('x'))}` }), says('not_found'))
  await assertNothingLeft(room)
})

test('images wait for their turn and say their place', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  const names: string[] = []
  for (const word of ['a', 'b', 'c']) {
    await pushFixture(registry, `lib/${word}`, 'v1', small(word))
    names.push(`${registry}/lib/${word}:v1`)
  }
  const images = []
  for (const name of names) images.push(await room.images.pull({ name }))
  assert.deepEqual(
    images.map((image) => image.queue_position),
    [null, 1, 2],
  )
  await Promise.all(names.map((name) => room.images.whenReady(name, step())))
  assert.deepEqual(
    names.map((name) => room.images.getImage(name).queue_position),
    [null, null, null],
  )
})

test('a pull that was cut off by the end of the daemon is taken up again at the next start', async (t) => {
  const registry = await startRegistry(t)
  const proxy = await startProxy(t, registry)
  const image = imageOf([tarOf([{ name: 'big', content: randomBytes(3 << 20) }]), tarOf([{ name: 'small', content: 'x' }])], {
    compress: zstdCompressSync,
  })
  await pushFixture(registry, 'lib/x', 'v1', image)
  const name = `${proxy.host}/lib/x:v1`
  const room = await openRoom(t)
  const held = Promise.withResolvers<void>()
  // The big layer never comes to an end.
  proxy.fault = (request, response) => {
    if (!request.url?.endsWith(image.layers[0]?.digest ?? '?')) return false
    response.writeHead(200, { 'content-length': String(image.layers[0]?.size) })
    response.write(image.blobs.get(image.layers[0]?.digest ?? '')?.subarray(0, 1 << 20), () => held.resolve())
    return true
  }
  await room.images.pull({ name })
  await held.promise
  proxy.fault = undefined
  const next = await room.restart()
  assert.equal((await next.images.whenReady(name, step())).digest, image.digest)
  assert.deepEqual((await filesOf(next)).drafts, [])
})

test('a pull with credentials of its own that was cut off says so: they were kept nowhere', async (t) => {
  const registry = await startRegistry(t, { basic: true })
  const layout = await writeFiles(await scratchDir(t), layoutOf(small()))
  await skopeo(
    'copy',
    '-q',
    '--dest-tls-verify=false',
    '--dest-creds',
    'me:secret',
    `oci:${layout}:latest`,
    `docker://${registry}/lib/x:v1`,
  )
  const proxy = await startProxy(t, registry)
  const held = Promise.withResolvers<void>()
  const name = `${proxy.host}/lib/x:v1`
  const room = await openRoom(t)
  proxy.fault = (request) => {
    if (!small().layers.some(({ digest }) => request.url?.endsWith(digest))) return false
    held.resolve()
    return true
  }
  await room.images.pull({ name, credentials: { username: 'me', password: 'secret' } })
  await held.promise
  const next = await room.restart()
  assert.equal(next.images.getImage(name).status, 'failed')
  assert.match(next.images.getImage(name).error ?? '', /credentials were kept nowhere/)
})

test('a pull that is under way is joined, but not with other credentials', async (t) => {
  const registry = await startRegistry(t)
  await pushFixture(registry, 'lib/x', 'v1', small())
  const proxy = await startProxy(t, registry)
  const held = Promise.withResolvers<void>()
  let isHeld = true
  const waiting: (() => void)[] = []
  proxy.fault = (request, response) => {
    if (!isHeld || !small().layers.some(({ digest }) => request.url?.endsWith(digest))) return false
    waiting.push(() => response.writeHead(503).end())
    held.resolve()
    return true
  }
  const name = `${proxy.host}/lib/x:v1`
  const room = await openRoom(t)
  const credentials = { username: 'me', password: 'secret' }
  await room.images.pull({ name, credentials })
  await held.promise
  assert.equal((await room.images.pull({ name, credentials })).status, 'pulling')
  assert.equal((await room.images.pull({ name })).status, 'pulling')
  await assert.rejects(
    room.images.pull({ name, credentials: { username: 'me', password: 'other' } }),
    says('credential_conflict', /with other credentials/),
  )
  isHeld = false
  for (const answer of waiting) answer()
  await room.images.whenReady(name, step())
  assert.equal((await room.images.pull({ name, credentials: { username: 'me', password: 'other' } })).status, 'ready')
})

test('a rootfs that vanished from the disk is found at the start, and the next pull makes it again', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  await pushFixture(registry, 'lib/x', 'v1', small())
  const name = `${registry}/lib/x:v1`
  const { rootfs } = await pullReady(room, { name })
  await command(['rm', rootfs.path])
  const next = await room.restart()
  assert.equal(next.images.getImage(name).status, 'failed')
  await pullReady(next, { name })
})

test('no turn of the event loop takes 50 ms while an image is pulled, imported and converted', async (t) => {
  const [registry, room] = [await startRegistry(t), await openRoom(t)]
  const files = Array.from({ length: 40 }, (_, i) => ({ name: `f${i}`, content: randomBytes(1 << 20) }))
  const [pulled, imported] = [imageOf([tarOf(files)]), imageOf([tarOf([...files, { name: 'another' }])])]
  await pushFixture(registry, 'lib/warm', 'v1', small())
  await pushFixture(registry, 'lib/big', 'v1', pulled)
  const path = await writeFiles(await scratchDir(t), layoutOf(imported))
  const archive = join(await scratchDir(t), 'image.tar')
  await command(['tar', '-cf', archive, '-C', path, '.'])
  // Code that runs for the first time is compiled in its turn.
  await pullReady(room, { name: `${registry}/lib/warm:v1` })
  await room.images.importArchive({ path: await writeFiles(await scratchDir(t), layoutOf(small('y'))) }, 'warm:1')
  for (const [what, work] of [
    ['pull', () => pullReady(room, { name: `${registry}/lib/big:v1` })],
    ['import of a path', () => room.images.importArchive({ path }, 'path:1')],
    ['upload', () => room.images.importUpload(createReadStream(archive), { name: 'upload:1' }, step())],
  ] as const) {
    using turns = new Turns()
    await work()
    t.diagnostic(`${what}: the longest turn took ${turns.longestMs.toFixed(1)} ms`)
    assert.ok(turns.longestMs < 50, `${what}: a turn took ${turns.longestMs} ms`)
  }
})
