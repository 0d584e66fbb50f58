import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, statfs, truncate, writeFile } from 'node:fs/promises'
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
  // As in a data directory: who has a disk goes through to it.
  await chmod(dir, 0o711)
  await mkdir(join(dir, 'disks'), { mode: 0o711 })
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

test('a disk larger than any file can be is refused as such, and leaves nothing', async (t) => {
  const bytes = Number.MAX_SAFE_INTEGER
  await writeFile(join(dir, 'probe'), '')
  const isTaken = await truncate(join(dir, 'probe'), bytes).then(
    () => true,
    () => false,
  )
  if (isTaken) return t.skip('this file system takes files of any size')
  const refusal = { code: 'insufficient_resources', message: /takes no file of/ }
  await assert.rejects(disks.createOverlay('huge.raw', bytes, { step: step() }), refusal)
  await disks.createOverlay('small.raw', GIB, { step: step() })
  await assert.rejects(disks.extend('small.raw', bytes), refusal)
  await assert.rejects(disks.grow('small.raw', bytes, { step: step() }), refusal)
  assert.equal((await stat(at('small.raw'))).size, GIB)
  assert.deepEqual(
    [...(await readdir(join(dir, 'disks'))), ...(await readdir(join(dir, 'cache/disks')))].filter((name) => /huge|draft/.test(name)),
    [],
  )
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

const qemuIo = (path: string, format: string, ...commands: string[]) =>
  runCommand(['qemu-io', '-f', format, ...commands.flatMap((command) => ['-c', command]), path], { step: step() })

test('an empty layer is what qemu-img would make, byte for byte but for its list of names, and is made at once', async (t) => {
  for (const bytes of [32 << 20, 10 * GIB, 10 * GIB + 4096, 5000 * GIB]) {
    const name = await disks.newLayer(bytes, {})
    const other = join(dir, 'qemu-img.qcow2')
    await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', other, String(bytes)], { step: step() })
    await runCommand(['qemu-img', 'check', '-q', '-f', 'qcow2', at(name)], { step: step() })
    const [ours, theirs] = await Promise.all([readFile(at(name)), readFile(other)])
    // Behind the header they tell what each feature is called, for who does not know it.
    theirs.fill(0, 112, 65_536)
    assert.deepEqual(ours, theirs)
    assert.equal((await stat(at(name))).mode & 0o777, 0o600)
  }
  const taken: number[] = []
  for (let count = 0; count < 50; count++) {
    const startedAt = performance.now()
    await disks.newLayer(10 * GIB, {})
    taken.push(performance.now() - startedAt)
  }
  taken.sort((a, b) => a - b)
  t.diagnostic(`${taken[0]?.toFixed(2)} ms at best, ${taken[25]?.toFixed(2)} ms in the middle`)
  // At best: what a busy machine adds is none of ours.
  assert.ok(Number(taken[0]) < 3)
})

test('a layer that names another file is never read: it would be opened by whoever comes next', async () => {
  const [base, secret] = ['below.raw', join(dir, 'secret')]
  await disks.createOverlay(base, 32 << 20, { step: step() })
  await writeFile(secret, 'secret'.repeat(1000))
  const [top] = (await disks.freeze([base], { bytes: 32 << 20 })).source
  assert.ok(top)
  await runCommand(['qemu-img', 'rebase', '-u', '-f', 'qcow2', '-F', 'raw', '-b', secret, at(top)], { step: step() })
  await assert.rejects(disks.flatten([top, base], { step: step() }), { code: 'internal_error', message: /damaged/ })
  await assert.rejects(disks.freeze([top, base], { bytes: 32 << 20 }), { code: 'internal_error', message: /damaged/ })
  const data = join(dir, 'data-file.qcow2')
  await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', `data_file=${join(dir, 'data-file.raw')}`, data, '32M'], {
    step: step(),
  })
  await rename(data, at(top))
  await assert.rejects(disks.flatten([top, base], { step: step() }), { code: 'internal_error', message: /damaged/ })
})

test('a frozen disk is two that are the same and go apart, and each flattens to what it shows', async () => {
  const owner = process.geteuid?.() === 0 ? { uid: 654_321, gid: 654_321 } : undefined
  const other = owner && { uid: 654_322, gid: 654_322 }
  await disks.createOverlay('origin.raw', GIB, { owner, step: step() })
  await qemuIo(at('origin.raw'), 'raw', 'write -P 1 800M 1M')
  const first = await disks.freeze(['origin.raw'], { bytes: GIB, owner, copy: { owner: other } })
  assert.deepEqual([first.source.length, first.copy.length, first.source[1], first.copy[1]], [2, 2, 'origin.raw', 'origin.raw'])
  assert.notEqual(first.source[0], first.copy[0])
  await qemuIo(at(String(first.source[0])), 'qcow2', 'write -P 2 800M 64k', 'write -z 600M 1M')
  await qemuIo(at(String(first.copy[0])), 'qcow2', 'write -P 3 900M 64k')
  // Once more, over a chain, and for no one to write.
  const second = await disks.freeze(first.copy, { bytes: GIB, owner: other })
  assert.deepEqual([second.copy, second.source.slice(1)], [first.copy, first.copy])
  await qemuIo(at(String(second.source[0])), 'qcow2', 'write -P 4 100M 64k')
  await disks.flush(second.source)

  const source = await disks.flatten(first.source, { owner, step: step() })
  const copy = await disks.flatten(second.source, { owner: other, step: step() })
  await qemuIo(at(source), 'raw', 'read -P 2 800M 64k', 'read -P 1 819264k 64k', 'read -P 0 900M 64k', 'read -P 0 100M 64k')
  await qemuIo(at(copy), 'raw', 'read -P 1 800M 1M', 'read -P 3 900M 64k', 'read -P 4 100M 64k')
  const { size, blocks, uid, mode } = await stat(at(copy))
  assert.deepEqual([size, mode & 0o777, uid], [GIB, 0o600, other?.uid ?? process.geteuid?.()])
  assert.ok(blocks * 512 < 8 << 20, `${blocks * 512} bytes`)
  await check(at(copy))
  // What is a raw layer already stays as it is, and takes a growth.
  assert.equal(await disks.flatten([copy], { step: step() }), copy)
  await disks.grow(copy, 2 * GIB, { owner: other, step: step() })
})

