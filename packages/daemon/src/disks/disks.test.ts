import assert from 'node:assert/strict'
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { runCommand } from '../host/run-command.ts'
import { silentLogger } from '../log.ts'
import { Paths } from '../paths.ts'
import { Disks } from './disks.ts'

const GIB = 1 << 30
const step = () => ({ signal: AbortSignal.timeout(30_000), log: silentLogger })
let dir: string
let disks: Disks
/** What rows name, where a test says so. */
const named = { all: new Set<string>(), frozen: [] as string[] }
const disksIn = (data: string): Disks =>
  new Disks({
    paths: new Paths({ dataDir: data, runDir: '/run/x' }),
    layers: { unnamed: (names) => names.filter((name) => !named.all.has(name)), frozen: () => named.frozen },
  })
before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'disks-'))
  await mkdir(join(dir, 'disks'))
  disks = disksIn(dir)
})
after(() => rm(dir, { recursive: true, force: true }))

const at = (name: string): string => join(dir, 'disks', name)
const check = (path: string) => runCommand(['e2fsck', '-f', '-n', path], { step: step() })

test('an overlay is a clean ext4 of the size asked for, and takes little space', async () => {
  await disks.createOverlay('one.raw', 10 * GIB, { step: step() })
  const { size, blocks } = await stat(at('one.raw'))
  assert.equal(size, 10 * GIB)
  assert.ok(blocks * 512 < 2 << 20, `${blocks * 512} bytes`)
  await check(at('one.raw'))
})

test('a second overlay of a size comes from the template, which outlives the daemon', async () => {
  await disks.createOverlay('two.raw', 10 * GIB, { step: step() })
  await disksIn(dir).createOverlay('three.raw', 10 * GIB, { step: step() })
  await check(at('three.raw'))
  assert.deepEqual(await readdir(join(dir, 'cache/disks')), [`ext4-${10 * GIB}`])
})

test('a damaged template is made anew', async () => {
  const template = join(dir, 'cache/disks', `ext4-${10 * GIB}`)
  await writeFile(template, (await readFile(template)).subarray(0, 5000))
  await disksIn(dir).createOverlay('four.raw', 10 * GIB, { step: step() })
  await check(at('four.raw'))
})

test('an overlay that is there already is never overwritten', async () => {
  const path = at('kept.raw')
  await writeFile(path, 'precious')
  await assert.rejects(disks.createOverlay('kept.raw', GIB, { step: step() }), { code: 'EEXIST' })
  assert.equal(await readFile(path, 'utf8'), 'precious')
})

test('an overlay grows, twice is harmless, and it never shrinks', async () => {
  await disks.createOverlay('grown.raw', GIB, { step: step() })
  await disks.grow('grown.raw', 2 * GIB, { step: step() })
  await disks.grow('grown.raw', 2 * GIB, { step: step() })
  await check(at('grown.raw'))
  const { stdout } = await runCommand(['dumpe2fs', '-h', at('grown.raw')], { step: step() })
  assert.match(stdout, /Block count: +524288/)
  await assert.rejects(disks.grow('grown.raw', GIB, { step: step() }), { code: 'invalid_overlay_size' })
})

test('layers that a row names are kept, the others go, and what no one writes any more is counted', async () => {
  for (const name of ['mine.raw', 'shared.raw']) await disks.createOverlay(name, GIB, { step: step() })
  named.all.add('shared.raw')
  named.frozen = ['shared.raw', 'gone.raw']
  assert.equal(disks.isWhole(['mine.raw', 'shared.raw']), true)
  assert.deepEqual(await disks.release(['mine.raw', 'shared.raw']), ['mine.raw'])
  assert.deepEqual(await disks.release(['mine.raw', 'shared.raw']), ['mine.raw'])
  assert.equal(disks.isWhole(['mine.raw', 'shared.raw']), false)
  assert.equal(disks.isWhole([]), false)
  assert.equal(await disks.frozenBytes(), (await stat(at('shared.raw'))).blocks * 512)
})
