/** Images as files, written by skopeo, umoci, GNU tar and in the forms that `docker save` has had. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { AppError } from '@dormouse/api/errors.ts'
import {
  type EntryWords,
  type ImageFixture,
  imageOf,
  layoutOf,
  readTar,
  sha256,
  tarOf,
} from '../../packages/daemon/src/images/tar-fixtures.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { scratchDir } from '../harness/scratch.ts'
import { assertNothingLeft, command, filesOf, openRoom, type Room, step, writeFiles } from './images-room.ts'
import { spawnOutput } from './images-spawn.ts'

const archiveOf = (files: Iterable<readonly [string, Buffer | string]>): Buffer =>
  tarOf([...files].map(([name, content]): EntryWords => ({ name, content })))

async function namesIn(room: Room, name: string): Promise<string[]> {
  const { rootfs } = room.images.readyImage(name) ?? assert.fail(`${name} is not ready`)
  return readTar(await spawnOutput(['sqfs2tar', rootfs.path]))
    .map((entry) => entry.name.replace(/\/$/, ''))
    .sort()
}

async function busybox(t: TestContext): Promise<{ dir: string; layout: string; digest: string }> {
  const dir = await scratchDir(t)
  const { path, digest } = await makeBusyboxImage(dir)
  return { dir, layout: path, digest }
}

test('one image comes in as a directory, an oci-archive and a docker-archive of skopeo, by path and by upload', async (t) => {
  const { dir, layout, digest } = await busybox(t)
  const [oci, docker] = [join(dir, 'oci.tar'), join(dir, 'docker.tar')]
  await command(['skopeo', 'copy', '-q', `oci:${layout}:latest`, `oci-archive:${oci}:latest`])
  await command(['skopeo', 'copy', '-q', `oci:${layout}:latest`, `docker-archive:${docker}:example.org/app:v1`])
  const room = await openRoom(t)
  assert.equal((await room.images.importArchive({ path: layout }, 'dir:1')).digest, digest)
  assert.equal((await room.images.importArchive({ path: oci }, 'oci:1')).digest, digest)
  assert.equal((await room.images.importArchive({ path: docker })).name, 'example.org/app:v1', 'a docker archive knows its name')
  const uploaded = await room.images.importUpload(createReadStream(docker), { name: 'up:1' }, step())
  assert.equal(uploaded.status, 'ready')
  const names = await namesIn(room, 'dir:1')
  assert.ok(names.includes('bin/sh') && names.includes('etc/passwd'))
  for (const name of ['oci:1', 'example.org/app:v1', 'up:1']) assert.deepEqual(await namesIn(room, name), names)
  const { layers, drafts } = await filesOf(room)
  assert.deepEqual(drafts, [])
  assert.equal(layers.length, 2, 'compressed in the one, plain in the other')
  for (const { name } of room.images.list()) await room.images.remove(name)
  await assertNothingLeft(room)
})

test('an archive that is compressed as a whole is unpacked on the way', async (t) => {
  const room = await openRoom(t)
  const archive = gzipSync(archiveOf(layoutOf(imageOf([tarOf([{ name: 'a' }])]))))
  assert.equal((await room.images.importUpload(Readable.from([archive]), { name: 'gz:1' }, step())).status, 'ready')
})

test('an image that umoci has built, with layers of its own, comes in as umoci would unpack it', async (t) => {
  const dir = await scratchDir(t)
  const [layout, bundle] = [join(dir, 'layout'), join(dir, 'bundle')]
  const rootless = process.getuid?.() === 0 ? [] : ['--rootless']
  await command(['umoci', 'init', '--layout', layout])
  await command(['umoci', 'new', '--image', `${layout}:v1`])
  await command(['umoci', 'unpack', ...rootless, '--image', `${layout}:v1`, bundle])
  await mkdir(join(bundle, 'rootfs/etc'), { recursive: true })
  await writeFile(join(bundle, 'rootfs/etc/a'), 'one')
  await writeFile(join(bundle, 'rootfs/etc/gone'), 'x')
  await command(['umoci', 'repack', '--image', `${layout}:v1`, bundle])
  await command(['rm', '-r', bundle])
  await command(['umoci', 'unpack', ...rootless, '--image', `${layout}:v1`, bundle])
  await command(['rm', join(bundle, 'rootfs/etc/gone')])
  await writeFile(join(bundle, 'rootfs/etc/b'), 'two')
  await command(['umoci', 'repack', '--image', `${layout}:v1`, bundle])
  await command([
    'umoci',
    'config',
    '--image',
    `${layout}:v1`,
    '--config.entrypoint',
    '/etc/b',
    '--config.env',
    'A=1',
    '--config.user',
    '7:8',
    '--config.workingdir',
    '/etc',
  ])
  const room = await openRoom(t)
  await room.images.importArchive({ path: layout }, 'umoci:v1')
  assert.deepEqual(await namesIn(room, 'umoci:v1'), ['etc', 'etc/a', 'etc/b'])
  const { config } = room.images.readyImage('umoci:v1') ?? assert.fail()
  assert.deepEqual([config.entrypoint, config.user, config.workingDir], [['/etc/b'], '7:8', '/etc'])
  assert.ok(config.env.includes('A=1'))
})

/** What docker save wrote before it wrote layouts: a directory for each layer, links where two are the same. */
function oldDockerArchive(image: ImageFixture, tars: readonly Buffer[]): EntryWords[] {
  const hex = (digest: string): string => digest.slice('sha256:'.length)
  const config = `${hex(sha256(image.config))}.json`
  const layers = tars.map((_, index) => `${String(index).repeat(64)}/layer.tar`)
  return [
    ...tars.flatMap((tar, index): EntryWords[] => {
      const first = tars.findIndex((other) => other.equals(tar))
      const layer: EntryWords =
        first === index
          ? { name: layers[index] ?? '', content: tar }
          : { name: layers[index] ?? '', kind: 'symlink', linkName: `../${layers[first]}` }
      return [
        { name: `${String(index).repeat(64)}/`, kind: 'dir' },
        { name: `${String(index).repeat(64)}/VERSION`, content: '1.0' },
        { name: `${String(index).repeat(64)}/json`, content: '{}' },
        layer,
      ]
    }),
    { name: config, content: image.config },
    { name: 'manifest.json', content: JSON.stringify([{ Config: config, RepoTags: ['old:1', 'old:2'], Layers: layers }]) },
    { name: 'repositories', content: '{}' },
  ]
}

