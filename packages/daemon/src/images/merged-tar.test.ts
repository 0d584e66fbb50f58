import assert from 'node:assert/strict'
import { test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { AppError } from '@dormouse/api/errors.ts'
import { DEFAULT_LIMITS, type ImageLimits } from './limits.ts'
import { LayerMerge, TakesTwoPasses } from './merged-tar.ts'
import { type EntryWords, type ReadEntry, readTar, sha256, tarOf } from './tar-fixtures.ts'

type Layer = readonly (EntryWords | string)[]

async function merge(layers: readonly Layer[], limits: Partial<ImageLimits> = {}): Promise<ReadEntry[]> {
  const merge = new LayerMerge({ ...DEFAULT_LIMITS, ...limits })
  for (const layer of layers) await merge.scan({ open: () => source(tarOf(layer)) })
  const chunks: Buffer[] = []
  for await (const chunk of merge.stream()) chunks.push(chunk)
  const entries = readTar(Buffer.concat(chunks))
  const names = entries.map(({ name }) => name)
  assert.equal(new Set(names).size, names.length, 'no path is there twice')
  assert.equal(merge.inodes, entries.filter(({ kind }) => kind !== 'link').length + impliedIn(entries))
  return entries
}

/** Directories that tar2sqfs makes by itself, the root among them. */
function impliedIn(entries: readonly ReadEntry[]): number {
  const described = new Set(entries.filter(({ kind }) => kind === 'dir').map(({ name }) => name.replace(/\/$/, '')))
  const needed = new Set(['.'])
  for (const { name } of entries) {
    const parts = name.replace(/\/$/, '').split('/')
    for (let i = 1; i < parts.length; i++) needed.add(parts.slice(0, i).join('/'))
  }
  return [...needed].filter((dir) => !described.has(dir)).length
}

async function* source(bytes: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += 777) yield bytes.subarray(at, at + 777)
}

const namesOf = (entries: readonly ReadEntry[]): string[] => entries.map(({ name }) => name).sort()
const find = (entries: readonly ReadEntry[], name: string): ReadEntry =>
  entries.find((entry) => entry.name === name) ?? assert.fail(`no ${name}`)

const refuses = async (layers: readonly Layer[], says: RegExp, limits: Partial<ImageLimits> = {}, code = 'invalid_image'): Promise<void> =>
  assert.rejects(
    merge(layers, limits),
    (error) => error instanceof AppError && error.code === code && says.test(error.message),
    String(says),
  )

test('the last layer that has a path wins, and a directory takes its new attributes and keeps what is in it', async () => {
  const entries = await merge([
    [
      { name: 'etc', kind: 'dir', mode: 0o755 },
      { name: 'etc/a', content: 'old' },
      { name: 'etc/b', content: 'stays' },
    ],
    [
      { name: './etc/', kind: 'dir', mode: 0o700, uid: 7 },
      { name: 'etc//a', content: 'new' },
    ],
  ])
  assert.deepEqual(namesOf(entries), ['etc/', 'etc/a', 'etc/b'])
  assert.equal(String(find(entries, 'etc/a').content), 'new')
  assert.equal(find(entries, 'etc/').mode, 0o700)
  assert.equal(find(entries, 'etc/').uid, 7)
})

test('a path that is in one layer twice is there once, as it was last', async () => {
  const entries = await merge([[{ name: 'a', content: '1' }, { name: 'a', content: '2' }, 'd', 'd', { name: 'd', content: 'now a file' }]])
  assert.deepEqual(namesOf(entries), ['a', 'd'])
  assert.equal(String(find(entries, 'a').content), '2')
  assert.equal(find(entries, 'd').kind, 'file')
})

test('a whiteout removes what lower layers put there, with all below it, and never what its own layer did', async () => {
  const entries = await merge([
    ['keep', { name: 'keep/x' }, 'gone', { name: 'gone/deep/er' }, { name: 'file' }, { name: 'again', content: 'old' }],
    [
      { name: '.wh.gone' },
      { name: '.wh.file' },
      { name: '.wh.again' },
      { name: 'again', content: 'new' },
      { name: 'mine' },
      { name: '.wh.mine' },
      { name: '.wh.never-there' },
    ],
  ])
  assert.deepEqual(namesOf(entries), ['again', 'keep/', 'keep/x', 'mine'])
  assert.equal(String(find(entries, 'again').content), 'new')
})

