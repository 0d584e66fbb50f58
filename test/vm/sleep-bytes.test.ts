/** What a nap costs: that which has changed since the last one, and never again what was there before. Bases are not written by anyone. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { after, before, test } from 'node:test'
import { InstanceStory } from './instance-story.ts'

let story: InstanceStory
before(async () => {
  story = await InstanceStory.begin({ driver: 'qemu-microvm' })
})
after(() => story?.[Symbol.asyncDispose]())

const MIB = 2 ** 20
const HELD_MIB = 200
const NAPS = 30
/** What a workload that does next to nothing, its kernel and the agent change between two naps. */
const OWN_BYTES = 2 * MIB
/** A delta up to this size is loaded again instead of being made a base: docs/memory.md. */
const CARRIED_BYTES = 4 * MIB
const FILLED_PAGES = 256
const PAGE = 4096

async function hashOf(file: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(file, { highWaterMark: MIB }), hash)
  return hash.digest('hex')
}

/** Every base there is, by its file, and what is in it. */
async function bases(): Promise<Map<string, string>> {
  const { goldenDir, basesDir } = story.daemon.paths
  const found = new Map<string, string>()
  for (const dir of [goldenDir, basesDir]) {
    for (const name of await readdir(dir)) found.set(join(dir, name), await hashOf(join(dir, name, 'memory')))
  }
  return found
}

test(`${NAPS} naps of an instance that has touched ${HELD_MIB} MiB write what has changed, and no one writes a base`, {
  timeout: 600_000,
}, async () => {
  const instance = await story.run('naps', { size: '512MB', cmd: ['/bin/wakeful', '80', `${HELD_MIB}`] })
  await story.ask(instance, `fill 0 ${HELD_MIB * 256} 1`)
  const { paths } = story.daemon
  const written: number[] = []
  const consolidated = () => written.filter((bytes) => bytes > CARRIED_BYTES).length
  const atNapOne = new Map<string, string>()
  for (let nap = 1; nap <= NAPS; nap++) {
    await story.standby('naps')
    const bytes = Number((await story.logged('memory captured', instance)).at(-1)?.bytes)
    written.push(bytes)
    if (bytes > CARRIED_BYTES) await story.untilConsolidated(instance, consolidated())
    else {
      const [generation = ''] = await readdir(paths.instanceSleepDir(instance.id))
      const { size } = await stat(join(paths.instanceSleep(instance.id, generation), 'delta'))
      assert.ok(size <= bytes + 64 * 1024, `${size} bytes in the file for ${bytes} of memory`)
    }
    if (nap === 1) for (const [base, hash] of await bases()) atNapOne.set(base, hash)
    await story.restore('naps')
    await story.ask(instance, `fill ${nap * FILLED_PAGES} ${FILLED_PAGES} ${nap + 1}`)
    // It has run three times on the base of its first nap, and does so now.
    if (nap === 3) assert.deepEqual(await bases(), atNapOne)
  }
  const [first = 0, ...later] = written
  assert.ok(first > HELD_MIB * MIB, `the first nap wrote ${first} bytes`)
  later.forEach((bytes, index) => {
    const before = written[index] ?? 0
    const carried = before > CARRIED_BYTES ? 0 : before
    const limit = FILLED_PAGES * PAGE + OWN_BYTES + carried
    assert.ok(bytes <= limit, `nap ${index + 2} wrote ${bytes} bytes, of ${limit}: ${written}`)
  })
  const now = await bases()
  for (const [base, hash] of atNapOne) assert.equal(now.get(base) ?? hash, hash)
  assert.equal((await readdir(paths.basesDir)).length, 1)
  await story.assertInOrder()
  await story.remove('naps')
})