test('the old form of docker save is read, a layer that occurs twice being a link', async (t) => {
  const tars = [tarOf([{ name: 'a', content: randomBytes(100_000) }]), tarOf([{ name: 'b' }])]
  const all = [...tars, tars[0] ?? assert.fail()]
  const room = await openRoom(t)
  const image = await room.images.importUpload(Readable.from([tarOf(oldDockerArchive(imageOf(all), all))]), {}, step())
  assert.equal(image.name, 'docker.io/library/old:1')
  assert.deepEqual(await namesIn(room, 'old:1'), ['a', 'b'])
  assert.equal((await filesOf(room)).layers.length, 2)
})

test('of several images in an archive one is named, by its name or its tag', async (t) => {
  const [one, two] = [imageOf([tarOf([{ name: 'one' }])]), imageOf([tarOf([{ name: 'two' }])])]
  const files = new Map([...layoutOf(one, 'v1'), ...layoutOf(two, 'v2')])
  const manifests = [one, two].flatMap((image, index) => JSON.parse(String(layoutOf(image, `v${index + 1}`).get('index.json'))).manifests)
  files.set('index.json', Buffer.from(JSON.stringify({ schemaVersion: 2, manifests })))
  const path = await writeFiles(await scratchDir(t), files)
  const room = await openRoom(t)
  assert.equal((await room.images.importArchive({ path }, 'app:v2')).digest, two.digest)
  await assert.rejects(
    room.images.importArchive({ path }, 'app:v3'),
    (error) => error instanceof AppError && /several images/.test(error.message) && /v1, v2/.test(error.hint ?? ''),
  )
})

