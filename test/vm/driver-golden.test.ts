/** Golden boots as a cache, with a machine that is made up: what matters here is what is kept, loaded, found broken and let go. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdir, open, readdir, readFile, readlink, rename, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { pino } from 'pino'
import { AppError } from '../../packages/api/src/errors.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { type CaptureGolden, GoldenBoots, type GoldenBootsUses, type GoldenShape } from '../../packages/daemon/src/memory/golden-boots.ts'
import { artefacts, makeStep } from '../harness/qemu-driver.ts'
import { scratchDir } from '../harness/scratch.ts'

const log = pino({ level: 'silent' })
const SIZE = 16 << 20
const shape = (name = 'one'): GoldenShape => ({ memoryBytes: SIZE, facts: { name, vcpus: 1 } })

/** A guest that writes two pages and stops. */
function machine(content = 'guest'): { capture: CaptureGolden; boots: () => number } {
  let boots = 0
  return {
    boots: () => boots,
    capture: async (memory, stateFile) => {
      boots++
      await memory.write(Buffer.from(`${content} low`), 0, undefined, 0)
      await memory.write(Buffer.from(`${content} high`), 0, undefined, SIZE - 4096)
      await writeFile(stateFile, `state of ${content}`)
    },
  }
}

function memoryIn(t: TestContext, dir: string, changes: Partial<GoldenBootsUses> = {}): GoldenBoots {
  const memory = new GoldenBoots({ dir, shimPath: artefacts.shimPath, log, ...changes })
  t.after(() => memory[Symbol.asyncDispose]())
  return memory
}

const readBase = async (
  golden: { base: { read(buffer: Buffer, at: number, length: number, position: number): Promise<unknown> } },
  at: number,
): Promise<string> => {
  const buffer = Buffer.alloc(10)
  await golden.base.read(buffer, 0, 10, at)
  return buffer.toString('latin1').replaceAll('\0', '')
}

test('many who ask at once get one golden boot, made once, and its memory is there', async (t) => {
  const memory = memoryIn(t, await scratchDir(t))
  const { capture, boots } = machine()
  const all = await Promise.all(Array.from({ length: 5 }, () => memory.goldenBoot(shape(), capture, makeStep())))
  assert.equal(boots(), 1)
  for (const golden of all) {
    assert.equal(await readBase(golden, 0), 'guest low')
    assert.equal(await readBase(golden, SIZE - 4096), 'guest high')
    assert.equal(await readFile(golden.stateFile, 'utf8'), 'state of guest')
    golden[Symbol.dispose]()
  }
})

test('a base can be harmed by no one: not written, grown, shrunk or punched', async (t) => {
  const memory = memoryIn(t, await scratchDir(t))
  using golden = await memory.goldenBoot(shape(), machine().capture, makeStep())
  // As a VMM does: opened anew for reading and writing, by its descriptor.
  await using handle = await open(`/proc/self/fd/${golden.base.fd}`, 'r+')
  await assert.rejects(handle.write('harm', 0), { code: 'EPERM' })
  await assert.rejects(handle.truncate(0), { code: 'EPERM' })
  await assert.rejects(handle.truncate(SIZE * 2), { code: 'EPERM' })
  assert.throws(() =>
    execFileSync('fallocate', ['--punch-hole', '--offset', '0', '--length', '4096', `/proc/${process.pid}/fd/${golden.base.fd}`], {
      stdio: 'pipe',
    }),
  )
  assert.equal(await readBase(golden, 0), 'guest low')
})

test('the next daemon loads it from disk, where it takes only what is not zero', async (t) => {
  const dir = await scratchDir(t)
  const { capture, boots } = machine()
  {
    await using first = new GoldenBoots({ dir, shimPath: artefacts.shimPath, log })
    ;(await first.goldenBoot(shape(), capture, makeStep()))[Symbol.dispose]()
  }
  const second = memoryIn(t, dir)
  using golden = await second.goldenBoot(shape(), capture, makeStep())
  assert.equal(boots(), 1)
  assert.equal(await readBase(golden, SIZE - 4096), 'guest high')
  assert.ok((await second.diskUsage()) < 64 * 1024)
})

