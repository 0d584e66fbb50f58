/** Which golden boots are given up, and which never: with a machine that is made up, and the shim's own memory. */
import assert from 'node:assert/strict'
import { mkdir, readdir, rm, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { pino } from 'pino'
import { type CaptureGolden, GoldenBoots, type GoldenBootsUses, type GoldenShape } from '../../packages/daemon/src/memory/golden-boots.ts'
import { artefacts, makeStep } from '../harness/qemu-driver.ts'
import { scratchDir } from '../harness/scratch.ts'

const SIZE = 16 << 20
const shape = (name: string): GoldenShape => ({ memoryBytes: SIZE, facts: { name } })
const capture: CaptureGolden = async (memory, stateFile) => {
  await memory.write(Buffer.from('guest'), 0, undefined, 0)
  await writeFile(stateFile, 'state')
}
const ALL = { isStale: () => false, keepBytes: 0, keepCount: 0, unusedForMs: 0, dryRun: false }
const NONE = { ...ALL, keepBytes: Number.POSITIVE_INFINITY, keepCount: Number.POSITIVE_INFINITY }

function goldenIn(t: TestContext, dir: string, uses: Partial<GoldenBootsUses> = {}): GoldenBoots {
  const golden = new GoldenBoots({ dir, shimPath: artefacts.shimPath, log: pino({ level: 'silent' }), settleMs: 0, ...uses })
  t.after(() => golden[Symbol.asyncDispose]())
  return golden
}

async function made(golden: GoldenBoots, ...names: string[]): Promise<string[]> {
  const keys: string[] = []
  for (const name of names) {
    using one = await golden.goldenBoot(shape(name), capture, makeStep())
    keys.push(one.key)
  }
  return keys
}

/** Makes them look as if each had been used a day after the one before, and no daemon had them loaded. */
async function agedIn(t: TestContext, dir: string, uses: Partial<GoldenBootsUses>, ...names: string[]) {
  const first = goldenIn(t, dir)
  const keys = await made(first, ...names)
  await first[Symbol.asyncDispose]()
  for (const [day, key] of keys.entries()) {
    const at = new Date(Date.now() - (keys.length - day) * 24 * 3_600_000)
    await utimes(join(dir, key, 'manifest.json'), at, at)
  }
  return { golden: goldenIn(t, dir, uses), keys }
}

test('the least recently used ones go until the limits are kept, of bytes and of how many', async (t) => {
  const { golden, keys } = await agedIn(t, await scratchDir(t), {}, 'a', 'b', 'c', 'd')
  const each = (await golden.list())[0]?.bytes ?? 0
  assert.deepEqual((await golden.collect({ ...NONE, keepCount: 3, dryRun: true })).names, keys.slice(0, 1))
  assert.deepEqual(await golden.collect({ ...NONE, keepCount: 3 }), { names: keys.slice(0, 1), bytes: each })
  assert.deepEqual((await golden.collect({ ...NONE, keepBytes: 2 * each })).names, keys.slice(1, 2))
  assert.deepEqual((await golden.collect(ALL)).names, keys.slice(2))
  assert.equal(await golden.diskUsage(), 0)
})

test('those of another QEMU or kernel go first, however lately they were used and however much room there is', async (t) => {
  const { golden, keys } = await agedIn(t, await scratchDir(t), {}, 'now', 'other')
  const isStale = ({ name }: GoldenShape['facts']) => name === 'other'
  assert.deepEqual((await golden.collect({ ...NONE, isStale })).names, keys.slice(1))
})

test('what something stands on stays, stale or beyond any limit, and so does what is held', async (t) => {
  const needed = new Set<string>()
  const { golden, keys } = await agedIn(t, await scratchDir(t), { isNeeded: (key) => needed.has(key) }, 'stood on', 'held', 'free')
  needed.add(keys[0] ?? '')
  const held = await golden.goldenBoot(shape('held'), capture, makeStep())
  assert.deepEqual((await golden.collect({ ...ALL, isStale: () => true })).names, keys.slice(2))
  held[Symbol.dispose]()
  assert.deepEqual((await golden.collect({ ...ALL, isStale: () => true })).names, keys.slice(1, 2))
})

test('what was let go just now stays: the VM that came of it may not be on record yet', async (t) => {
  const dir = await scratchDir(t)
  const golden = goldenIn(t, dir, { settleMs: 300_000, maxLoaded: 0 })
  await made(golden, 'started')
  assert.deepEqual((await golden.collect(ALL)).names, [])
  // So it does when the limits ask for room for another one.
  const full = goldenIn(t, await scratchDir(t), { settleMs: 300_000, maxCount: 1 })
  await made(full, 'a', 'b')
  assert.equal((await full.list()).length, 2)
})

test('unused for so long: what was used since stays', async (t) => {
  const { golden, keys } = await agedIn(t, await scratchDir(t), {}, 'a', 'b', 'c')
  assert.deepEqual((await golden.collect({ ...ALL, unusedForMs: 36 * 3_600_000 })).names, keys.slice(0, 2))
})

test('to hold one is to use it, also for the daemon that comes next', async (t) => {
  const dir = await scratchDir(t)
  const { golden, keys } = await agedIn(t, dir, {}, 'a', 'b', 'c')
  await made(golden, 'a')
  await golden[Symbol.asyncDispose]()
  assert.deepEqual((await goldenIn(t, dir).collect({ ...NONE, keepCount: 1 })).names, keys.slice(1))
})

test('one that is asked for while it is being removed is made anew, and is whole', async (t) => {
  const { golden, keys } = await agedIn(t, await scratchDir(t), {}, 'a')
  for (let turn = 0; turn < 8; turn++) {
    const collecting = golden.collect(ALL)
    for (let n = 0; n < turn; n++) await new Promise(setImmediate)
    {
      using one = await golden.goldenBoot(shape('a'), capture, makeStep())
      await collecting
      const held = Buffer.alloc(5)
      await one.base.read(held, 0, 5, 0)
      assert.deepEqual([one.key, String(held)], [keys[0], 'guest'])
      assert.equal((await golden.list())[0]?.isNeeded, true)
    }
    await made(golden, 'a')
  }
})

test('drafts that no one makes go, and the one that is being made does not', async (t) => {
  const dir = await scratchDir(t)
  const golden = goldenIn(t, dir)
  await mkdir(join(dir, `${'0'.repeat(32)}.aa.draft`))
  const making = Promise.withResolvers<void>()
  const go = Promise.withResolvers<void>()
  const asked = golden.goldenBoot(
    shape('a'),
    async (memory, file, step) => {
      making.resolve()
      await go.promise
      await capture(memory, file, step)
    },
    makeStep(),
  )
  await making.promise
  assert.deepEqual((await golden.collect(ALL)).names, [`${'0'.repeat(32)}.aa.draft`])
  assert.equal((await readdir(dir)).length, 1)
  go.resolve()
  ;(await asked)[Symbol.dispose]()
})

test('a daemon that died in the middle of a removal leaves what counts for nothing', async (t) => {
  const dir = await scratchDir(t)
  const { golden, keys } = await agedIn(t, dir, {}, 'a')
  // The manifest goes first.
  await rm(join(dir, keys[0] ?? '', 'manifest.json'))
  assert.deepEqual((await golden.collect(NONE)).names, keys)
  assert.deepEqual(await readdir(dir), [])
})
