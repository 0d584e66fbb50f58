/** A disk that is full, and kept full by others who write to it: what ends an instance can be done all the same, and makes room. */
import assert from 'node:assert/strict'
import { mkdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { startDaemon } from '../harness/daemon-process.ts'
import { importImage } from '../harness/import-image.ts'
import { Scratch } from '../harness/scratch.ts'
import { fillDisk, mountSmallDisk } from '../harness/small-disk.ts'
import { assertHostInOrder, atRest } from './house-in-order.ts'

// More than admission and images want to be free.
const DISK_BYTES = 2 ** 30

test('on a full disk instances stop and are deleted, before and after a death of the daemon, and nothing is begun', {
  timeout: 180_000,
}, async (t) => {
  if (process.geteuid?.() !== 0) return t.skip('only root can mount a file system')
  await using scratch = await Scratch.make()
  const dir = join(scratch.path, 'd')
  await mkdir(dir)
  await using _disk = await mountSmallDisk(join(dir, 'data'), DISK_BYTES)
  const begin = () => startDaemon({ dir, driver: 'qemu-microvm', env: { DORMOUSE_DISK_RATIO: '100' } })
  let daemon = await begin()
  await using _end = {
    async [Symbol.asyncDispose]() {
      await daemon[Symbol.asyncDispose]()
    },
  }
  const { path } = await makeBusyboxImage(dir)
  await importImage(daemon, path, 'box')
  const sizes = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '256MB' }
  for (const name of ['a', 'b']) await daemon.client.post('/instances?wait=running', { ...sizes, name })
  const ballast = async (): Promise<number> => (await stat(daemon.paths.ballast)).blocks * 512
  await pollUntil('the ballast to be made', async () => (await ballast()) >= 8 << 20, { signal: AbortSignal.timeout(10_000) })

  {
    await using _full = await fillDisk(daemon.paths.dataDir)
    // What begins something fails in words, and leaves the ballast to what ends something.
    const update = await daemon.client.call<{ code: string; message: string }>('PATCH', '/instances/a', { env: { A: 'x'.repeat(100_000) } })
    assert.deepEqual([update.status, update.body.code], [409, 'insufficient_resources'])
    assert.match(update.body.message, /^The disk of the data directory is full/)
    assert.ok((await ballast()) >= 8 << 20)
    await daemon.client.post('/instances/a/stop')
    assert.ok((await ballast()) < 8 << 20)

    await daemon.kill()
    daemon = await begin()
    const found = await atRest(daemon.client)
    assert.deepEqual(Object.fromEntries(found.map(({ name, state }) => [name, state])), { a: 'Stopped', b: 'Running' })
    const start = await daemon.client.call<{ code: string }>('POST', '/instances/a/start')
    assert.deepEqual([start.status, start.body.code], [409, 'insufficient_resources'])
    await daemon.client.delete('/instances/b')
    const left = await atRest(daemon.client)
    assert.deepEqual(
      left.map(({ name }) => name),
      ['a'],
    )
    await assertHostInOrder(dir, left)
  }

  await pollUntil('the ballast to be whole again', async () => (await ballast()) >= 8 << 20, { signal: AbortSignal.timeout(30_000) })
  await daemon.client.post('/instances/a/start')
  await daemon.client.get('/instances/a/wait?state=Running&timeout=60s')
  await daemon.client.delete('/instances/a')
})
