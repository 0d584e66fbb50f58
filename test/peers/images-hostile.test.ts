/** Archives made to do harm, or damaged: each is refused with a clear error, and leaves neither file nor row. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdir, readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import {
  type EntryWords,
  type ImageFixture,
  imageOf,
  layoutOf,
  sha256,
  tarEntry,
  tarOf,
} from '../../packages/daemon/src/images/tar-fixtures.ts'
import { scratchDir } from '../harness/scratch.ts'
import { assertNothingLeft, openRoom, type Room, step, writeFiles } from './images-room.ts'

const says = (code: ErrorCode, pattern: RegExp) => (error: unknown) => {
  assert.ok(error instanceof AppError, String(error))
  assert.equal(error.code, code, error.message)
  assert.match(error.message, pattern)
  return true
}

const archiveOf = (files: ReadonlyMap<string, Buffer>): Buffer =>
  tarOf([...files].map(([name, content]): EntryWords => ({ name, content })))

async function refusesImage(
  t: TestContext,
  image: ImageFixture,
  code: ErrorCode,
  pattern: RegExp,
  config: Parameters<typeof openRoom>[1] = {},
): Promise<Room> {
  const room = await openRoom(t, config)
  const path = await writeFiles(await scratchDir(t), layoutOf(image))
  await assert.rejects(room.images.importArchive({ path }, 'bad:1'), says(code, pattern))
  await assertNothingLeft(room)
  return room
}

const refusesLayers = async (t: TestContext, layers: readonly (readonly (EntryWords | string)[])[], pattern: RegExp): Promise<void> => {
  await refusesImage(t, imageOf(layers.map((layer) => tarOf(layer))), 'invalid_image', pattern)
}

async function refusesUpload(t: TestContext, archive: Buffer, code: ErrorCode, pattern: RegExp): Promise<void> {
  const room = await openRoom(t)
  await assert.rejects(room.images.importUpload(Readable.from([archive]), { name: 'bad:1' }, step()), says(code, pattern))
  await assertNothingLeft(room)
}

test('a name with .. in a layer', (t) => refusesLayers(t, [[{ name: '../../etc/cron.d/x', content: 'evil' }]], /climbs out/))
test('an absolute name in a layer', (t) => refusesLayers(t, [[{ name: '/etc/cron.d/x', content: 'evil' }]], /is absolute/))
test('a hard link that climbs out', (t) => refusesLayers(t, [[{ name: 'x', kind: 'link', linkName: '../../../etc/shadow' }]], /climbs out/))
test('a hard link to an absolute name', (t) => refusesLayers(t, [[{ name: 'x', kind: 'link', linkName: '/etc/shadow' }]], /is absolute/))
test('a file below a symbolic link of a lower layer', (t) =>
  refusesLayers(
    t,
    [[{ name: 'out', kind: 'symlink', linkName: '/etc' }], [{ name: 'out/cron.d', content: 'evil' }]],
    /below "out", which is a symbolic link/,
  ))
test('a file below a symbolic link of its own layer', (t) =>
  refusesLayers(
    t,
    [
      [
        { name: 'out', kind: 'symlink', linkName: '/etc' },
        { name: 'out/cron.d', content: 'evil' },
      ],
    ],
    /symbolic link/,
  ))

test('nothing of all this ever came to lie on the host', async (t) => {
  const marker = `dormouse-${randomBytes(6).toString('hex')}`
  const target = await scratchDir(t)
  await refusesLayers(
    t,
    [[{ name: 'out', kind: 'symlink', linkName: target }], [{ name: `out/${marker}`, content: 'evil' }]],
    /symbolic link/,
  )
  await refusesLayers(t, [[{ name: `../../../../../../../../../..${target}/${marker}`, content: 'evil' }]], /climbs out/)
  await refusesLayers(t, [[{ name: `${target}/${marker}`, content: 'evil' }]], /absolute/)
  assert.deepEqual(await readdir(target), [])
})

test('a layer that is cut short, as tar and as gzip', async (t) => {
  const tar = tarOf([{ name: 'a', content: randomBytes(5000) }])
  await refusesImage(t, imageOf([tar.subarray(0, 3000)]), 'invalid_image', /cut short/)
  await refusesImage(t, imageOf([tar], { compress: (bytes) => gzipSync(bytes).subarray(0, 2000) }), 'invalid_image', /cut short/)
  await refusesImage(t, imageOf([tar], { compress: (bytes) => zstdCompressSync(bytes).subarray(0, 2000) }), 'invalid_image', /cut short/)
})

test('data after the end of a layer, in the tar and after the compressed data', async (t) => {
  const tar = tarOf([{ name: 'a' }])
  await refusesImage(t, imageOf([Buffer.concat([tar, tarEntry({ name: 'hidden' })])]), 'invalid_image', /goes on after its end/)
  await refusesImage(
    t,
    imageOf([tar], { compress: (bytes) => Buffer.concat([gzipSync(bytes), Buffer.from('trailing')]) }),
    'invalid_image',
    /damaged|goes on/,
  )
})

test('a layer that is no tar at all', async (t) => {
  await refusesImage(t, imageOf([randomBytes(4096)]), 'invalid_image', /checksum/)
})

test('bombs: by ratio, by bytes, by holes, by entries, by depth', async (t) => {
  // The limits as they are: 1.25 GiB of zeros, which is 200 times as much as they are packed.
  const size = 20 * 2 ** 26
  const packed = zstdCompressSync(Buffer.alloc(1 << 26))
  const bomb = Buffer.concat([zstdCompressSync(tarEntry({ name: 'z', size, storedSize: size })), ...Array(20).fill(packed)])
  await refusesImage(t, imageOf([tarOf([])], { compress: () => bomb }), 'image_too_large', /more than 200 times its size/)
  const zeros = tarOf([{ name: 'z', content: Buffer.alloc(64 << 20) }])
  await refusesImage(t, imageOf([zeros], { compress: zstdCompressSync }), 'image_too_large', /(more|larger) than/, {
    maxImageBytes: 32 << 20,
  })
  const hole = tarOf([{ name: 'hole', size: 2 ** 45, storedSize: 0, sparse: [] }])
  await refusesImage(t, imageOf([hole]), 'image_too_large', /files are larger/)
  const many = tarOf(Array.from({ length: 3000 }, (_, i) => ({ name: `f${i}` })))
  await refusesImage(t, imageOf([many]), 'image_too_large', /more than 1000 entries/, { maxEntries: 1000 })
  await refusesLayers(t, [[{ name: `${'d/'.repeat(400)}f` }]], /deeper than 256/)
})

test('a bomb of bombs: an archive that is compressed itself', async (t) => {
  const room = await openRoom(t, { maxImageBytes: 8 << 20 })
  const bomb = gzipSync(tarOf([{ name: 'blobs/x', content: Buffer.alloc(64 << 20) }]))
  await assert.rejects(
    room.images.importUpload(Readable.from([bomb]), { name: 'bad:1' }, step()),
    says('image_too_large', /(more|larger) than/),
  )
  await assertNothingLeft(room)
})

test('unknown media types, of a layer and of what is no image', async (t) => {
  await refusesImage(
    t,
    imageOf([tarOf([{ name: 'a' }])], { layerType: 'application/vnd.example.layer' }),
    'invalid_image',
    /media type that is not known.*vnd.example/,
  )
  const image = imageOf([tarOf([{ name: 'a' }])])
  const chart = Buffer.from(
    image.manifest.toString().replace('application/vnd.oci.image.config.v1+json', 'application/vnd.cncf.helm.config.v1+json'),
  )
  await refusesImage(t, { ...image, manifest: chart, digest: sha256(chart) }, 'invalid_image', /no image/)
})

test('an image for another platform', async (t) => {
  await refusesImage(
    t,
    imageOf([tarOf([{ name: 'a' }])], { platform: { os: 'linux', architecture: 's390x' } }),
    'platform_not_available',
    /is not there for/,
  )
  await refusesImage(
    t,
    imageOf([tarOf([{ name: 'a' }])], { platform: { os: 'windows', architecture: 'amd64' } }),
    'platform_not_available',
    /is not there for/,
  )
})

test('a configuration that speaks of other layers, or could not be run', async (t) => {
  const image = imageOf([tarOf([{ name: 'a' }]), tarOf([{ name: 'b' }])])
  const manifest = JSON.parse(image.manifest.toString())
  manifest.layers.pop()
  const fewer = Buffer.from(JSON.stringify(manifest))
  await refusesImage(
    t,
    { ...image, manifest: fewer, digest: sha256(fewer) },
    'invalid_image',
    /1 layers, but its configuration speaks of 2/,
  )
  await refusesImage(t, imageOf([tarOf([{ name: 'a' }])], { config: { Cmd: ['a\0b'] } }), 'invalid_image', /malformed Cmd/)
})

test('blobs of a layout that are damaged, missing, or of another size', async (t) => {
  const image = imageOf([tarOf([{ name: 'a', content: randomBytes(3000) }])])
  const layer = `blobs/${image.layers[0]?.digest.replace(':', '/')}`
  const files = layoutOf(image)
  const bent = Buffer.from(files.get(layer) ?? '')
  bent[100] = (bent[100] ?? 0) ^ 1
  for (const [change, pattern] of [
    [new Map([...files, [layer, bent]]), /is damaged: its digest is/],
    [new Map([...files].filter(([name]) => name !== layer)), /not complete/],
    [new Map([...files].filter(([name]) => name !== 'index.json')), /neither an index.json/],
    [new Map([...files, ['index.json', Buffer.from('{')]]), /no JSON/],
    [new Map([...files, ['index.json', Buffer.from(String(files.get('index.json')).replace(/"size":\d+/, '"size":7'))]]), /damaged/],
  ] as const) {
    const room = await openRoom(t)
    await assert.rejects(
      room.images.importArchive({ path: await writeFiles(await scratchDir(t), change) }, 'bad:1'),
      says('invalid_image', pattern),
    )
    await assertNothingLeft(room)
    await refusesUpload(t, archiveOf(change), 'invalid_image', pattern)
  }
})

test('an archive with names that lead out of it, links that do, or things that are no files', async (t) => {
  await refusesUpload(t, tarOf([{ name: '../x', content: 'x' }]), 'invalid_image', /leads out/)
  await refusesUpload(t, tarOf([{ name: '/x', content: 'x' }]), 'invalid_image', /absolute/)
  await refusesUpload(t, tarOf([{ name: 'x', kind: 'symlink', linkName: '/etc/shadow' }]), 'invalid_image', /absolute/)
  await refusesUpload(t, tarOf([{ name: 'x', kind: 'symlink', linkName: '../../etc/shadow' }]), 'invalid_image', /leads out/)
  await refusesUpload(t, tarOf([{ name: 'x', kind: 'char', devMajor: 1, devMinor: 3 }]), 'invalid_image', /no file/)
  await refusesUpload(t, Buffer.from('this is no archive'), 'invalid_image', /cut short|checksum/)
  await refusesUpload(t, Buffer.alloc(0), 'invalid_image', /no image/)
})

test('a docker archive that lies', async (t) => {
  const docker = (manifest: unknown, files: readonly EntryWords[] = []) =>
    tarOf([{ name: 'manifest.json', content: JSON.stringify(manifest) }, ...files])
  await refusesUpload(t, docker([]), 'invalid_image', /lists no images/)
  await refusesUpload(t, docker([{ Config: 7, Layers: [] }]), 'invalid_image', /malformed/)
  await refusesUpload(t, docker([{ Config: '../../etc/passwd', Layers: [] }]), 'invalid_image', /leads out/)
  await refusesUpload(t, docker([{ Config: 'c.json', Layers: [] }]), 'invalid_image', /c.json is missing/)
  await refusesUpload(
    t,
    docker([{ Config: 'c.json', Layers: ['l.tar'] }], [{ name: 'c.json', content: '{}' }]),
    'invalid_image',
    /l.tar is missing/,
  )
  const loop = docker(
    [{ Config: 'a', Layers: [] }],
    [
      { name: 'a', kind: 'symlink', linkName: 'b' },
      { name: 'b', kind: 'symlink', linkName: 'a' },
    ],
  )
  await refusesUpload(t, loop, 'invalid_image', /missing/)
})

test('a layout directory with links to files of the host', async (t) => {
  const dir = await scratchDir(t)
  const image = imageOf([tarOf([{ name: 'a' }])])
  await writeFiles(dir, new Map([...layoutOf(image)].filter(([name]) => name !== 'index.json')))
  await symlink('/etc/passwd', join(dir, 'index.json'))
  const room = await openRoom(t)
  await assert.rejects(room.images.importArchive({ path: dir }, 'bad:1'), says('invalid_image', /no plain file/))
  await assert.rejects(room.images.importArchive({ path: '/dev/zero' }, 'bad:1'), says('invalid_image', /neither a directory nor/))
  await assert.rejects(room.images.importArchive({ path: join(dir, 'nothing') }, 'bad:1'), says('path_not_found', /cannot be opened/))
  await assertNothingLeft(room)
})

test('an upload that breaks off', async (t) => {
  const room = await openRoom(t)
  const archive = archiveOf(layoutOf(imageOf([tarOf([{ name: 'a', content: randomBytes(1 << 20) }])])))
  const broken = async function* () {
    yield archive.subarray(0, archive.length / 2)
    throw new Error('the client hung up')
  }
  await assert.rejects(room.images.importUpload(broken(), { name: 'bad:1' }, step()), says('invalid_image', /broke off/))
  await assertNothingLeft(room)
  const hanging = new AbortController()
  const endless = async function* () {
    yield archive.subarray(0, archive.length / 2)
    hanging.abort(new AppError('timed_out', 'Nobody waits any more'))
    await new Promise(() => undefined)
  }
  await assert.rejects(room.images.importUpload(endless(), { name: 'bad:1' }, { signal: hanging.signal }), says('timed_out', /Nobody/))
  await assertNothingLeft(room)
})

test('a bad image does not take the place of a good one of the same name', async (t) => {
  const room = await openRoom(t)
  const good = await writeFiles(await scratchDir(t), layoutOf(imageOf([tarOf([{ name: 'good' }])])))
  const bad = await writeFiles(await scratchDir(t), layoutOf(imageOf([tarOf([{ name: '../bad' }])])))
  const { digest } = await room.images.importArchive({ path: good }, 'app:1')
  await assert.rejects(room.images.importArchive({ path: bad }, 'app:1'), says('invalid_image', /climbs out/))
  assert.equal(room.images.getImage('app:1').digest, digest)
  assert.equal(room.images.getImage('app:1').status, 'ready')
  assert.ok(await stat(room.images.readyImage('app:1')?.rootfs.path ?? ''))
  await room.images.remove('app:1')
  await assertNothingLeft(room)
})

test('drafts and files that no row speaks of go at the start', async (t) => {
  const room = await openRoom(t)
  await writeFile(join(room.paths.imageDraftsDir, 'blob-1'), 'x')
  await mkdir(join(room.paths.imageDraftsDir, 'odd'))
  await writeFile(room.paths.imageLayer(sha256(Buffer.from('x'))), 'x')
  await writeFile(room.paths.imageRootfs(sha256(Buffer.from('y'))), 'x')
  await assertNothingLeft(await room.restart())
  assert.ok(await readFile(room.paths.database))
})
