/** What takes space and what is given up, over HTTP and at the command line, of a real daemon on VMs that are made up. */
import assert from 'node:assert/strict'
import { existsSync, writeFileSync } from 'node:fs'
import { mkdir, readdir, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import type { DiskUsage, PruneResponse } from '@dormouse/api/garbage.ts'
import { GARBAGE_KINDS } from '@dormouse/api/garbage.ts'
import type { Resources } from '@dormouse/api/resources.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { dormouse } from '../harness/dormouse-command.ts'
import { importImage } from '../harness/import-image.ts'
import { Scratch, scratchDir } from '../harness/scratch.ts'
import { mountSmallDisk } from '../harness/small-disk.ts'

interface House {
  readonly dir: string
  readonly daemon: DaemonProcess
}

/** A daemon with one image that has two names. */
async function house(t: TestContext, env: Readonly<Record<string, string>> = {}, dir?: string): Promise<House> {
  const home = dir ?? (await scratchDir(t))
  const daemon = await startDaemon({ dir: join(home, 'd'), driver: 'fake', env })
  t.after(() => daemon[Symbol.asyncDispose]())
  return { dir: home, daemon }
}

async function withImage(t: TestContext, env?: Readonly<Record<string, string>>): Promise<House> {
  const made = await house(t, env)
  await importImage(made.daemon, (await makeBusyboxImage(made.dir)).path, 'box:1')
  return made
}

const NAME = 'docker.io/library/box:1'
const kindOf = (usage: DiskUsage, kind: string) => usage.kinds.find((one) => one.kind === kind)
const namesOf = ({ kinds }: PruneResponse, kind: string) => kinds.find((one) => one.kind === kind)?.names

test('an unused image goes with `all`, after a dry run that said so; one that an instance stands on stays', async (t) => {
  const { daemon } = await withImage(t)
  const { client } = daemon
  const before = await client.get<DiskUsage>('/df')
  assert.ok((kindOf(before, 'images')?.reclaimable_bytes ?? 0) > 0)
  await client.post('/instances?wait=running', { name: 'a', image: 'box:1', overlay_size: '32MB' })
  const all = { all: true, kinds: GARBAGE_KINDS }
  assert.deepEqual(namesOf(await client.post<PruneResponse>('/prune', all), 'images'), [])
  const used = await client.get<DiskUsage>('/df')
  assert.deepEqual([kindOf(used, 'images')?.in_use, kindOf(used, 'images')?.reclaimable_bytes], [1, 0])
  await client.call('DELETE', '/instances/a')

  assert.deepEqual(namesOf(await client.post<PruneResponse>('/prune', {}), 'images'), [])
  assert.deepEqual(namesOf(await client.post<PruneResponse>('/prune', { ...all, older_than: '1h' }), 'images'), [])
  // It was imported: here may be the only copy.
  assert.deepEqual(namesOf(await client.post<PruneResponse>('/prune', { all: true, dry_run: true }), 'images'), [])
  const dry = await client.post<PruneResponse>('/prune', { ...all, dry_run: true })
  assert.deepEqual([dry.dry_run, namesOf(dry, 'images')], [true, [NAME]])
  assert.equal(dry.freed_bytes, kindOf(before, 'images')?.reclaimable_bytes)
  const { freed_bytes, kinds } = await client.post<PruneResponse>('/prune', all)
  assert.equal(freed_bytes, dry.freed_bytes)
  assert.deepEqual(
    kinds.map(({ kind }) => kind),
    GARBAGE_KINDS,
  )
  assert.deepEqual(await readdir(daemon.paths.imageRootfsDir), [])
  assert.equal(kindOf(await client.get<DiskUsage>('/df'), 'images')?.bytes, 0)
})

test('what is told of the disk adds up, and /resources tells the same of images', async (t) => {
  const { daemon } = await withImage(t)
  const usage = await daemon.client.get<DiskUsage>('/df')
  const whole = usage.kinds.filter(({ part_of }) => part_of === undefined)
  assert.equal(
    usage.used_bytes,
    whole.reduce((sum, { bytes }) => sum + bytes, 0),
  )
  assert.equal(
    usage.reclaimable_bytes,
    whole.reduce((sum, { reclaimable_bytes }) => sum + reclaimable_bytes, 0),
  )
  assert.equal(kindOf(usage, 'images')?.bytes, (kindOf(usage, 'layers')?.bytes ?? 0) + (kindOf(usage, 'rootfs')?.bytes ?? 0))
  const { disk, disk_breakdown: parts = {} } = await daemon.client.get<Resources>('/resources')
  const { images_bytes = 0, oci_cache_bytes = 0, volumes_bytes = 0, overlays_bytes = 0 } = parts
  assert.equal(disk.allocated, images_bytes + oci_cache_bytes + volumes_bytes + overlays_bytes)
  // There in bytes, here in blocks.
  for (const [told, kind] of [
    [images_bytes, 'rootfs'],
    [oci_cache_bytes, 'layers'],
  ] as const) {
    const { bytes = 0, count = 0 } = kindOf(usage, kind) ?? {}
    assert.ok(told > 0 && Math.abs(bytes - told) <= count * 8192, `${kind}: ${told} and ${bytes}`)
  }
})

test('what is no request is refused in words', async (t) => {
  const { client } = (await house(t)).daemon
  for (const [body, words] of [
    [{ kinds: ['volumes'] }, /`kinds\[0\]` must be one of images, layers/],
    [{ kinds: [] }, /kinds/],
    [{ older_than: 'yesterday' }, /`older_than` is "yesterday"/],
    [{ older_than: '-1h' }, /`older_than` is "-1h"/],
    [{ all: 'yes' }, /`all` must be/],
    [{ everything: true }, /everything/],
  ] as const) {
    const { status, body: told } = await client.call<{ message: string }>('POST', '/prune', body)
    assert.equal(status, 400, JSON.stringify(body))
    assert.match(told.message, words)
  }
})

// Each kind's own row is in garbage.test.ts.
for (const at of ['garbage:logs', 'collect:image_files']) {
  test(`a daemon that dies at ${at} has lost nothing, and the next one leaves nothing behind`, async (t) => {
    const { dir, daemon } = await withImage(t, { DORMOUSE_CRASH_AT: at })
    await daemon.client.post('/instances', { name: 'a', image: 'box:1', overlay_size: '32MB' }).catch(() => undefined)
    const other = (await makeBusyboxImage(join(dir, 'other'), { cmd: ['/bin/true'] })).path
    await importImage(daemon, other, 'other:1')
    await assert.rejects(daemon.client.post('/prune', { all: true, kinds: GARBAGE_KINDS }))
    assert.equal(await daemon.exited, 'SIGKILL')
    const next = await house(t, {}, dir)
    const { client, paths } = next.daemon
    assert.equal((await client.get<{ state: string }>('/instances/a')).state.length > 0, true)
    await client.post<PruneResponse>('/prune', { all: true, kinds: GARBAGE_KINDS })
    assert.deepEqual(
      (await client.get<{ name: string }[]>('/images')).map(({ name }) => name),
      [NAME],
    )
    assert.equal((await readdir(paths.imageRootfsDir)).length, 1)
    assert.deepEqual(await readdir(paths.imageDraftsDir), [])
  })
}

test('at the command line: what takes how much, what would go, and that it is asked for', async (t) => {
  const { daemon } = await withImage(t)
  const run = (...args: string[]) => dormouse(args, { socket: daemon.socket })
  const df = await run('df')
  assert.match(df.stdout, /^TYPE +TOTAL +ACTIVE +SIZE +SHARED +RECLAIMABLE\nImages +1 +0 +\S+ +0B +\S+ \(100%\)\n {2}Layers/)
  assert.match(df.stdout, /reclaimable; \S+ of the disk's \S+ free\n\nRESOURCE/)
  const { usage, resources } = JSON.parse((await run('df', '--json')).stdout)
  assert.ok(usage.kinds.length > 10 && resources.cpu.capacity > 0)

  const refused = await run('prune', '--all')
  assert.deepEqual([refused.code, refused.stdout], [2, ''])
  assert.match(refused.stderr, /dormouse prune --force/)
  assert.equal((await run('prune', '--kind', 'volumes', '--force')).code, 2)
  assert.match(
    (await run('prune', '--all', '--kind', 'images', '--dry-run')).stdout,
    /^docker\.io\/library\/box:1\nKIND +WOULD GO +SIZE\nImages +1 [\s\S]* would be freed\n$/,
  )
  assert.doesNotMatch((await run('prune', '--all', '--dry-run')).stdout, /box:1/)
  assert.match((await run('prune', '--all', '--older-than', '1d', '--force')).stdout, /^KIND[\s\S]*\n0B freed\n$/)
  const pruned = JSON.parse((await run('prune', '--all', '--kind', 'images', '--json')).stdout) as PruneResponse
  assert.deepEqual(
    pruned.kinds.map(({ kind, names }) => [kind, names]),
    [['images', [NAME]]],
  )
})

test('a create that would be refused for a full disk has garbage collected first', async (t) => {
  if (process.geteuid?.() !== 0) return t.skip('only root can mount a file system')
  await using scratch = await Scratch.make()
  const dir = scratch.path
  await mkdir(join(dir, 'd'))
  await using _disk = await mountSmallDisk(join(dir, 'd/data'), 800 * 2 ** 20)
  const env = { DORMOUSE_DISK_RATIO: '100', DORMOUSE_GC_LOW_DISK: '1MB' }
  await using daemon = await startDaemon({ dir: join(dir, 'd'), driver: 'fake', env })
  await importImage(daemon, (await makeBusyboxImage(dir)).path, 'box:1')
  // Of an image that is gone, so that less than what has to stay free is left.
  const stray = daemon.paths.imageLayer(`sha256:${'0'.repeat(64)}`)
  writeFileSync(stray, Buffer.alloc(300 * 2 ** 20, 1))
  const create = () => daemon.client.call<{ code: string }>('POST', '/instances', { name: 'a', image: 'box:1', overlay_size: '32MB' })
  assert.equal((await create()).body.code, 'insufficient_resources')
  assert.ok(existsSync(stray), 'one that was written just now may be on its way to an image')
  const longAgo = new Date(Date.now() - 2 * 3_600_000)
  await utimes(stray, longAgo, longAgo)
  assert.equal((await create()).status, 201)
  assert.ok(!existsSync(stray))
})
