/** Memories that are compressed while no one needs them, with real VMs, through the API: what a guest had in RAM is there afterwards, bit for bit. */
import assert from 'node:assert/strict'
import { open, readdir, readFile, stat, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import type { Snapshot } from '../../packages/api/src/snapshots.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { type CaptureManifest, readManifest } from '../../packages/daemon/src/memory/capture-files.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { endProcessesNaming, processesNaming } from '../harness/processes.ts'
import { Scratch } from '../harness/scratch.ts'
import type { ShownInstance } from './house-in-order.ts'

let scratch: Scratch
let dir: string
let daemon: DaemonProcess
const begin = (): Promise<DaemonProcess> => startDaemon({ dir, driver: 'qemu-microvm' })

before(async () => {
  scratch = await Scratch.make()
  dir = join(scratch.path, 'd')
  daemon = await begin()
  const image = await makeBusyboxImage(scratch.path, { cmd: ['/bin/sleep', '1000000'] })
  await importImage(daemon, image.path, 'box')
})
after(async () => {
  await daemon?.stop()
  await endProcessesNaming(dir)
  await scratch[Symbol.asyncDispose]()
})

const LIMIT = { timeout: 300_000 }
const SHAPE = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '256MB' }

const sh = async (name: string, script: string): Promise<string> => {
  const { exitCode, stdout, stderr } = await execOverApi(daemon.socket, name, { command: ['/bin/sh', '-c', script] })
  assert.equal(exitCode, 0, stderr)
  return stdout.trim()
}

/** Some that compresses and some that does not, in a file system that is nothing but memory. */
const FILL =
  'mkdir -p /ram; mount -t tmpfs none /ram; yes "$RANDOM a line that comes again" | head -c 16000000 > /ram/text; head -c 4000000 /dev/urandom > /ram/noise'
const SUMS = 'sha256sum /ram/text /ram/noise; cat /proc/sys/kernel/random/boot_id'

/** An instance with 20 MB of its own in memory, and how to see that it still has them. */
async function filled(name: string, more: object = {}): Promise<{ id: string; sums: string }> {
  await daemon.client.post('/instances?wait=running', { name, ...SHAPE, ...more })
  const { id } = await daemon.client.get<ShownInstance>(`/instances/${name}`)
  await sh(name, FILL)
  return { id, sums: await sh(name, SUMS) }
}

const step = () => ({ signal: AbortSignal.timeout(120_000) })
const sleepDirOf = (id: string): string => daemon.paths.instanceSleepDir(id)
const standby = (name: string, body: object = {}) => daemon.client.post<ShownInstance>(`/instances/${name}/standby`, body)
const restore = (name: string) => daemon.client.post<ShownInstance>(`/instances/${name}/restore`, {})
const remove = (name: string) => daemon.client.delete(`/instances/${name}`)
const zstd = (level: number) => ({ compression: { enabled: true, algorithm: 'zstd', level } })

/** Its one sleeping state, once that is as `what` says. */
async function asleep(id: string, what: (manifest: CaptureManifest) => boolean): Promise<CaptureManifest & { readonly dir: string }> {
  return pollUntil(
    'its sleeping state',
    async () => {
      const [generation, ...more] = await readdir(sleepDirOf(id))
      if (generation === undefined || more.length > 0) return undefined
      const dir = join(sleepDirOf(id), generation)
      const manifest = await readManifest(dir).catch(() => undefined)
      return manifest !== undefined && what(manifest) ? { ...manifest, dir } : undefined
    },
    step(),
  )
}
const isCompressed = ({ delta }: CaptureManifest): boolean => delta?.compression !== undefined
const isConsolidated = ({ base }: CaptureManifest): boolean => base.startsWith('base/')

const compressedSnapshot = async (id: string): Promise<Snapshot> =>
  pollUntil(
    'the snapshot to be compressed',
    async () => {
      const snapshot = await daemon.client.get<Snapshot>(`/snapshots/${id}`)
      return snapshot.compression_state === 'compressing' ? undefined : snapshot
    },
    step(),
  )

const bases = (): Promise<string[]> => readdir(daemon.paths.basesDir)