test('a whiteout of a directory leaves what its own layer put into it', async () => {
  const entries = await merge([
    ['d', { name: 'd/old' }, 'd/sub', { name: 'd/sub/old' }],
    [{ name: 'd/sub/new' }, { name: '.wh.d' }],
  ])
  assert.deepEqual(namesOf(entries), ['d/', 'd/sub/', 'd/sub/new'])
})

test('an opaque directory hides what lower layers had in it, whether the mark comes before or after', async () => {
  for (const order of [0, 1]) {
    const marks = [{ name: 'd/.wh..wh..opq' }, { name: 'd/new' }]
    if (order === 1) marks.reverse()
    const entries = await merge([
      ['d', { name: 'd/old' }, 'd/sub', { name: 'd/sub/x' }],
      ['d', ...marks],
    ])
    assert.deepEqual(namesOf(entries), ['d/', 'd/new'])
  }
  assert.deepEqual(
    namesOf(
      await merge([
        [{ name: 'a' }, 'b'],
        [{ name: '.wh..wh..opq' }, { name: 'c' }],
      ]),
    ),
    ['c'],
    'the root can be opaque',
  )
})

test('a file takes the place of a directory with all below it, and a directory that of a file', async () => {
  const entries = await merge([
    ['d', { name: 'd/x' }, { name: 'f' }],
    [{ name: 'd', kind: 'symlink', linkName: 'elsewhere' }, 'f', { name: 'f/y' }],
  ])
  assert.deepEqual(namesOf(entries), ['d', 'f/', 'f/y'])
  assert.equal(find(entries, 'd').linkName, 'elsewhere')
})

test('a name below what was a plain file makes a directory of it, as an overlay would', async () => {
  assert.deepEqual(namesOf(await merge([[{ name: 'f' }], [{ name: 'f/x' }]])), ['f/x'])
})

test('hard links come after their file, across layers too, and keep it when its name goes', async () => {
  const entries = await merge([
    [
      { name: 'a', content: 'data', mode: 0o4755 },
      { name: 'b', kind: 'link', linkName: 'a' },
    ],
    [{ name: 'c', kind: 'link', linkName: './b' }],
    [{ name: '.wh.a' }],
  ])
  assert.deepEqual(namesOf(entries), ['b', 'c'])
  const [first, second] = entries
  assert.equal(String(first?.content), 'data')
  assert.equal(first?.mode, 0o4755)
  assert.equal(second?.kind, 'link')
  assert.equal(second?.linkName, first?.name)
})

test('a hard link to a file that is replaced later keeps the old one', async () => {
  const entries = await merge([
    [{ name: 'a', content: 'old' }],
    [
      { name: 'b', kind: 'link', linkName: 'a' },
      { name: 'a', content: 'new' },
    ],
  ])
  assert.equal(String(find(entries, 'a').content), 'new')
  assert.equal(String(find(entries, 'b').content), 'old')
})

test('hard links to symbolic links and devices are kept', async () => {
  const entries = await merge([
    [
      { name: 's', kind: 'symlink', linkName: '/x' },
      { name: 'l', kind: 'link', linkName: 's' },
      { name: 'p', kind: 'fifo' },
      { name: 'q', kind: 'link', linkName: 'p' },
    ],
  ])
  assert.equal(find(entries, 'l').linkName, 's')
  assert.equal(find(entries, 'q').linkName, 'p')
})

test('attributes are kept byte for byte, but for those that an overlay would obey', async () => {
  const value = Buffer.from([0xff, 0, 0x0a, 0xef])
  const entries = await merge([
    [
      {
        name: 'f',
        xattrs: new Map([
          ['security.capability', value],
          ['trusted.overlay.opaque', Buffer.from('y')],
        ]),
      },
    ],
  ])
  assert.deepEqual([...find(entries, 'f').xattrs], [['security.capability', value]])
})

