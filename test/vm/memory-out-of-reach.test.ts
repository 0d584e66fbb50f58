/**
 * Where no one may look into a VMM's memory, as root in a container that was not given CAP_SYS_PTRACE, VMs get a copy of their base each;
 * for a user nothing else is different.
 */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { MAIN, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { scratchDir } from '../harness/scratch.ts'

const COUNT = 'n=0; while :; do n=$((n+1)); echo $n > /dev/shm/count; sleep 0.05; done'
const isRoot = process.geteuid?.() === 0

for (const driver of ['qemu', 'qemu-microvm'] as const) {
  const skip = isRoot ? false : 'only root has a capability to give up'
  test(`without the right to read a VMM, ${driver} naps, wakes, forks and goes back`, { skip, timeout: 240_000 }, async (t) => {
    const dir = await scratchDir(t)
    const argv = ['setpriv', '--bounding-set=-sys_ptrace', process.execPath, '--disable-warning=ExperimentalWarning', MAIN] as const
    await using daemon = await startDaemon({ dir: join(dir, 'd'), driver, argv, env: { DORMOUSE_POOL_SIZE: '1' } })
    const { client, socket } = daemon
    const { path } = await makeBusyboxImage(dir, { cmd: ['/bin/sh', '-c', COUNT] })
    await importImage(daemon, path, 'count')
    await client.post('/instances?wait=running', { name: 'a', image: 'count', vcpus: 1, size: '256MB', overlay_size: '512MB' })
    assert.match(await daemon.log(), /memory of VMs is out of reach/)

    const countIn = async (name: string): Promise<number> => {
      const { stdout } = await execOverApi(socket, name, { command: ['/bin/cat', '/dev/shm/count'] })
      return Number(stdout)
    }
    const sh = (name: string, script: string) => execOverApi(socket, name, { command: ['/bin/sh', '-c', script] })
    await sh('a', 'until [ -s /dev/shm/count ]; do sleep 0.1; done; head -c 20000000 /dev/urandom > /dev/shm/much')
    const much = (await sh('a', 'md5sum < /dev/shm/much')).stdout
    let last = await countIn('a')
    // The third stands on a base that was consolidated from the others.
    for (let nap = 0; nap < 3; nap++) {
      await client.post('/instances/a/standby', {})
      await client.post('/instances/a/restore', {})
      const now = await countIn('a')
      assert.ok(now >= last, `it went on from ${last} and not from ${now}`)
      last = now
    }
    await client.post('/instances/a/fork', { name: 'b', from_running: true })
    await client.post('/instances/a/standby', {})
    for (const name of ['b', 'a']) {
      if (name === 'a') await client.post('/instances/a/restore', {})
      assert.ok((await countIn(name)) >= last)
      assert.equal((await sh(name, 'md5sum < /dev/shm/much')).stdout, much)
    }
    if (driver === 'qemu') {
      // Of memory that comes later there is no copy.
      const asked = { name: 'c', image: 'count', vcpus: 1, size: '256MB', overlay_size: '512MB', hotplug_size: '128MB' }
      const refused = await client.call<{ code: string; message: string }>('POST', '/instances', asked)
      assert.deepEqual([refused.status, refused.body.code], [501, 'not_supported'], refused.body.message)
      const { runtimes } = await client.get<{ runtimes: { features: string[] }[] }>('/capabilities')
      assert.ok(!runtimes.some(({ features }) => features.includes('hotplug-memory')))
    }
    for (const name of ['a', 'b']) await client.delete(`/instances/${name}`)
  })
}
