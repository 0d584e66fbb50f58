import assert from 'node:assert/strict'
import { test } from 'node:test'
import { TEST_IMAGE, TEST_OVERLAY, TestHouse } from '../instances/test-house.ts'
import { Database } from './database.ts'
import { ImageRows } from './images.ts'
import { migrations } from './migrations.ts'

const IMAGE = {
  ...{ digest: TEST_IMAGE.digest, platform: 'linux/amd64', status: 'ready' as const, errorCode: undefined, error: undefined },
  ...{ manifest: Buffer.from('{}'), config: Buffer.from('{}'), origin: undefined, rootfsBytes: 1, createdAtMs: 1 },
}

test('an image is used when it is named, taken by an instance, and left by an instance or a snapshot', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const rows = new ImageRows(house.db)
  rows.put(IMAGE, [])
  const beganMs = Date.now()
  /** Did it? Anything that does not say when it was last used leaves it at 1. */
  const isUsedBy = async (deed: () => unknown): Promise<boolean> => {
    house.db.prepare('UPDATE images SET used_at_ms = 1').run()
    await deed()
    const { usedAtMs = 0 } = rows.find(IMAGE.digest) ?? {}
    assert.ok(usedAtMs === 1 || usedAtMs >= beganMs - 1000, String(usedAtMs))
    return usedAtMs !== 1
  }
  const name = { name: 'a', platform: 'linux/amd64', digest: IMAGE.digest, nextDigest: undefined, tags: {}, createdAtMs: 1 }
  assert.ok(await isUsedBy(() => rows.putName(name)))
  assert.ok(await isUsedBy(() => rows.putName({ ...name, tags: { a: 'b' } })))
  assert.ok(await isUsedBy(() => instances.create({ name: 'i', image: 'test', overlayBytes: TEST_OVERLAY })))
  const { id } = instances.resolve('i')
  await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  let snapshot = ''
  const take = async (): Promise<void> => {
    snapshot = (await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })).id
  }
  assert.ok(!(await isUsedBy(take)))
  assert.ok(await isUsedBy(() => instances.delete(id)))
  assert.ok(await isUsedBy(() => house.snapshots.delete(snapshot)))
})

test('images of an older version were used when the new one came', () => {
  const at = migrations.findIndex(({ name }) => name === 'when images were used')
  assert.ok(at > 0)
  const steps = migrations.slice(0, at)
  const [before, last] = [Date.now(), migrations[at]]
  using db = Database.open(':memory:', { steps: [...steps, { name: 'an image', sql: INSERT }, ...(last ? [last] : [])] })
  const { used_at_ms: usedAtMs } = db.prepare('SELECT used_at_ms FROM images').get() ?? {}
  assert.ok(Number(usedAtMs) >= before - 1000)
})

const INSERT = `INSERT INTO images (digest, platform, status, manifest, config, created_at_ms) VALUES ('sha256:a', 'linux/amd64', 'ready', x'', x'', 1)`