test('a sparse file keeps its holes', async () => {
  const sparse = [{ offset: 1 << 20, length: 3 }]
  const entries = await merge([[{ name: 'f', size: 5 << 20, storedSize: 3, sparse, content: 'abc' }]].map((layer) => layer))
  assert.deepEqual(find(entries, 'f').sparse, sparse)
  assert.equal(find(entries, 'f').size, 5 << 20)
})

test('names that are not UTF-8 go through as they are', async () => {
  const entries = await merge([[{ name: 'ü' }]])
  assert.equal(Buffer.from(entries[0]?.name ?? '', 'latin1').toString(), 'ü')
})

test('the root directory keeps its own attributes', async () => {
  const entries = await merge([[{ name: './', kind: 'dir', mode: 0o711, uid: 3 }, { name: 'a' }]])
  assert.equal(find(entries, './').uid, 3)
})

test('a single layer is merged in one pass to the same, and takes two when an entry takes the place of another', async () => {
  const onePass = async (layer: Layer): Promise<ReadEntry[]> => {
    const merge = new LayerMerge(DEFAULT_LIMITS)
    const chunks: Buffer[] = []
    let diffId = ''
    for await (const chunk of merge.scanAndStream({ open: () => source(tarOf(layer)) }, (scanned) => {
      diffId = scanned.diffId
    })) {
      chunks.push(chunk)
    }
    assert.equal(diffId, sha256(tarOf(layer)))
    const entries = readTar(Buffer.concat(chunks))
    assert.equal(merge.inodes, entries.filter(({ kind }) => kind !== 'link').length + impliedIn(entries))
    return entries
  }
  const plain: Layer = [
    './',
    { name: 'd/e/f', content: 'x'.repeat(40_000) },
    'd',
    { name: 'l', kind: 'link', linkName: './d/e/f' },
    { name: 'm', kind: 'link', linkName: 'l' },
    { name: '.wh.none' },
  ]
  assert.deepEqual(namesOf(await onePass(plain)), namesOf(await merge([plain])))
  assert.equal(find(await onePass(plain), 'm').linkName, 'l')
  for (const layer of [
    [{ name: 'a' }, { name: 'a' }],
    ['d', 'd'],
    ['./', './'],
    ['d', { name: 'd', kind: 'symlink' as const, linkName: 'x' }],
    [{ name: 'f' }, { name: 'f/x' }],
    [{ name: 'a' }, { name: 'b' }, { name: 'a', kind: 'link' as const, linkName: 'b' }],
  ]) {
    await assert.rejects(onePass(layer), TakesTwoPasses)
    await merge([layer])
  }
})

test('a layer gives the digest of what it is uncompressed', async () => {
  const tar = tarOf([{ name: 'a' }])
  const { diffId, entries } = await new LayerMerge(DEFAULT_LIMITS).scan({ open: () => source(gzipSync(tar)) })
  assert.equal(diffId, sha256(tar))
  assert.equal(entries, 1)
})

// Bad input

test('names that climb out or are absolute are refused', async () => {
  for (const name of ['../x', 'a/../../x', 'a/..', '..']) await refuses([[{ name }]], /climbs out/)
  await refuses([[{ name: '/etc/passwd' }]], /is absolute/)
  await refuses([['a', { name: 'a/.wh...' }]], /whiteout .* names nothing/)
  await refuses([[{ name: '.wh.' }]], /whiteout .* names nothing/)
  await refuses([[{ name: '.wh.d/x' }]], /whiteout for a parent/)
})

test('hard links that climb out, are absolute, or lead to nothing are refused', async () => {
  const link = (linkName: string): EntryWords => ({ name: 'l', kind: 'link', linkName })
  await refuses([[link('../../etc/shadow')]], /climbs out/)
  await refuses([[link('/etc/shadow')]], /is absolute/)
  await refuses([[link('nothing')]], /not there/)
  await refuses([[link('l')]], /not there|itself/)
  await refuses([[{ name: 'l' }], [link('l')]], /itself/)
  await refuses([['d', link('d')]], /directory/)
  await refuses([[link('./')]], /root directory/)
  await refuses([[{ name: 'gone' }], [{ name: '.wh.gone' }, link('gone')]], /not there/)
})