const harms: Record<string, (dir: string) => Promise<unknown>> = {
  'a flipped bit in memory': async (dir) => {
    await using file = await open(join(dir, 'memory'), 'r+')
    await file.write(Buffer.from('H'), 0, 1, 0)
  },
  'a page that appeared in a hole': async (dir) => {
    await using file = await open(join(dir, 'memory'), 'r+')
    await file.write(Buffer.from('ghost'), 0, 5, 1 << 20)
  },
  'a lost page': async (dir) => {
    await using file = await open(join(dir, 'memory'), 'r+')
    await file.write(Buffer.alloc(4096), 0, 4096, 0)
  },
  'a cut memory': (dir) => truncate(join(dir, 'memory'), SIZE / 2),
  'no memory': (dir) => rm(join(dir, 'memory')),
  'a changed device state': (dir) => writeFile(join(dir, 'state'), 'state of gueSt'),
  'no device state': (dir) => rm(join(dir, 'state')),
  'a cut manifest': (dir) => truncate(join(dir, 'manifest.json'), 40),
  'no manifest': (dir) => rm(join(dir, 'manifest.json')),
}
for (const [what, harm] of Object.entries(harms)) {
  test(`${what} makes it be made anew`, async (t) => {
    const dir = await scratchDir(t)
    const { capture, boots } = machine()
    {
      await using first = new GoldenBoots({ dir, shimPath: artefacts.shimPath, log })
      using golden = await first.goldenBoot(shape(), capture, makeStep())
      await harm(join(dir, golden.key))
    }
    const second = memoryIn(t, dir)
    using golden = await second.goldenBoot(shape(), capture, makeStep())
    assert.equal(boots(), 2)
    assert.equal(await readBase(golden, 0), 'guest low')
  })
}

test('other facts are another golden boot, in whatever order they are told', async (t) => {
  const memory = memoryIn(t, await scratchDir(t))
  const { capture, boots } = machine()
  using first = await memory.goldenBoot({ memoryBytes: SIZE, facts: { a: 1, b: 2 } }, capture, makeStep())
  using same = await memory.goldenBoot({ memoryBytes: SIZE, facts: { b: 2, a: 1 } }, capture, makeStep())
  using other = await memory.goldenBoot({ memoryBytes: SIZE, facts: { a: 1, b: 3 } }, capture, makeStep())
  using larger = await memory.goldenBoot({ memoryBytes: SIZE * 2, facts: { a: 1, b: 2 } }, capture, makeStep())
  assert.equal(first.key, same.key)
  assert.equal(new Set([first.key, other.key, larger.key]).size, 3)
  assert.equal(boots(), 3)
})

test('a capture that fails leaves no draft, and is not tried again at once', async (t) => {
  const dir = await scratchDir(t)
  const memory = memoryIn(t, dir)
  let tries = 0
  const failing: CaptureGolden = async () => {
    tries++
    throw new Error('it hung')
  }
  for (let round = 0; round < 3; round++) await assert.rejects(memory.goldenBoot(shape(), failing, makeStep()), /it hung/)
  assert.equal(tries, 1)
  assert.deepEqual(await readdir(dir), [])
})

test('a guest that hangs on its way up is booted once more', async (t) => {
  for (const hangs of [1, 2]) {
    const dir = await scratchDir(t)
    const memory = memoryIn(t, dir)
    const { capture } = machine()
    let tries = 0
    const hanging: CaptureGolden = async (...args) => {
      if (++tries <= hangs) throw new AppError('guest_unavailable', 'it hangs')
      await capture(...args)
    }
    const making = memory.goldenBoot(shape(), hanging, makeStep())
    if (hangs === 1) (await making)[Symbol.dispose]()
    else await assert.rejects(making, { code: 'guest_unavailable' })
    assert.deepEqual([tries, (await readdir(dir)).length], [2, hangs === 1 ? 1 : 0])
  }
})