test('a sleeper that was compressed wakes with all that it had in memory, in either way', LIMIT, async () => {
  const { id, sums } = await filled('naps')
  for (const compression of [{ enabled: true }, { enabled: true, algorithm: 'lz4' }, { enabled: true, algorithm: 'lz4', level: 9 }]) {
    await standby('naps', { compression })
    const { delta, dir, base } = await asleep(id, isCompressed)
    assert.match(base, /^golden\//)
    assert.equal(delta?.compression?.algorithm, 'algorithm' in compression ? 'lz4' : 'zstd')
    assert.equal((await stat(join(dir, 'delta'))).size, delta?.bytes)
    assert.ok((delta?.bytes ?? 0) < (delta?.plainBytes ?? 0) / 2, `${delta?.bytes} of ${delta?.plainBytes} bytes`)
    assert.equal((await restore('naps')).state, 'Running')
    assert.equal(await sh('naps', SUMS), sums)
  }
  await remove('naps')
})

test('within its delay a nap is as any other; after it a base of its own becomes part of what is compressed', LIMIT, async () => {
  const { id, sums } = await filled('waits', { snapshot_policy: { ...zstd(1), standby_compression_delay: '1h' } })
  await standby('waits')
  await asleep(id, isConsolidated)
  await restore('waits')
  await sh('waits', 'echo more > /ram/more')
  const from = Date.now()
  await standby('waits', { compression_delay: '3s' })
  const { base, delta } = await asleep(id, isCompressed)
  assert.ok(Date.now() >= from + 3000)
  assert.match(base, /^golden\//)
  assert.ok((delta?.plainBytes ?? 0) > 20_000_000, 'all that was written since the golden boot is in it')
  await pollUntil('its base to be gone', async () => (await bases()).length === 0, step())
  await restore('waits')
  assert.equal(await sh('waits', SUMS), sums)
  assert.equal(await sh('waits', 'cat /ram/more'), 'more')
  await remove('waits')
})

test('a wake ends the compression that is under way', LIMIT, async () => {
  const { id, sums } = await filled('early')
  await standby('early', zstd(19))
  await pollUntil('it to be begun', async () => (await readdir(sleepDirOf(id))).some((name) => name.endsWith('.draft')), step())
  assert.equal((await restore('early')).state, 'Running')
  assert.deepEqual(await compressing(id), [])
  assert.ok((await readdir(sleepDirOf(id))).every((name) => !name.endsWith('.draft')))
  await pollUntil('the consumed sleeping state to be gone', async () => (await readdir(sleepDirOf(id))).length === 0, step())
  assert.equal(await sh('early', SUMS), sums)
  await remove('early')
})

test('a daemon that is killed over a compression takes it along, and the next one does it', LIMIT, async () => {
  const { id, sums } = await filled('dies')
  await standby('dies', zstd(12))
  await pollUntil('it to be begun', async () => (await compressing(id)).length > 0, step())
  await daemon.kill()
  await pollUntil('it to be gone', async () => (await compressing(id)).length === 0, step())
  daemon = await begin()
  const { delta } = await asleep(id, isCompressed)
  assert.deepEqual(delta?.compression, { algorithm: 'zstd', level: 12 })
  await restore('dies')
  assert.equal(await sh('dies', SUMS), sums)
  await remove('dies')
})

test(
  'snapshots of one that runs and of one that sleeps on a base of its own are compressed, and forked when both are gone',
  LIMIT,
  async () => {
    const { id, sums } = await filled('source')
    const running = await daemon.client.post<Snapshot>('/instances/source/snapshots', { kind: 'Standby', ...zstd(3) })
    assert.equal(running.compression_state, 'compressing')
    await standby('source')
    await asleep(id, isConsolidated)
    const sleeping = await daemon.client.post<Snapshot>('/instances/source/snapshots', {
      kind: 'Standby',
      compression: { enabled: true, algorithm: 'lz4' },
    })
    const kept = [await compressedSnapshot(running.id), await compressedSnapshot(sleeping.id)]
    for (const { compression_state, compression_error, compressed_size_bytes, uncompressed_size_bytes, size_bytes } of kept) {
      assert.deepEqual([compression_state, compression_error], ['compressed', null])
      const [compressed, plain] = [compressed_size_bytes ?? 0, uncompressed_size_bytes ?? 0]
      assert.ok(compressed > 4_000_000 && compressed < plain / 2 && plain > 20_000_000, `${compressed} of ${plain} bytes`)
      assert.ok(size_bytes > compressed)
    }
    await remove('source')
    await pollUntil('the base to be gone', async () => (await bases()).length === 0, step())
    for (const [index, snapshot] of kept.entries()) {
      const name = `fork-${index}`
      await daemon.client.post(`/snapshots/${snapshot.id}/fork?wait=running`, { name })
      assert.equal(await sh(name, SUMS), sums)
      // Of a sleeper that was compressed a snapshot is too, from the start.
      await standby(name, zstd(1))
      const { id: forkId } = await daemon.client.get<ShownInstance>(`/instances/${name}`)
      await asleep(forkId, isCompressed)
      const same = await daemon.client.post<Snapshot>(`/instances/${name}/snapshots`, { kind: 'Standby' })
      assert.deepEqual([same.compression_state, same.compression?.algorithm], ['compressed', 'zstd'])
      await remove(name)
      for (const { id: gone } of [snapshot, same]) await daemon.client.delete(`/snapshots/${gone}`)
    }
    assert.deepEqual(await readdir(daemon.paths.snapshotsDir), [])
  },
)

test('a compressed memory that was flipped or cut is refused with the reason, and a stop leads out', LIMIT, async () => {
  const { id } = await filled('hurt')
  for (const [what, hurt] of [
    ['flipped', flip],
    ['cut', (file: string) => stat(file).then(({ size }) => truncate(file, size - 100))],
  ] as const) {
    await standby('hurt', zstd(1))
    const { dir } = await asleep(id, isCompressed)
    await hurt(join(dir, 'delta'))
    const { status, body } = await daemon.client.call<{ code: string; message: string }>('POST', '/instances/hurt/restore', {})
    assert.deepEqual([status, body.code], [409, 'snapshot_unusable'], `${what}: ${body.message}`)
    assert.equal((await daemon.client.get<ShownInstance>('/instances/hurt')).state, 'Standby')
    assert.equal((await daemon.client.post<ShownInstance>('/instances/hurt/stop')).state, 'Stopped')
    await daemon.client.post('/instances/hurt/start?wait=running', {})
  }
  await remove('hurt')
})

const compressing = async (id: string) => (await processesNaming(sleepDirOf(id))).filter(({ argv }) => argv[1] === 'compress')

async function flip(file: string): Promise<void> {
  const at = Math.floor((await stat(file)).size / 2)
  const byte = (await readFile(file)).readUInt8(at)
  await using handle = await open(file, 'r+')
  await handle.write(Buffer.from([byte ^ 16]), 0, 1, at)
}