test('symbolic links are kept as they are, wherever they lead: they are followed in the guest alone', async () => {
  const entries = await merge([
    [
      { name: 'out', kind: 'symlink', linkName: '../../../etc/shadow' },
      { name: 'abs', kind: 'symlink', linkName: '/etc/shadow' },
    ],
  ])
  assert.equal(find(entries, 'out').linkName, '../../../etc/shadow')
  assert.equal(find(entries, 'abs').linkName, '/etc/shadow')
})

test('a file below a symbolic link of a lower layer is refused, and so are a link through one and a whiteout below one', async () => {
  const lower: Layer = ['usr', 'usr/bin', { name: 'usr/bin/x' }, { name: 'bin', kind: 'symlink', linkName: 'usr/bin' }]
  await refuses([lower, [{ name: 'bin/sh' }]], /lies below "bin", which is a symbolic link/)
  await refuses([lower, [{ name: 'bin/deeper/sh' }]], /symbolic link/)
  await refuses([lower, [{ name: 'l', kind: 'link', linkName: 'bin/x' }]], /symbolic link/)
  await refuses([lower, [{ name: 'bin/.wh.x' }]], /symbolic link/)
  await refuses([lower, [{ name: 'bin/.wh..wh..opq' }]], /symbolic link/)
  await refuses([[{ name: 'out', kind: 'symlink', linkName: '/' }, { name: 'out/etc/passwd' }]], /symbolic link/)
})

test('a directory that takes the place of a symbolic link may have names below it', async () => {
  assert.deepEqual(namesOf(await merge([[{ name: 'bin', kind: 'symlink', linkName: 'usr/bin' }], ['bin', { name: 'bin/sh' }]])), [
    'bin/',
    'bin/sh',
  ])
})

test('the root directory cannot become something else', async () => {
  await refuses([[{ name: './', kind: 'symlink', linkName: '/etc' }]], /root directory/)
})

test('too many entries, too many bytes, too deep and too long names are refused', async () => {
  const many = Array.from({ length: 20 }, (_, i) => ({ name: `f${i}` }))
  await refuses([many], /more than 10 entries/, { maxEntries: 10 }, 'image_too_large')
  await refuses([[{ name: 'a/b/c/d/e/f' }]], /more than 4 entries/, { maxEntries: 4 }, 'image_too_large')
  await refuses([many], /longer than 30 bytes together/, { maxNameBytes: 30 }, 'image_too_large')
  await refuses(
    [
      [
        { name: 'a', content: 'x'.repeat(100) },
        { name: 'b', content: 'x'.repeat(100) },
      ],
    ],
    /larger than 2000 bytes|more than/,
    { maxImageBytes: 2000 },
    'image_too_large',
  )
  await refuses([[{ name: 'hole', size: 2 ** 40, storedSize: 0, sparse: [] }]], /files are larger/, {}, 'image_too_large')
  await refuses([[{ name: 'a/'.repeat(300) }]], /deeper than 256/)
  await refuses([[{ name: `${'x'.repeat(250)}/`.repeat(20) }]], /longer than 4095 bytes/)
  await refuses([[{ name: 'x'.repeat(300) }]], /longer than 255 bytes/)
})

test('a decompression bomb is refused by its ratio long before it is unpacked', async () => {
  const bomb = gzipSync(Buffer.alloc(8 << 20))
  await assert.rejects(
    new LayerMerge({ ...DEFAULT_LIMITS, ratioFloorBytes: 1 << 20, maxRatio: 100 }).scan({ open: () => source(bomb) }),
    (error) => error instanceof AppError && error.code === 'image_too_large' && /bomb/.test(error.message),
  )
})

test('repeated whiteouts of a full directory do not cost its size each time', async () => {
  const files = Array.from({ length: 5_000 }, (_, i) => ({ name: `d/${i}` }))
  const marks = Array.from({ length: 5_000 }, () => ({ name: 'd/.wh..wh..opq' }))
  const startedAt = performance.now()
  assert.equal((await merge([['d', ...files, ...marks]])).length, 5_001)
  // Twenty-five million visits would show.
  assert.ok(performance.now() - startedAt < 10_000)
})
