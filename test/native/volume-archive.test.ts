/** Archives into volumes: what is in them is what is in the filesystem, and what is hostile leaves nothing. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readdirSync } from 'node:fs'
import { Readable } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { type EntryWords, tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { assertInOrder, TestHouse } from '../../packages/daemon/src/instances/test-house.ts'

const MIB = 2 ** 20
const step = () => ({ signal: AbortSignal.timeout(60_000) })

async function houseOf(t: TestContext): Promise<TestHouse> {
  const house = new TestHouse()
  t.after(() => house[Symbol.asyncDispose]())
  await house.begin()
  return house
}

async function fill(house: TestHouse, archive: Buffer, bytes = 64 * MIB): Promise<string> {
  const volume = await house.volumes.createFromArchive({ name: 'data', bytes }, Readable.from([archive]), step())
  const file = house.paths.disk(String(volume.disk[0]))
  await runCommand(['e2fsck', '-f', '-n', file], { step: step() })
  return file
}

const debugfs = async (file: string, request: string): Promise<string> =>
  (await runCommand(['debugfs', '-R', request, file], { step: step() })).stdout
const ELSEWHERE = new Map([['user.note', Buffer.from([0, 0xff, 10, 61])]])
const random = (bytes: number): Buffer => randomBytes(bytes)

test('owners, modes, times, links, devices, holes and attributes are in the volume as they were in the archive', async (t) => {
  const house = await houseOf(t)
  const big = random(60_000)
  const sparse = { size: 9 * MIB, storedSize: 4096, sparse: [{ offset: 8 * MIB, length: 4096 }] }
  const entries: (EntryWords | string)[] = [
    { name: './', kind: 'dir', mode: 0o750, uid: 7 },
    'dir',
    { name: 'dir/file', content: big, mode: 0o4751, uid: 1_234_567, gid: 70_000, mtime: 4_102_444_800, xattrs: ELSEWHERE },
    { name: 'dir/hard', kind: 'link', linkName: 'dir/file' },
    { name: 'dir/symlink', kind: 'symlink', linkName: '../../etc/passwd' },
    { name: `dir/${'long'.repeat(50)}`, kind: 'symlink', linkName: 'x/'.repeat(200) },
    { name: 'dir/tty', kind: 'char', devMajor: 5, devMinor: 300 },
    { name: 'dir/pipe', kind: 'fifo' },
    { name: 'dir/holes', content: random(4096), ...sparse },
    { name: 'implied/parent/.wh.no-whiteout', content: 'kept' },
    ...Array.from({ length: 500 }, (_, index) => ({ name: `many/${index}-${'n'.repeat(40)}`, content: `${index}` })),
  ]
  const file = await fill(house, gzipSync(tarOf(entries)))
  const stat = async (path: string): Promise<string> => debugfs(file, `stat ${path}`)
  const told = await stat('/dir/file')
  assert.match(told, /Type: regular +Mode: +04751/)
  assert.match(told, /User: 1234567 +Group: 70000 .*Size: 60000/)
  assert.match(told, /Links: 2/)
  assert.match(told, /mtime: 0xf4865700:0000000[01]/)
  assert.match(await stat('/'), /Mode: +0750[\s\S]*User: +7 /)
  assert.match(await stat('/dir/symlink'), /Fast link dest: "..\/..\/etc\/passwd"/)
  assert.match(await stat('/dir/tty'), /Device major\/minor number: 05:300/)
  assert.match(await stat('/dir/pipe'), /Type: FIFO/)
  const holes = await stat('/dir/holes')
  assert.match(holes, /Size: 9437184/)
  assert.ok(Number(/Blockcount: (\d+)/.exec(holes)?.[1]) < 64)
  assert.equal(await debugfs(file, 'cat /implied/parent/.wh.no-whiteout'), 'kept')
  assert.equal(await debugfs(file, `cat /many/499-${'n'.repeat(40)}`), '499')
  const { stdout } = await runCommand(['debugfs', '-R', 'ea_get -x /dir/file user.note', file], { step: step() })
  assert.match(stdout, /00 ff 0a 3d/)
  await assertInOrder(house)
})

const HOSTILE: readonly (readonly [what: string, code: string, archive: () => Buffer])[] = [
  ['a name that climbs out', 'invalid_archive', () => tarOf([{ name: '../escape', content: 'x' }])],
  ['an absolute name', 'invalid_archive', () => tarOf([{ name: '/etc/passwd', content: 'x' }])],
  [
    'a name below a link',
    'invalid_archive',
    () =>
      tarOf([
        { name: 'a', kind: 'symlink', linkName: '/' },
        { name: 'a/b', content: 'x' },
      ]),
  ],
  ['a hard link out', 'invalid_archive', () => tarOf([{ name: 'a', kind: 'link', linkName: '../../x' }])],
  ['a hard link to nothing', 'invalid_archive', () => tarOf([{ name: 'a', kind: 'link', linkName: 'b' }])],
  [
    'a name twice',
    'invalid_archive',
    () =>
      tarOf([
        { name: 'a', content: '1' },
        { name: 'a', content: '2' },
      ]),
  ],
  ['no archive', 'invalid_archive', () => random(100_000)],
  ['half an archive', 'invalid_archive', () => gzipSync(tarOf([{ name: 'a', content: random(100_000) }])).subarray(0, 50_000)],
  ['more than the volume says', 'archive_too_large', () => gzipSync(tarOf([{ name: 'zeros', content: Buffer.alloc(65 * MIB) }]))],
  ['a hole larger than the volume', 'archive_too_large', () => tarOf([{ name: 'a', size: 2 ** 40, storedSize: 0, sparse: [] }])],
  ['more than fits beside the tables', 'archive_too_large', () => tarOf([{ name: 'a', content: random(63 * MIB) }])],
  ['more names than inodes', 'archive_too_large', () => tarOf(Array.from({ length: 20_000 }, (_, index) => ({ name: `${index}` })))],
]

for (const [what, code, archive] of HOSTILE) {
  test(`${what} is refused, and nothing is left`, async (t) => {
    const house = await houseOf(t)
    await assert.rejects(fill(house, archive()), { code })
    assert.deepEqual([house.volumes.list(), readdirSync(house.paths.disksDir)], [[], []])
    await assertInOrder(house)
  })
}

test('a directory of a hundred thousand names is filled in one go', async (t) => {
  const house = await houseOf(t)
  const names = Array.from({ length: 100_000 }, (_, index) => ({
    name: `many/${index}`,
    kind: 'link' as const,
    linkName: `first/${index % 2}`,
  }))
  const archive = tarOf([{ name: 'first/0', content: '0' }, { name: 'first/1', content: '1' }, ...names])
  const file = await fill(house, archive, 128 * MIB)
  assert.match(await debugfs(file, 'stat /first/1'), /Links: 50001/)
  assert.equal(await debugfs(file, 'cat /many/99999'), '1')
})

test('a caller who hangs up leaves nothing', async (t) => {
  const house = await houseOf(t)
  const gone = new AbortController()
  const endless = async function* () {
    yield tarOf([{ name: 'a', content: random(MIB) }]).subarray(0, MIB)
    gone.abort(new Error('gone'))
    await new Promise((resolve) => setTimeout(resolve, 30_000).unref())
  }
  await assert.rejects(house.volumes.createFromArchive({ name: 'data', bytes: 64 * MIB }, endless(), { signal: gone.signal }))
  await assertInOrder(house)
})
