/** Memory that the host has again, with real VMs: measured at their processes, while their workloads go on. */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { endProcessesNaming } from '../harness/processes.ts'
import { makeStep } from '../harness/qemu-driver.ts'
import { Scratch } from '../harness/scratch.ts'
import { assertHostInOrder, atRest, processesOf, type ShownInstance } from './house-in-order.ts'

const MB = 2 ** 20

interface Answer {
  readonly planned_reclaim_bytes: number
  readonly applied_reclaim_bytes: number
  readonly hold_until?: string
  readonly actions: readonly {
    readonly instance_name: string
    readonly status: string
    readonly applied_reclaim_bytes: number
    readonly error?: string
  }[]
}

for (const board of ['qemu-microvm', 'qemu'] as const) {
  describe(`memory given back, ${board}`, () => {
    let scratch: Scratch
    let dir: string
    let daemon: DaemonProcess
    before(async () => {
      scratch = await Scratch.make()
      dir = join(scratch.path, 'd')
      daemon = await startDaemon({ dir, driver: board, env: { DORMOUSE_POOL_SIZE: '1' } })
      // It counts in memory that only it has, and says so; the rest of what it has written it never looks at again.
      const count = 'n=0; while :; do n=$((n+1)); echo $n > /dev/shm/count; sleep 0.1; done'
      const image = await makeBusyboxImage(scratch.path, { cmd: ['/bin/sh', '-c', count] })
      await importImage(daemon, image.path, 'counts')
    })
    after(async () => {
      await daemon?.stop()
      await endProcessesNaming(dir)
      await scratch[Symbol.asyncDispose]()
    })

    const sh = async (script: string): Promise<string> => {
      const { exitCode, stdout, stderr } = await execOverApi(daemon.socket, 'counter', { command: ['/bin/sh', '-c', script] })
      assert.equal(exitCode, 0, stderr)
      return stdout.trim()
    }
    const reclaim = (body: object): Promise<Answer> => daemon.client.post('/resources/memory/reclaim', body)
    const memoryOf = async (id: string): Promise<{ rss: number; own: number }> => {
      const { shims, vmms } = await processesOf(dir)
      const shim = shims.find(({ place }) => place.endsWith(id.slice(0, 12)))
      const status = await readFile(`/proc/${vmms.find(({ parent }) => parent === shim?.pid)?.pid}/status`, 'utf8')
      const of = (field: string): number => Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(status)?.[1]) * 1024
      return { rss: of('VmRSS'), own: of('RssAnon') }
    }
    const waiting = async (): Promise<number> => {
      const { runtimes } = await daemon.client.get<{ runtimes: { name: string; waiting?: number }[] }>('/capabilities')
      return runtimes.find(({ name }) => name === board)?.waiting ?? 0
    }

    test('a guest’s own pages become a base’s, VMs that wait go, and its workload counts on', { timeout: 240_000 }, async () => {
      const shape = { image: 'counts', vcpus: 1, size: '512MB', overlay_size: '256MB' }
      await daemon.client.post('/instances?wait=running', { name: 'counter', ...shape })
      const { id } = await daemon.client.get<ShownInstance>('/instances/counter')
      await sh('dd if=/dev/urandom of=/dev/shm/kept bs=1M count=150 2>/dev/null; sha1sum < /dev/shm/kept > /root/sum')
      await pollUntil('a VM to wait', async () => (await waiting()) === 1, makeStep(120_000))
      const before = await memoryOf(id)
      assert.ok(before.own > 200 * MB, `it has ${before.own / MB} MB of its own`)
      const boot = await sh('cat /proc/sys/kernel/random/boot_id; pgrep -f count | head -1')
      const counted = Number(await sh('cat /dev/shm/count'))

      const planned = await reclaim({ reclaim_bytes: 1000 * MB, dry_run: true })
      assert.deepEqual([planned.applied_reclaim_bytes, planned.actions[0]?.status], [0, 'planned'])
      assert.ok(planned.planned_reclaim_bytes > 100 * MB)
      const done = await reclaim({ reclaim_bytes: 1000 * MB, hold_for: '2m', reason: 'a test' })
      assert.deepEqual(
        done.actions.map(({ instance_name, status }) => `${instance_name} ${status}`),
        ['counter reclaimed'],
      )
      assert.ok(Number(done.actions[0]?.applied_reclaim_bytes) > 100 * MB, JSON.stringify(done))
      assert.ok(done.applied_reclaim_bytes >= Number(done.actions[0]?.applied_reclaim_bytes))
      assert.ok(Date.parse(done.hold_until ?? '') > Date.now() + 60_000)
      assert.equal(await waiting(), 0)

      const after = await memoryOf(id)
      assert.ok(after.own < before.own - 100 * MB && after.rss < before.rss - 100 * MB, JSON.stringify({ before, after }))
      assert.equal(await sh('cat /proc/sys/kernel/random/boot_id; pgrep -f count | head -1'), boot)
      const now = Number(await sh('cat /dev/shm/count'))
      assert.ok(now >= counted, `it counted ${counted}, and now ${now}`)
      await pollUntil('it to count on', async () => Number(await sh('cat /dev/shm/count')) > now, makeStep(20_000))
      assert.equal(await sh('sha1sum < /dev/shm/kept'), await sh('cat /root/sum'))
      await assertHostInOrder(dir, await atRest(daemon.client))
    })

    test('who cannot says why, and what is wrong is refused', async () => {
      assert.equal((await reclaim({ reclaim_bytes: 0 })).hold_until, undefined)
      await daemon.client.post('/instances/counter/standby', {})
      assert.deepEqual((await reclaim({ reclaim_bytes: MB, hold_for: '0s' })).actions, [])
      for (const body of [{}, { reclaim_bytes: -1 }, { reclaim_bytes: 1, hold_for: '2h' }, { reclaim_bytes: 1, hold_for: 'long' }]) {
        assert.equal((await daemon.client.call('POST', '/resources/memory/reclaim', body)).status, 400, JSON.stringify(body))
      }
      await daemon.client.post('/instances/counter/restore', {})
      await daemon.client.delete('/instances/counter')
    })
  })
}
