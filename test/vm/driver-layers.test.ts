/** Memory as layers, with a small program for a VMM: what it has written is captured, loaded by another and consolidated, bit for bit. */
import assert from 'node:assert/strict'
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { chmod, chown, copyFile, link, mkdir, open, readdir, readFile, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import type { Compression } from '../../packages/api/src/compression.ts'
import type { AppError } from '../../packages/api/src/errors.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { Qmp } from '../../packages/daemon/src/hypervisors/qemu/qmp.ts'
import { type CaptureRead, Shim, type StoredCapture } from '../../packages/daemon/src/hypervisors/shim.ts'
import { consolidateBase, loadBase, sumUp } from '../../packages/daemon/src/memory/base-memory.ts'
import { Bases } from '../../packages/daemon/src/memory/bases.ts'
import { compressDelta } from '../../packages/daemon/src/memory/compress-delta.ts'
import { type Base, buildMemoryHolder, childrenOf, hashOf, MemoryHolder, PAGE, writeBase } from '../harness/memory-holder.ts'
import { addSwap } from '../harness/paging.ts'
import { artefacts, makeStep } from '../harness/qemu-driver.ts'
import { scratchDir } from '../harness/scratch.ts'

const isRoot = process.geteuid?.() === 0
const PAGES = 16_384

interface House {
  readonly dir: string
  readonly file: string
  start(name: string, base?: Base): Promise<MemoryHolder>
  /** An empty directory for a capture. */
  draft(name: string): Promise<string>
}

async function houseFor(t: TestContext, pages = PAGES): Promise<House> {
  const dir = await scratchDir(t)
  const program = await buildMemoryHolder(dir)
  const file = join(dir, 'base')
  await writeBase(file, pages, 1)
  let uid = 654_400
  return {
    dir,
    file,
    async start(name, base) {
      const held = base ?? { kind: 'daemon', fd: await sealed(t, file) }
      const user = isRoot ? { user: { uid: ++uid, gid: uid } } : {}
      const holder = await MemoryHolder.start({ name, dir, program, base: held, ...user })
      t.after(() => holder.end())
      return holder
    },
    async draft(name) {
      const draft = join(dir, name)
      await mkdir(draft, { mode: 0o700 })
      return draft
    },
  }
}

/** As the daemon holds it: no one can write it, and each who maps it sees the same. */
async function sealed(t: TestContext, file: string): Promise<number> {
  const { handle } = await loadBase(artefacts.shimPath, file, makeStep())
  t.after(() => handle.close())
  return handle.fd
}

async function captured(holder: MemoryHolder, draft: string): Promise<CaptureRead & { done: StoredCapture }> {
  await holder.do('state what the devices know')
  const read = await holder.shim.capture(draft, makeStep())
  return { ...read, done: await read.stored }
}

/** Scattered pages, a long stretch, pages of the base and of its hole, some of them zeros. */
async function dirty(holder: MemoryHolder): Promise<{ pages: number; zeroPages: number }> {
  await holder.do('fill 3 700 7 11')
  await holder.do('fill 9000 2000 1 12')
  await holder.do('fill 6000 100 2 0')
  await holder.do('fill 16000 50 1 0')
  return { pages: 700 + 2000 + 100 + 50, zeroPages: 150 }
}

test('what a VM has written is loaded over the same base by another, bit for bit, and the base stays as it was', async (t) => {
  const house = await houseFor(t)
  const source = await house.start('source')
  const expected = await dirty(source)
  const draft = await house.draft('draft')
  const { pages, bytes, done } = await captured(source, draft)
  assert.deepEqual({ pages, bytes }, { pages: expected.pages, bytes: expected.pages * PAGE })
  assert.deepEqual({ pages: done.pages, zeroPages: done.zeroPages }, expected)
  assert.equal((await stat(join(draft, 'delta'))).size, done.deltaBytes)
  assert.equal(await readFile(join(draft, 'state'), 'latin1'), 'what the devices know')
  assert.equal(done.stateBytes, 21)

  // The base in a file of its own, as one VM alone may have it, and in several mappings.
  const own = join(house.dir, 'own')
  await copyFile(house.file, own)
  await chmod(own, 0o666)
  const before = await hashOf(house.file)
  const expectedHash = await source.hash(house.dir)
  assert.notEqual(expectedHash, before)
  for (const [name, base] of [['memfd', undefined] as const, ['file', { kind: 'write', file: own } as const] as const]) {
    const target = await house.start(name, base)
    await target.do('split 9500')
    assert.deepEqual(await target.shim.load(join(draft, 'delta'), makeStep()), { pages: done.pages, sum: done.sum })
    assert.equal(await target.hash(house.dir), expectedHash)
    // The second nap: what was loaded counts as changed.
    const again = await captured(target, await house.draft(`again-${name}`))
    assert.equal(again.done.sum, done.sum)
  }
  assert.equal(await hashOf(own), before)
  const untouched = await house.start('untouched')
  assert.equal(await untouched.hash(house.dir), before)
})

test('a delta is laid out for a VMM that reads memory itself, with its zero pages as bytes and not as holes', async (t) => {
  const house = await houseFor(t)
  const source = await house.start('source')
  const { pages } = await dirty(source)
  const draft = await house.draft('draft')
  const { done } = await captured(source, draft)
  const out = join(house.dir, 'ranges')
  const { stdout } = await runCommand([artefacts.shimPath, 'ranges', join(draft, 'delta'), out], { step: makeStep() })
  assert.match(stdout, new RegExp(`^sum ${done.sum} ${pages} ${PAGES * PAGE}$`, 'm'))
  const ranges = [...stdout.matchAll(/^range (\d+) (\d+)$/gm)].map(([, first, count]) => ({ first: Number(first), count: Number(count) }))
  assert.equal(
    ranges.reduce((sum, { count }) => sum + count, 0),
    pages,
  )
  const { size, blocks } = await stat(out)
  assert.equal(size, pages * PAGE)
  assert.ok(blocks * 512 >= size, 'a page is a hole')

  // Laid over the base by those ranges it is the memory that was.
  const laid = join(house.dir, 'laid')
  await copyFile(house.file, laid)
  await using from = await open(out, 'r')
  await using to = await open(laid, 'r+')
  let at = 0
  for (const { first, count } of ranges) {
    const bytes = Buffer.alloc(count * PAGE)
    await from.read(bytes, 0, bytes.length, at)
    await to.write(bytes, 0, bytes.length, first * PAGE)
    at += bytes.length
  }
  assert.equal(await hashOf(laid), await source.hash(house.dir))
})

test('pages that the host has swapped out are captured too', async (t) => {
  if (!isRoot) return t.skip('only root can add swap')
  // Hooks run in the order in which they were made, and a directory with a swap file in use cannot go.
  let swap: AsyncDisposable | undefined
  t.after(() => swap?.[Symbol.asyncDispose]())
  const house = await houseFor(t)
  try {
    swap = await addSwap(house.dir, 64)
  } catch (error) {
    return t.skip(`this host takes no swap: ${error instanceof Error ? error.message : String(error)}`)
  }
  const source = await house.start('source')
  const expected = await dirty(source)
  await pollUntil(
    'pages to be swapped out',
    async () => {
      await source.do('pageout')
      return Number(await source.ask('swapped')) > 8000
    },
    makeStep(20_000),
  )
  const draft = await house.draft('draft')
  const { done } = await captured(source, draft)
  assert.deepEqual({ pages: done.pages, zeroPages: done.zeroPages }, expected)
  const target = await house.start('target')
  await target.shim.load(join(draft, 'delta'), makeStep())
  assert.equal(await target.hash(house.dir), await source.hash(house.dir))
})

test('a large delta is streamed, and comes back the same', async (t) => {
  const house = await houseFor(t, 65_536)
  const source = await house.start('source')
  await source.do('fill 0 32768 2 21')
  await source.do('fill 40000 3000 1 0')
  const draft = await house.draft('draft')
  const { pages, done } = await captured(source, draft)
  assert.equal(pages, 32_768 + 1500)
  assert.ok(done.pages === pages && done.zeroPages === 3000)
  const target = await house.start('target')
  assert.equal((await target.shim.load(join(draft, 'delta'), makeStep())).sum, done.sum)
  assert.equal(await target.hash(house.dir), await source.hash(house.dir))
})

test('base and delta make a base that holds what the VM had, on any file system', async (t) => {
  const mounts: string[] = []
  t.after(() => Promise.all(mounts.map((place) => runCommand(['umount', '-l', place], { step: makeStep() }))))
  const house = await houseFor(t)
  const source = await house.start('source')
  await dirty(source)
  const draft = await house.draft('draft')
  const { done } = await captured(source, draft)
  const expected = await source.hash(house.dir)
  const delta = join(draft, 'delta')
  const baseSum = await sumOf(house.file)
  const deltaSum = { sum: done.sum, pages: done.pages - done.zeroPages }
  assert.deepEqual(await sumUp(artefacts.shimPath, { base: house.file, delta }, makeStep()), { base: baseSum, delta: deltaSum })
  assert.deepEqual(await sumUp(artefacts.shimPath, { base: undefined, delta }, makeStep()), { base: undefined, delta: deltaSum })

  for (const place of [house.dir, ...(await reflinkPlaces(t, mounts))]) {
    const base = join(place, 'shared')
    await copyFile(house.file, base)
    const out = join(place, 'consolidated')
    const sum = await consolidateBase(artefacts.shimPath, { base, baseSum, delta, out }, makeStep())
    assert.equal(await hashOf(out), expected)
    assert.deepEqual(await sumOf(out), sum)
    assert.equal((await stat(out)).mode & 0o777, 0o666)
    assert.equal(await hashOf(base), await hashOf(house.file))
    // A VM on it has written nothing yet.
    const target = await house.start(`on-${place.length}`, { kind: 'daemon', fd: await sealed(t, out) })
    assert.equal(await target.hash(house.dir), expected)
    const { done: nothing } = await captured(target, await house.draft(`nothing-${place.length}`))
    assert.equal(nothing.pages, 0)
    await assert.rejects(consolidateBase(artefacts.shimPath, { base, delta, out }, makeStep()), /File exists/)
    assert.equal(await hashOf(out), expected)
  }

  // Over nothing: what is not in the delta is zeros.
  const alone = join(house.dir, 'alone')
  const over = await consolidateBase(artefacts.shimPath, { base: undefined, delta, out: alone }, makeStep())
  assert.equal(over.pages, done.pages - done.zeroPages)
  assert.ok((await stat(alone)).blocks * 512 < 20 << 20, 'holes stay holes')
  assert.deepEqual(await sumOf(alone), over)
})

test('a base that is not the one it should be, and a cut or flipped delta, are refused and leave nothing', async (t) => {
  const house = await houseFor(t)
  const source = await house.start('source')
  await dirty(source)
  const draft = await house.draft('draft')
  await captured(source, draft)
  const good = await readFile(join(draft, 'delta'))
  const delta = join(house.dir, 'bad')
  const out = join(house.dir, 'out')
  const refuses = async (what: RegExp): Promise<void> => {
    const target = await house.start(`target-${(await readdir(house.dir)).length}`)
    await assert.rejects(target.shim.load(delta, makeStep()), what)
    // Its shim and its VMM go on; what becomes of them is the daemon's affair.
    await target.do('fill 0 1 1 1')
    await assert.rejects(consolidateBase(artefacts.shimPath, { base: house.file, delta, out }, makeStep()), what)
    await assert.rejects(stat(out), { code: 'ENOENT' })
    await assert.rejects(sumUp(artefacts.shimPath, { base: house.file, delta }, makeStep()), { code: 'snapshot_unusable', message: what })
  }
  const flipped = async (at: number): Promise<void> => {
    const bad = Buffer.from(good)
    bad.writeUInt8(bad.readUInt8(at) ^ 4, at)
    await writeFile(delta, bad)
  }
  await writeFile(delta, good.subarray(0, -PAGE))
  await refuses(/another size/)
  await writeFile(delta, good.subarray(0, 40))
  await refuses(/ends early/)
  await writeFile(delta, '')
  await refuses(/ends early/)
  await flipped(0)
  await refuses(/no delta/)
  await flipped(48)
  await refuses(/another checksum/)
  await flipped(64)
  await refuses(/checksum|not in order/)
  await flipped(good.length - 1)
  await refuses(/another checksum/)

  await writeFile(delta, good)
  await assert.rejects(
    consolidateBase(artefacts.shimPath, { base: house.file, baseSum: { sum: '0'.repeat(16), pages: 1 }, delta, out }, makeStep()),
    /base .* has another checksum/,
  )
  await truncate(house.file, (PAGES + 1) * PAGE)
  await assert.rejects(consolidateBase(artefacts.shimPath, { base: house.file, delta, out }, makeStep()), /another size/)
  const larger = await house.start('larger')
  await assert.rejects(larger.shim.load(delta, makeStep()), /another size/)
  await assert.rejects(larger.shim.load(join(house.dir, 'absent'), makeStep()), /No such file/)
  await assert.rejects(stat(out), { code: 'ENOENT' })
})

test('a delta is packed in every way, and comes back the same, in a VM as in a base', async (t) => {
  const house = await houseFor(t)
  const source = await house.start('source')
  await dirty(source)
  await source.do('paint 9500 6000 1 13')
  const draft = await house.draft('draft')
  const { done } = await captured(source, draft)
  const delta = join(draft, 'delta')
  const expected = await source.hash(house.dir)
  const ways: Compression[] = [
    { algorithm: 'zstd', level: 1 },
    { algorithm: 'zstd', level: 19 },
    { algorithm: 'lz4', level: 0 },
    { algorithm: 'lz4', level: 9 },
  ]
  for (const [index, compression] of ways.entries()) {
    const out = join(house.dir, `packed-${index}`)
    const made = await compressDelta(artefacts.shimPath, { delta, out }, compression, makeStep())
    assert.deepEqual([made.pages, made.sum, made.bytes], [done.pages, done.sum, (await stat(out)).size])
    assert.ok(made.bytes < (made.plainBytes ?? 0) / 2, `${made.bytes} of ${made.plainBytes} bytes`)
    const target = await house.start(`target-${index}`)
    assert.deepEqual(await target.shim.load(out, makeStep()), { pages: done.pages, sum: done.sum })
    assert.equal(await target.hash(house.dir), expected)
    const base = join(house.dir, `base-${index}`)
    await consolidateBase(artefacts.shimPath, { base: house.file, delta: out, out: base }, makeStep())
    assert.equal(await hashOf(base), expected)
    // What is packed can be packed anew, and what is there is left alone.
    const again = join(house.dir, `again-${index}`)
    const anew = await compressDelta(artefacts.shimPath, { delta: out, out: again }, compression, makeStep())
    assert.deepEqual(anew, made)
    assert.equal(await hashOf(again), await hashOf(out))
    await assert.rejects(compressDelta(artefacts.shimPath, { delta, out }, compression, makeStep()), /File exists/)
  }
})

test('a base of its own, with and without a delta, becomes a packed delta over what it goes back to, or over nothing', async (t) => {
  const house = await houseFor(t)
  const source = await house.start('source')
  await dirty(source)
  // What was something in the base is nothing now, and the other way about.
  await source.do('fill 0 3 1 0')
  await source.do('fill 16100 2 1 7')
  const first = await house.draft('first')
  await captured(source, first)
  const ground = { file: house.file, sum: await sumOf(house.file) }
  const own = join(house.dir, 'own')
  const ownSum = await consolidateBase(artefacts.shimPath, { base: house.file, delta: join(first, 'delta'), out: own }, makeStep())
  const base = { file: own, sum: ownSum }
  const ownHash = await source.hash(house.dir)

  const napped = await house.start('napped', { kind: 'daemon', fd: await sealed(t, own) })
  await napped.do('fill 100 2000 3 61')
  await napped.do('fill 16100 1 1 0')
  const second = await house.draft('second')
  await captured(napped, second)
  const blank = join(house.dir, 'blank')
  await writeFile(blank, '')
  await truncate(blank, PAGES * PAGE)

  const compression = { algorithm: 'zstd', level: 1 } as const
  const cases = [
    { name: 'own', delta: undefined, ground, under: house.file, hash: ownHash },
    { name: 'both', delta: join(second, 'delta'), ground, under: house.file, hash: await napped.hash(house.dir) },
    { name: 'nothing', delta: join(second, 'delta'), ground: undefined, under: blank, hash: await napped.hash(house.dir) },
  ]
  for (const { name, delta, ground, under, hash } of cases) {
    const out = join(house.dir, `folded-${name}`)
    const made = await compressDelta(artefacts.shimPath, { delta, fold: { base, ground }, out }, compression, makeStep())
    const target = await house.start(`on-${name}`, { kind: 'daemon', fd: await sealed(t, under) })
    assert.deepEqual(await target.shim.load(out, makeStep()), { pages: made.pages, sum: made.sum })
    assert.equal(await target.hash(house.dir), hash, name)
    // No page that is the same is in it.
    assert.ok(made.pages <= (ground === undefined ? PAGES : 6000), `${made.pages} pages`)
  }

  const out = join(house.dir, 'refused')
  for (const [fold, what] of [
    [{ base: { file: own, sum: { ...ownSum, pages: 1 } }, ground }, /own has another checksum/],
    [{ base, ground: { file: house.file, sum: { ...ground.sum, sum: '0'.repeat(16) } } }, /base has another checksum/],
    [{ base, ground: { ...ground, file: join(first, 'delta') } }, /another size/],
  ] as const) {
    await assert.rejects(compressDelta(artefacts.shimPath, { delta: undefined, fold, out }, compression, makeStep()), what)
    await assert.rejects(stat(out), { code: 'ENOENT' })
  }
})

test('a packed delta that was cut, flipped or made up is refused, and a compression that is cancelled leaves nothing', async (t) => {
  const house = await houseFor(t)
  const source = await house.start('source')
  await source.do('paint 0 3000 1 13')
  await dirty(source)
  const draft = await house.draft('draft')
  await captured(source, draft)
  const good = join(house.dir, 'good')
  const bad = join(house.dir, 'bad')
  const again = join(house.dir, 'again')
  const compression = { algorithm: 'zstd', level: 1 } as const
  await compressDelta(artefacts.shimPath, { delta: join(draft, 'delta'), out: good }, compression, makeStep())
  const packed = await readFile(good)
  const target = await house.start('target')
  const refuses = async (content: Buffer, what: RegExp): Promise<void> => {
    await writeFile(bad, content)
    await assert.rejects(target.shim.load(bad, makeStep()), what)
    await assert.rejects(compressDelta(artefacts.shimPath, { delta: bad, out: again }, compression, makeStep()), what)
    await assert.rejects(stat(again), { code: 'ENOENT' })
  }
  const changed = (at: number, ...bytes: number[]): Buffer => {
    const copy = Buffer.from(packed)
    Buffer.from(bytes).copy(copy, at)
    return copy
  }
  const flipped = (at: number): Buffer => changed(at, packed.readUInt8(at) ^ 4)
  await refuses(packed.subarray(0, -4), /cannot be used/)
  await refuses(packed.subarray(0, 70), /another size/)
  await refuses(flipped(12), /newer form/)
  await refuses(flipped(48), /another checksum/)
  await refuses(flipped(packed.length - 4), /other sizes|impossible size/)
  for (let at = 64; at < packed.length; at += Math.ceil(packed.length / 40)) await refuses(flipped(at), /cannot be used/)
  // A frame that says that it becomes 8 exabytes, and one that wants a window of as much as can be said.
  await refuses(changed(64, 0x28, 0xb5, 0x2f, 0xfd, 0xe0, 255, 255, 255, 255, 255, 255, 255, 127), /cannot be unpacked/)
  await refuses(changed(64, 0x28, 0xb5, 0x2f, 0xfd, 0, 255), /cannot be unpacked/)
  await refuses(changed(packed.length - 4, 255, 255, 255, 255), /impossible size/)

  const large = await houseFor(t, 65_536)
  const writer = await large.start('writer')
  await writer.do('fill 0 65536 1 71')
  const much = await large.draft('much')
  await captured(writer, much)
  const cancelling = new AbortController()
  const out = join(house.dir, 'slow')
  const slow = compressDelta(
    artefacts.shimPath,
    { delta: join(much, 'delta'), out },
    { algorithm: 'zstd', level: 19 },
    { ...makeStep(), signal: cancelling.signal },
  )
  await pollUntil('it to begin', () => stat(out).catch(() => undefined), makeStep())
  cancelling.abort()
  await assert.rejects(slow, /cancelled/)
})

test('a consolidation keeps to its pace and ends with its step', async (t) => {
  const house = await houseFor(t)
  const source = await house.start('source')
  await source.do('fill 0 4096 1 31')
  const draft = await house.draft('draft')
  await captured(source, draft)
  const out = join(house.dir, 'out')
  const what = { base: undefined, delta: join(draft, 'delta'), out }
  const from = performance.now()
  await consolidateBase(artefacts.shimPath, { ...what, maxBytesPerSecond: 32 << 20 }, makeStep())
  // 16 MiB.
  assert.ok(performance.now() - from >= 450)
  const cancelling = new AbortController()
  const slow = consolidateBase(
    artefacts.shimPath,
    { ...what, out: `${out}-2`, maxBytesPerSecond: 1 << 20 },
    { ...makeStep(), signal: cancelling.signal },
  )
  await pollUntil('it to begin', () => stat(`${out}-2`).catch(() => undefined), makeStep())
  cancelling.abort()
  await assert.rejects(slow, /cancelled/)
})

test('a base that no one waits for leaves the disk what is to be spared, and keeps to its pace', async (t) => {
  const house = await houseFor(t)
  const source = await house.start('source')
  await source.do('fill 0 4096 1 31')
  const draft = await house.draft('draft')
  await captured(source, draft)
  const dir = await house.draft('bases')
  await using bases = new Bases({ dir, shimPath: artefacts.shimPath, isNeeded: () => true })
  const make = (spareBytes: number) =>
    bases.consolidate(undefined, draft, PAGES * PAGE, makeStep(), { maxBytesPerSecond: 32 << 20, spareBytes })
  await assert.rejects(make(2 ** 60), ({ code, message }: AppError) => code === 'insufficient_resources' && / 17MB /.test(message))
  assert.deepEqual(await readdir(dir), [])
  const from = performance.now()
  const { ref } = await make(0)
  // 16 MiB.
  assert.ok(performance.now() - from >= 450)
  assert.deepEqual(await readdir(dir), [ref.replace('base/', '')])
})

test('a worker that is hung up leaves no file and no process, and its shim serves on', async (t) => {
  const house = await houseFor(t, 65_536)
  const source = await house.start('source')
  await source.do('fill 0 65536 1 41')
  const only = [source.shim.vmm.pid]
  assert.deepEqual(await childrenOf(source.shim.identity.pid), only)
  const draft = await house.draft('draft')
  await source.do('state x')
  const cancelling = new AbortController()
  const capture = source.shim.capture(draft, { ...makeStep(), signal: cancelling.signal })
  await pollUntil('the delta to be begun', async () => (await readdir(draft)).length > 0, makeStep())
  cancelling.abort()
  await assert.rejects(capture, { code: 'timed_out' })
  assert.deepEqual(await readdir(draft), [])
  await pollUntil('the worker to be gone', async () => (await childrenOf(source.shim.identity.pid)).length === 1, makeStep(5000))

  // What failed used the device state up: a capture without one of its own would be of two moments.
  await assert.rejects(source.shim.capture(draft, makeStep()), /no device state has been saved/)
  assert.deepEqual(await readdir(draft), [])
  await captured(source, draft)
  // A capture that is there already is left alone.
  const before = await hashOf(join(draft, 'delta'))
  await source.do('state x')
  await assert.rejects(source.shim.capture(draft, makeStep()), /File exists/)
  assert.equal(await hashOf(join(draft, 'delta')), before)
  assert.deepEqual((await readdir(draft)).sort(), ['delta', 'state'])
})

test('what has been read is stored, though the VMM ends meanwhile; a shim that dies takes its workers along', async (t) => {
  const house = await houseFor(t)
  const source = await house.start('source')
  await source.do('fill 0 16384 1 51')
  await source.do('state x')
  const draft = await house.draft('draft')
  const { stored, pages } = await source.shim.capture(draft, makeStep())
  const exit = await source.shim.kill()
  assert.equal(exit.kind, 'signaled')
  assert.equal((await stored).pages, pages)
  assert.deepEqual((await readdir(draft)).sort(), ['delta', 'state'])

  const other = await house.start('other')
  await other.do('fill 0 16384 1 52')
  await other.do('state x')
  const doomed = await house.draft('doomed')
  const read = await other.shim.capture(doomed, makeStep())
  const workers = (await childrenOf(other.shim.identity.pid)).filter((pid) => pid !== other.shim.vmm.pid)
  process.kill(other.shim.identity.pid, 'SIGKILL')
  await read.stored.then(
    () => undefined,
    () => assert.rejects(stat(join(doomed, 'delta')), { code: 'ENOENT' }),
  )
  for (const pid of workers)
    await pollUntil(
      'the worker to end',
      () =>
        stat(`/proc/${pid}`).then(
          () => false,
          () => true,
        ),
      makeStep(5000),
    )
})

test('a VM whose memory is not what it was given is not captured', async (t) => {
  const house = await houseFor(t)
  const source = await house.start('source')
  await source.do('unmap 16000')
  await source.do('state x')
  await assert.rejects(source.shim.capture(await house.draft('draft'), makeStep()), /not mapped its memory once and as a whole/)
})

test('an ordinary user captures and loads the VMs of its own, after a restart of its daemon too', async (t) => {
  if (!isRoot) return t.skip('the other tests run as one already')
  const scope = await readFile('/proc/sys/kernel/yama/ptrace_scope', 'latin1').catch(() => '0')
  if (Number(scope) > 1) return t.skip('Yama keeps everyone but root from looking at processes here')
  const user = { uid: 654_399, gid: 654_399 }
  const house = await houseFor(t)
  const dir = await house.draft('rootless')
  await copyFile(house.file, join(dir, 'base'))
  const script = join(dir, 'daemon.ts')
  const room = (file: string): string => JSON.stringify(join(import.meta.dirname, '../..', file))
  await writeFile(
    script,
    `import { mkdir } from 'node:fs/promises'
     import { MemoryHolder } from ${room('test/harness/memory-holder.ts')}
     import { makeStep } from ${room('test/harness/qemu-driver.ts')}
     import { Shim } from ${room('packages/daemon/src/hypervisors/shim.ts')}
     const dir = ${JSON.stringify(dir)}, program = ${JSON.stringify(join(house.dir, 'memory-holder'))}
     const base = { kind: 'write', file: dir + '/base' }
     const source = await MemoryHolder.start({ name: 'source', dir, program, base })
     const target = await MemoryHolder.start({ name: 'target', dir, program, base })
     await source.do('fill 5 900 3 61')
     await source.do('state x')
     await mkdir(dir + '/draft')
     const { runDir, identity, vmm } = source.shim
     const adopted = await Shim.adopt(runDir, identity, vmm, makeStep())
     const done = await (await adopted.capture(dir + '/draft', makeStep())).stored
     const loaded = await target.shim.load(dir + '/draft/delta', makeStep())
     await source.do('write ' + dir + '/source.dump')
     await target.do('write ' + dir + '/target.dump')
     await source.end()
     await target.end()
     process.send({ uid: process.getuid(), done, loaded })
     process.disconnect()`,
  )
  for (const file of [dir, join(dir, 'base'), script]) await chown(file, user.uid, user.gid)
  const canRead = await runCommand(['test', '-r', import.meta.filename], { step: makeStep(), user, okCodes: [0, 1] })
  if (canRead.code !== 0) return t.skip('another user cannot read this clone')
  const child: ChildProcess = fork(script, { ...user, stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  const [message] = (await once(child, 'message', { signal: AbortSignal.timeout(60_000) })) as [
    { uid: number; done: StoredCapture; loaded: { sum: string } },
  ]
  assert.equal(message.uid, user.uid)
  assert.equal(message.done.pages, 900)
  assert.equal(message.loaded.sum, message.done.sum)
  assert.equal(await hashOf(join(dir, 'source.dump')), await hashOf(join(dir, 'target.dump')))
})

test('a file is handed to a QEMU that runs, which keeps it until it is told otherwise', async (t) => {
  const dir = await scratchDir(t)
  const runDir = join(dir, 'run')
  await mkdir(runDir, { mode: 0o700 })
  const user = isRoot ? { user: { uid: 654_398, gid: 654_398 } } : {}
  const shim = await Shim.launch(
    {
      shimPath: artefacts.shimPath,
      runDir,
      ...user,
      logs: [{ name: 'vmm', file: join(dir, 'vmm.log'), maxBytes: 1 << 20 }],
      isolateNetwork: false,
      vmm: {
        argv: [
          ...['qemu-system-x86_64', '-machine', 'none', '-nodefaults', '-display', 'none'],
          ...['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
          ...['-chardev', 'socket,id=qmp,fd=10,server=on,wait=off', '-mon', 'chardev=qmp,mode=control'],
          ...['-chardev', 'socket,id=held,fd=19', '-mon', 'chardev=held,mode=control'],
        ],
        descriptors: [
          { number: 10, kind: 'listen', name: 'qmp.sock' },
          { number: 19, kind: 'hold' },
        ],
      },
    },
    makeStep(),
  )
  t.after(async () => {
    await shim.kill()
    shim[Symbol.dispose]()
  })
  const file = join(dir, 'a disk with spaces')
  await writeFile(file, '', { mode: 0o600 })
  await truncate(file, 1 << 20)
  const again = join(dir, 'the same')
  await link(file, again)
  await shim.give(file, 'rw', 30, makeStep())
  await shim.give(again, 'ro', 31, makeStep())

  using qmp = await Qmp.connect(join(runDir, 'qmp.sock'), makeStep())
  const add = (set: number, readOnly: boolean): Promise<unknown> =>
    qmp.execute(
      'blockdev-add',
      { driver: 'file', 'node-name': `n${set}`, filename: `/dev/fdset/${set}`, 'read-only': readOnly, locking: 'off' },
      makeStep(),
    )
  await add(30, false)
  await assert.rejects(add(31, false), /QEMU refused blockdev-add/)
  await add(31, true)

  // QEMU serves one connection at a time: a job that waits for ours is hung up, and the next finds the way free.
  const hasty = { ...makeStep(), signal: AbortSignal.timeout(200) }
  await assert.rejects(shim.give(file, 'ro', 32, hasty), { code: 'timed_out' })
  await pollUntil('the worker to be gone', async () => (await childrenOf(shim.identity.pid)).length === 1, makeStep(5000))
  qmp[Symbol.dispose]()
  await shim.give(file, 'ro', 32, makeStep())
  await assert.rejects(shim.give(join(dir, 'absent'), 'ro', 33, makeStep()), /No such file/)
  await assert.rejects(shim.capture(dir, makeStep()), /memory/)
})

async function sumOf(file: string): Promise<{ sum: string; pages: number }> {
  const { handle, sum, pages } = await loadBase(artefacts.shimPath, file, makeStep())
  await handle.close()
  return { sum, pages }
}

/** A directory on a file system that shares blocks between files, where one can be made. */
async function reflinkPlaces(t: TestContext, mounts: string[]): Promise<string[]> {
  const dir = await scratchDir(t)
  const image = join(dir, 'image')
  const place = join(dir, 'mounted')
  await mkdir(place)
  await using handle = await open(image, 'w')
  await handle.truncate(512 << 20)
  try {
    await runCommand(['mkfs.xfs', '-q', '-m', 'reflink=1', image], { step: makeStep() })
    await runCommand(['mount', '-o', 'loop', image, place], { step: makeStep() })
  } catch (error) {
    t.diagnostic(`no reflinks were tried: ${error instanceof Error ? error.message : String(error)}`)
    return []
  }
  mounts.push(place)
  return [place]
}