test('an archive without a name needs one', async (t) => {
  const path = await writeFiles(await scratchDir(t), layoutOf(imageOf([tarOf([{ name: 'a' }])])))
  const room = await openRoom(t)
  await assert.rejects(room.images.importArchive({ path }), (error) => error instanceof AppError && error.code === 'invalid_name')
  await assertNothingLeft(room)
})

test('imports at the same time do not take each other’s blobs away', async (t) => {
  const room = await openRoom(t, { maxConcurrentPulls: 3 })
  const words = ['a', 'b', 'c', 'd']
  const paths = await Promise.all(
    words.map(async (word) => writeFiles(await scratchDir(t), layoutOf(imageOf([tarOf([{ name: word, content: randomBytes(1 << 20) }])])))),
  )
  await Promise.all(words.map((word, index) => room.images.importArchive({ path: paths[index] ?? '' }, `${word}:1`)))
  for (const word of words) assert.deepEqual(await namesIn(room, `${word}:1`), [word])
})

test('a rootfs with zstd is made where the configuration says so', async (t) => {
  const path = await writeFiles(await scratchDir(t), layoutOf(imageOf([tarOf([{ name: 'a', content: Buffer.alloc(1 << 20, 'text ') }])])))
  const room = await openRoom(t, { rootfsCompression: 'zstd' })
  await room.images.importArchive({ path }, 'z:1')
  const { rootfs } = room.images.readyImage('z:1') ?? assert.fail()
  // Source: the squashfs format, compression id: 6 is zstd.
  assert.equal((await readFile(rootfs.path)).readUInt16LE(20), 6)
})

test('every format that GNU tar writes is read, with sparse files in all of theirs', async (t) => {
  const dir = await scratchDir(t)
  const tree = join(dir, 'tree')
  await mkdir(join(tree, 'd'.repeat(90), 'e'.repeat(90)), { recursive: true })
  await writeFile(join(tree, 'plain'), 'content')
  await command(['ln', join(tree, 'plain'), join(tree, 'hard')])
  await command(['ln', '-s', 'plain', join(tree, 'soft')])
  await command(['mkfifo', join(tree, 'fifo')])
  for (const at of [0, 1, 2, 3, 4, 5, 6])
    await command(['dd', 'of=sparse', 'bs=1', `seek=${at * 100_000}`, 'conv=notrunc', 'status=none'], { input: `data${at}`, cwd: tree })
  await command(['truncate', '-s', '1000000', join(tree, 'sparse')])
  const expected = await readFile(join(tree, 'sparse'))
  for (const [format, ...options] of [
    ['v7'],
    ['ustar'],
    ['oldgnu'],
    ['gnu'],
    ['posix'],
    ['gnu', '--sparse'],
    ['oldgnu', '--sparse'],
    ...['0.0', '0.1', '1.0'].map((version) => ['posix', '--sparse', `--sparse-version=${version}`]),
  ]) {
    const what = `${format} ${options.join(' ')}`
    // v7 has no type for it.
    const all = [...(format === 'v7' ? [] : ['fifo']), 'hard', 'plain', 'soft', 'sparse']
    const tar = await spawnOutput(['tar', `--format=${format}`, ...options, '-cf', '-', '-C', tree, ...all])
    const entries = readTar(tar, 10_000)
    assert.deepEqual(
      entries.map(({ name }) => name),
      all,
      what,
    )
    assert.equal(entries.find(({ kind }) => kind === 'link')?.linkName, 'hard', what)
    const sparse = entries.at(-1) ?? assert.fail()
    const whole = Buffer.alloc(sparse.size)
    let at = 0
    for (const { offset, length } of sparse.sparse ?? [{ offset: 0, length: sparse.size }]) {
      sparse.content.copy(whole, offset, at, at + length)
      at += length
    }
    assert.ok(whole.equals(expected), what)
    assert.equal(sparse.sparse !== undefined, options.includes('--sparse'), what)
    if (format !== 'v7' && format !== 'ustar') {
      const deep = `${'d'.repeat(90)}/${'e'.repeat(90)}`
      assert.ok(
        readTar(await spawnOutput(['tar', `--format=${format}`, '-cf', '-', '-C', tree, deep])).some(({ name }) => name === `${deep}/`),
        what,
      )
    }
  }
})
