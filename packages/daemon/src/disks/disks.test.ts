import assert from 'node:assert/strict'
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { runCommand } from '../host/run-command.ts'
import { silentLogger } from '../log.ts'
import { Disks } from './disks.ts'

const GIB = 1 << 30
const step = () => ({ signal: AbortSignal.timeout(30_000), log: silentLogger })
let dir: string
let disks: Disks
before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'disks-'))
  disks = new Disks({ templatesDir: join(dir, 'templates') })
})
after(() => rm(dir, { recursive: true, force: true }))

const check = (path: string) => runCommand(['e2fsck', '-f', '-n', path], { step: step() })

test('an overlay is a clean ext4 of the size asked for, and takes little space', async () => {
  const path = join(dir, 'one.raw')
  await disks.createOverlay(path, 10 * GIB, { step: step() })
  const { size, blocks } = await stat(path)
  assert.equal(size, 10 * GIB)
  assert.ok(blocks * 512 < 2 << 20, `${blocks * 512} bytes`)
  await check(path)
})

test('a second overlay of a size comes from the template, which outlives the daemon', async () => {
  await disks.createOverlay(join(dir, 'two.raw'), 10 * GIB, { step: step() })
  const next = new Disks({ templatesDir: join(dir, 'templates') })
  await next.createOverlay(join(dir, 'three.raw'), 10 * GIB, { step: step() })
  await check(join(dir, 'three.raw'))
  assert.deepEqual(await readdir(join(dir, 'templates')), [`ext4-${10 * GIB}`])
})

test('a damaged template is made anew', async () => {
  const template = join(dir, 'templates', `ext4-${10 * GIB}`)
  await writeFile(template, (await readFile(template)).subarray(0, 5000))
  await new Disks({ templatesDir: join(dir, 'templates') }).createOverlay(join(dir, 'four.raw'), 10 * GIB, { step: step() })
  await check(join(dir, 'four.raw'))
})

test('an overlay that is there already is never overwritten', async () => {
  const path = join(dir, 'kept.raw')
  await writeFile(path, 'precious')
  await assert.rejects(disks.createOverlay(path, GIB, { step: step() }), { code: 'EEXIST' })
  assert.equal(await readFile(path, 'utf8'), 'precious')
})

test('an overlay grows, twice is harmless, and it never shrinks', async () => {
  const path = join(dir, 'grown.raw')
  await disks.createOverlay(path, GIB, { step: step() })
  await disks.grow(path, 2 * GIB, { step: step() })
  await disks.grow(path, 2 * GIB, { step: step() })
  await check(path)
  const { stdout } = await runCommand(['dumpe2fs', '-h', path], { step: step() })
  assert.match(stdout, /Block count: +524288/)
  await assert.rejects(disks.grow(path, GIB, { step: step() }), { code: 'invalid_overlay_size' })
})