/** A file system that shares blocks, mounted for as long as the test lasts; or why there is none. */
async function mountReflinking(kind: 'xfs' | 'btrfs'): Promise<{ path: string; [Symbol.asyncDispose](): Promise<void> } | string> {
  const [image, path] = [join(dir, `${kind}.img`), join(dir, kind)]
  await writeFile(image, '')
  await truncate(image, 512 << 20)
  await mkdir(path)
  try {
    await runCommand([`mkfs.${kind}`, '-q', image], { step: step() })
    await runCommand(['mount', '-o', 'loop', image, path], { step: step() })
  } catch (error) {
    return String(error)
  }
  return { path, [Symbol.asyncDispose]: async () => void (await runCommand(['umount', path], { step: step() })) }
}

for (const kind of ['xfs', 'btrfs'] as const) {
  test(`on ${kind} a disk of one raw layer is frozen by sharing its blocks`, async (t) => {
    const mounted = await mountReflinking(kind)
    if (typeof mounted === 'string') return t.skip(mounted)
    await using fileSystem = mounted
    const there = disksIn(fileSystem.path)
    await mkdir(join(fileSystem.path, 'disks'))
    await there.createOverlay('origin.raw', GIB, { step: step() })
    await qemuIo(join(fileSystem.path, 'disks/origin.raw'), 'raw', 'write -P 1 800M 100M')
    const startedAt = performance.now()
    const { source, copy } = await there.freeze(['origin.raw'], { bytes: GIB, copy: {} })
    t.diagnostic(`${(performance.now() - startedAt).toFixed(1)} ms`)
    assert.deepEqual([source, copy.length], [['origin.raw'], 1])
    assert.equal((await there.branch(copy, { bytes: GIB })).length, 1)
    const clone = join(fileSystem.path, 'disks', String(copy[0]))
    await there.flush(copy)
    await qemuIo(join(fileSystem.path, 'disks/origin.raw'), 'raw', 'write -P 2 800M 1M')
    await qemuIo(clone, 'raw', 'read -P 1 800M 100M')
    await check(clone)
    const { blocks, bsize, bfree } = await statfs(fileSystem.path)
    assert.ok((blocks - bfree) * bsize < 200 << 20, 'the copy took the space again')
  })
}

test('a disk that a VMM holds locked is copied as it is, for whoever knows that it stands still', async () => {
  await disks.createOverlay('held.raw', GIB, { step: step() })
  await qemuIo(at('held.raw'), 'raw', 'write -P 7 500M 4k')
  // As Cloud Hypervisor does: all bytes, for as long as the disk is open.
  const lock = 'import fcntl, sys; f = open(sys.argv[1], "r+"); fcntl.lockf(f, fcntl.LOCK_EX); print("held", flush=True); sys.stdin.read()'
  const holder = spawn('python3', ['-c', lock, at('held.raw')], { stdio: ['pipe', 'pipe', 'inherit'] })
  const ended = once(holder, 'close')
  try {
    await once(holder.stdout, 'data')
    const copy = await disks.copy('held.raw', { step: step() })
    await qemuIo(at(copy), 'raw', 'read -P 7 500M 4k', 'read -P 0 501M 4k')
    await check(at(copy))
    // What is not known to stand still is not read past its lock.
    const chain = [await disks.newLayer(GIB, {}), 'held.raw']
    await assert.rejects(disks.flatten(chain, { step: step() }), { code: 'internal_error', message: /lock/ })
  } finally {
    holder.kill('SIGKILL')
    await ended
  }
})

test('a flattening that is cancelled, or cannot be done, leaves nothing', async () => {
  await disks.createOverlay('long.raw', GIB, { step: step() })
  await qemuIo(at('long.raw'), 'raw', 'write -P 1 100M 300M')
  const { source } = await disks.freeze(['long.raw'], { bytes: GIB })
  const before = (await readdir(join(dir, 'disks'))).sort()
  for (const ms of [0, 20, 60]) {
    await assert.rejects(disks.flatten(source, { step: { signal: AbortSignal.timeout(ms), log: silentLogger } }))
  }
  await rm(at('long.raw'))
  await assert.rejects(disks.flatten(source, { step: step() }), { code: 'ENOENT' })
  await writeFile(at('long.raw'), 'no filesystem', { mode: 0o600 })
  await assert.rejects(disks.flatten(['long.raw', ...source], { step: step() }), { code: 'internal_error' })
  assert.deepEqual((await readdir(join(dir, 'disks'))).sort(), before)
})
