/** What a nap costs: that which has changed since the last one, and never again what was there before. Bases are not written by anyone. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { after, before, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
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

/** The bytes of the delta that the next nap is to write once more; none once it has become part of a base. */
function untilAtRest(sleeps: string): Promise<number> {
  const look = async (): Promise<{ bytes: number } | undefined> => {
    const [generation = '', ...others] = await readdir(sleeps)
    if (others.length > 0) return undefined
    const bytes = await stat(join(sleeps, generation, 'delta')).then(
      ({ size }) => size,
      (error: NodeJS.ErrnoException) => (error.code === 'ENOENT' ? 0 : Promise.reject(error)),
    )
    return bytes <= CARRIED_BYTES ? { bytes } : undefined
  }
  const step = { signal: AbortSignal.timeout(60_000) }
  return pollUntil('the nap to be consolidated', look, step).then(({ bytes }) => bytes)
}

test(`${NAPS} naps of an instance that has touched ${HELD_MIB} MiB write what has changed, and no one writes a base`, {
  timeout: 600_000,
}, async () => {
  const instance = await story.run('naps', { size: '512MB', cmd: ['/bin/wakeful', '80', `${HELD_MIB}`] })
  await story.ask(instance, `fill 0 ${HELD_MIB * 256} 1`)
  const { paths } = story.daemon
  const written: number[] = []
  const carried: number[] = []
  const atNapOne = new Map<string, string>()
  for (let nap = 1; nap <= NAPS; nap++) {
    await story.standby('naps')
    const bytes = Number((await story.logged('memory captured', instance)).at(-1)?.bytes)
    written.push(bytes)
    const carriedOn = await untilAtRest(paths.instanceSleepDir(instance.id))
    assert.ok(carriedOn <= bytes + 64 * 1024, `${carriedOn} bytes in the file for ${bytes} of memory`)
    carried.push(carriedOn)
    if (nap === 1) for (const [base, hash] of await bases()) atNapOne.set(base, hash)
    await story.restore('naps')
    await story.ask(instance, `fill ${nap * FILLED_PAGES} ${FILLED_PAGES} ${nap + 1}`)
    // It has run three times on the base of its first nap, and does so now.
    if (nap === 3) assert.deepEqual(await bases(), atNapOne)
  }
  const [first = 0, ...later] = written
  assert.ok(first > HELD_MIB * MIB, `the first nap wrote ${first} bytes`)
  later.forEach((bytes, index) => {
    const limit = FILLED_PAGES * PAGE + OWN_BYTES + (carried[index] ?? 0)
    assert.ok(bytes <= limit, `nap ${index + 2} wrote ${bytes} bytes, of ${limit}: ${written}`)
  })
  const now = await bases()
  for (const [base, hash] of atNapOne) assert.equal(now.get(base) ?? hash, hash)
  assert.equal((await readdir(paths.basesDir)).length, 1)
  await story.assertInOrder()
  await story.remove('naps')
})