test('who stops waiting does not stop the making', async (t) => {
  const memory = memoryIn(t, await scratchDir(t))
  const { promise: mayFinish, resolve: finish } = Promise.withResolvers<void>()
  const { capture, boots } = machine()
  const slow: CaptureGolden = async (...args) => {
    await mayFinish
    await capture(...args)
  }
  const impatient = new AbortController()
  const waiting = memory.goldenBoot(shape(), slow, { ...makeStep(), signal: impatient.signal })
  impatient.abort()
  await assert.rejects(waiting, { code: 'timed_out' })
  finish()
  ;(await memory.goldenBoot(shape(), slow, makeStep()))[Symbol.dispose]()
  assert.equal(boots(), 1)
})

test('a sweep removes drafts of a dead daemon and what has gone stale, and nothing else', async (t) => {
  const dir = await scratchDir(t)
  const { capture } = machine()
  {
    await using first = new GoldenBoots({ dir, shimPath: artefacts.shimPath, log })
    for (const name of ['old', 'new']) (await first.goldenBoot(shape(name), capture, makeStep()))[Symbol.dispose]()
  }
  await mkdir(join(dir, `${'0'.repeat(32)}.abcd.draft`, 'deep'), { recursive: true })
  await writeFile(join(dir, 'kvm.json'), '{}')
  const memory = memoryIn(t, dir)
  await memory.sweep((facts) => facts.name === 'old')
  const names = await readdir(dir)
  assert.equal(names.length, 2)
  assert.ok(names.includes('kvm.json'))
})

for (const [what, harm] of Object.entries(harms)) {
  test(`${what} of one that something stands on removes nothing of the rest of it`, async (t) => {
    const dir = await scratchDir(t)
    const { capture, boots } = machine()
    let key = ''
    {
      await using first = new GoldenBoots({ dir, shimPath: artefacts.shimPath, log })
      using golden = await first.goldenBoot(shape(), capture, makeStep())
      key = golden.key
      await harm(join(dir, key))
    }
    const left = await readdir(join(dir, key))
    let isNeeded = true
    const second = memoryIn(t, dir, { isNeeded: () => isNeeded })
    await second.sweep(() => true)
    for (let round = 0; round < 2; round++) {
      await assert.rejects(second.goldenBoot(shape(), capture, makeStep()), { code: 'snapshot_unusable' })
    }
    assert.deepEqual(await readdir(join(dir, key)), left)
    assert.equal(boots(), 1)
    isNeeded = false
    const third = memoryIn(t, dir)
    ;(await third.goldenBoot(shape(), capture, makeStep()))[Symbol.dispose]()
    assert.equal(boots(), 2)
  })
}

test('one that could not be woken is kept for those who stand on it, and made anew when none does', async (t) => {
  const dir = await scratchDir(t)
  let isNeeded = true
  const memory = memoryIn(t, dir, { isNeeded: () => isNeeded })
  const { capture, boots } = machine()
  using golden = await memory.goldenBoot(shape(), capture, makeStep())
  await golden.discard()
  await assert.rejects(memory.goldenBoot(shape(), capture, makeStep()), { code: 'snapshot_unusable' })
  using standing = await memory.standing(golden.key, makeStep())
  assert.equal(standing.sum, golden.sum)
  isNeeded = false
  using anew = await memory.goldenBoot(shape(), capture, makeStep())
  assert.equal(boots(), 2)
  assert.equal(await readBase(golden, 0), await readBase(anew, 0))
})

