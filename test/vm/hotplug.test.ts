/** Memory that is given to a guest while it runs, and taken back: in real guests, over naps, forks and the daemon's death. */
import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { SCRATCH } from '../../packages/daemon/src/memory/memory.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { endProcessesNaming } from '../harness/processes.ts'
import { Scratch } from '../harness/scratch.ts'
import { assertHostInOrder, atRest } from './house-in-order.ts'

const SHAPE = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '512MB' }

let scratch: Scratch
let dir: string
let daemon: DaemonProcess
before(async () => {
  scratch = await Scratch.make()
  dir = join(scratch.path, 'd')
  daemon = await startDaemon({ dir, driver: 'qemu' })
  const image = await makeBusyboxImage(scratch.path, { cmd: ['/bin/sleep', '1000000'] })
  await importImage(daemon, image.path, 'box')
})
after(async () => {
  await daemon?.stop()
  await endProcessesNaming(dir)
  await scratch[Symbol.asyncDispose]()
})

const sh = async (name: string, script: string): Promise<string> => {
  const { exitCode, stdout, stderr } = await execOverApi(daemon.socket, name, { command: ['/bin/sh', '-c', script] })
  assert.equal(exitCode, 0, stderr)
  return stdout.trim()
}
/** Blocks of 128 MiB that the guest has beyond its 256 MiB and uses for what can be moved. */
const added = async (name: string): Promise<number> => {
  const total = Number(await sh(name, "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"))
  return Math.round((total / 1024 - 218) / 128)
}
const resize = (name: string, size: string) =>
  daemon.client.call<{ code?: string; message?: string; hotplug_size?: string }>('PATCH', `/instances/${name}`, { hotplug_size: size })
const post = (path: string, body: object = {}): Promise<unknown> => daemon.client.post(path, body)

test('memory comes and goes while a guest runs, what is in it survives naps and forks, and none is taken that is needed', {
  timeout: 400_000,
}, async () => {
  await post('/instances?wait=running', { name: 'grows', ...SHAPE, hotplug_size: '256MB' })
  assert.equal(await added('grows'), 2)
  assert.equal((await resize('grows', '512MB')).body.hotplug_size, '512MB')
  assert.equal(await added('grows'), 4)
  const stats = await daemon.client.get<{ allocated_memory_bytes: number }>('/instances/grows/stats')
  assert.equal(stats.allocated_memory_bytes, 768 * 2 ** 20)

  // More than it had to begin with, so that a part of it lies in what was added.
  await sh(
    'grows',
    'mount -o remount,size=90% /dev/shm; dd if=/dev/urandom of=/dev/shm/kept bs=1M count=300 2>/dev/null; sha1sum < /dev/shm/kept > /root/sum',
  )
  const isWhole = async (name: string): Promise<void> => void (await sh(name, '[ "$(sha1sum < /dev/shm/kept)" = "$(cat /root/sum)" ]'))
  const refused = await resize('grows', '0')
  assert.deepEqual([refused.status, refused.body.code], [409, 'conflict'], refused.body.message)
  assert.equal(await added('grows'), 4)
  for (let nap = 0; nap < 2; nap++) {
    await post('/instances/grows/standby')
    await post('/instances/grows/restore')
    await isWhole('grows')
    assert.equal(await added('grows'), 4)
  }
  await post('/instances/grows/fork', { name: 'fork', from_running: true })
  await isWhole('fork')
  assert.equal(await added('fork'), 4)
  await post('/instances/grows/snapshots', { kind: 'Standby', name: 'kept' })

  // What moves out of it is whole as well.
  await sh('fork', 'head -c 104857600 /dev/shm/kept > /dev/shm/part; rm /dev/shm/kept; sha1sum < /dev/shm/part > /root/sum')
  const taken = await resize('fork', '0')
  assert.deepEqual([taken.status, taken.body.hotplug_size], [200, undefined], taken.body.message)
  assert.equal(await added('fork'), 0)
  await sh('fork', '[ "$(sha1sum < /dev/shm/part)" = "$(cat /root/sum)" ]')
  assert.equal((await resize('fork', '384MB')).status, 200)
  await isWhole('grows')

  // A daemon that finds it so knows how much it has, and takes it back as well.
  await daemon.kill()
  // What one leaves that dies while a piece is on its way.
  await writeFile(join(dir, 'data/memory', `${SCRATCH}left`), '')
  daemon = await startDaemon({ dir, driver: 'qemu' })
  assert.equal(await added('fork'), 3)
  assert.equal((await resize('fork', '128MB')).status, 200)
  assert.equal(await added('fork'), 1)
  await assertHostInOrder(dir, await atRest(daemon.client))

  await daemon.client.delete('/instances/fork')
  await post('/instances/grows/stop')
  const [snapshot] = await daemon.client.get<{ id: string }[]>('/snapshots')
  await post(`/instances/grows/snapshots/${snapshot?.id}/restore`)
  assert.equal(await added('grows'), 4)
  await isWhole('grows')
  await daemon.client.delete('/instances/grows')
})

test('who has no room for it is told what to do, and what cannot be is refused before anything is made', { timeout: 240_000 }, async () => {
  await post('/instances?wait=running', { name: 'small', ...SHAPE })
  const running = await resize('small', '128MB')
  assert.deepEqual([running.status, running.body.code], [409, 'invalid_state'], running.body.message)
  await post('/instances/small/stop')
  assert.equal((await resize('small', '128MB')).status, 200)
  await post('/instances/small/start?wait=running')
  assert.equal(await added('small'), 1)
  assert.equal((await resize('small', '0')).status, 200)
  for (const size of ['100MB', '64GB', '8GB']) {
    const answer = await resize('small', size)
    assert.deepEqual([answer.status, answer.body.code], [400, 'invalid_hotplug_size'], size)
  }
  const microvm = { name: 'micro', ...SHAPE, hypervisor: 'qemu-microvm', hotplug_size: '128MB' }
  const refused = await daemon.client.call<{ code: string; message: string }>('POST', '/instances', microvm)
  assert.deepEqual([refused.status, refused.body.code], [501, 'not_supported'], refused.body.message)
  const { runtimes } = await daemon.client.get<{ runtimes: { name: string; features: string[] }[] }>('/capabilities')
  const able = runtimes.filter(({ features }) => features.includes('hotplug-memory')).map(({ name }) => name)
  assert.deepEqual(able, ['qemu'])
  await daemon.client.delete('/instances/small')
})
