/** A collection of everything, while one VM runs and another sleeps: what they stand on is still there. */
import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { test } from 'node:test'
import type { DiskUsage, PruneResponse } from '@dormouse/api/garbage.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { startDaemon } from '../harness/daemon-process.ts'
import { importImage } from '../harness/import-image.ts'
import { Scratch } from '../harness/scratch.ts'

test('after a prune of all that can go, what runs falls asleep, and what sleeps and is kept wakes', { timeout: 300_000 }, async () => {
  await using scratch = await Scratch.make()
  await using daemon = await startDaemon({ dir: `${scratch.path}/d`, driver: 'qemu-microvm' })
  const { client, paths } = daemon
  await importImage(daemon, (await makeBusyboxImage(scratch.path)).path, 'box')
  const sizes = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '256MB' }
  for (const name of ['awake', 'asleep']) await client.post('/instances?wait=running', { ...sizes, name })
  const { id: snapshot } = await client.post<{ id: string }>('/instances/awake/snapshots', { kind: 'Standby', name: 's' })
  await client.post('/instances/asleep/standby', {})

  const usage = await client.get<DiskUsage>('/df')
  const of = (kind: string) => usage.kinds.find((one) => one.kind === kind)
  for (const kind of ['images', 'golden_boots', 'overlays', 'deltas', 'snapshots', 'logs']) assert.ok((of(kind)?.bytes ?? 0) > 0, kind)
  // One golden boot, and all three stand on it.
  assert.deepEqual([of('golden_boots')?.count, of('golden_boots')?.in_use, of('golden_boots')?.reclaimable_bytes], [1, 1, 0])
  assert.equal(of('golden_boots')?.shared_bytes, of('golden_boots')?.bytes)

  const pruned = await client.post<PruneResponse>('/prune', { all: true })
  for (const { kind, names, error } of pruned.kinds) if (kind !== 'logs') assert.deepEqual([names, error], [[], undefined], kind)
  await client.post('/instances/asleep/restore', {})
  await client.post('/instances/awake/standby', {})
  await client.post('/instances/awake/restore', {})
  await client.post(`/snapshots/${snapshot}/fork?wait=running`, { name: 'kept' })
  for (const { name, state } of await client.get<{ name: string; state: string }[]>('/instances')) assert.equal(state, 'Running', name)
  assert.equal((await readdir(paths.goldenDir)).length, 1)
})