test('one that cannot be read today is neither removed nor made anew', async (t) => {
  const dir = await scratchDir(t)
  const { capture, boots } = machine()
  let key = ''
  {
    await using first = new GoldenBoots({ dir, shimPath: artefacts.shimPath, log })
    using golden = await first.goldenBoot(shape(), capture, makeStep())
    key = golden.key
  }
  for (const file of ['state', 'manifest.json']) {
    // An error that passes, for root too: a directory where a file should be.
    await rename(join(dir, key, file), join(dir, 'aside'))
    await mkdir(join(dir, key, file))
    const memory = memoryIn(t, dir)
    await memory.sweep(() => false)
    await assert.rejects(memory.goldenBoot(shape(), capture, makeStep()), { code: 'EISDIR' })
    await rm(join(dir, key, file), { recursive: true })
    await rename(join(dir, 'aside'), join(dir, key, file))
  }
  ;(await memoryIn(t, dir).goldenBoot(shape(), capture, makeStep()))[Symbol.dispose]()
  assert.equal(boots(), 1)
})

test('the least recently used golden boots make room', async (t) => {
  const dir = await scratchDir(t)
  const memory = memoryIn(t, dir, { maxBytes: 60 * 1024, settleMs: 0 })
  const { capture } = machine()
  for (const name of ['a', 'b', 'c', 'd', 'e', 'f']) (await memory.goldenBoot(shape(name), capture, makeStep()))[Symbol.dispose]()
  assert.ok((await memory.diskUsage()) <= 60 * 1024)
  const { boots, capture: again } = machine()
  ;(await memory.goldenBoot(shape('f'), again, makeStep()))[Symbol.dispose]()
  assert.equal(boots(), 0)
  ;(await memory.goldenBoot(shape('a'), again, makeStep()))[Symbol.dispose]()
  assert.equal(boots(), 1)
})

test('one that is discarded while it is held is read to its end by those who hold it, and made anew for the others', async (t) => {
  const dir = await scratchDir(t)
  const memory = memoryIn(t, dir)
  const { capture, boots } = machine()
  using held = await memory.goldenBoot(shape(), capture, makeStep())
  using sibling = await memory.goldenBoot(shape(), capture, makeStep())
  const discarding = held.discard()
  // Whoever asks at the same moment neither finds what is being removed nor loses what it makes to the removal.
  using anew = await memory.goldenBoot(shape(), machine('other').capture, makeStep())
  await discarding
  assert.equal(await readFile(sibling.stateFile, 'utf8'), 'state of guest')
  assert.equal(await readBase(sibling, 0), 'guest low')
  assert.equal(await readFile(anew.stateFile, 'utf8'), 'state of other')
  // It is not the new one that the sibling could not use.
  await sibling.discard()
  const next = memoryIn(t, dir)
  using kept = await next.goldenBoot(shape(), capture, makeStep())
  assert.equal(await readFile(kept.stateFile, 'utf8'), 'state of other')
  assert.equal(boots(), 1)
})

test('one that was discarded is let go when the last one who holds it lets it go', async (t) => {
  const memory = memoryIn(t, await scratchDir(t))
  const count = async (): Promise<number> => {
    const links = await Promise.all((await readdir('/proc/self/fd')).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')))
    return links.filter((link) => link.includes('dormouse-memory') || link.includes('/state')).length
  }
  const before = await count()
  const golden = await memory.goldenBoot(shape(), machine().capture, makeStep())
  await golden.discard()
  assert.equal(await count(), before + 2)
  golden[Symbol.dispose]()
  await pollUntil('its descriptors to be closed', async () => (await count()) === before, makeStep())
})

test('bases that no one uses are let go, those in use stay', async (t) => {
  const memory = memoryIn(t, await scratchDir(t), { maxLoaded: 1 })
  const { capture } = machine()
  using held = await memory.goldenBoot(shape('held'), capture, makeStep())
  for (const name of ['a', 'b', 'c']) (await memory.goldenBoot(shape(name), capture, makeStep()))[Symbol.dispose]()
  const links = await Promise.all((await readdir('/proc/self/fd')).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')))
  assert.equal(links.filter((link) => link.includes('dormouse-memory')).length, 2)
  assert.equal(await readBase(held, 0), 'guest low')
  assert.equal((await stat(`/proc/self/fd/${held.base.fd}`)).size, SIZE)
})
