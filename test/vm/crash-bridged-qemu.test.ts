/**
 * The daemon's death at each step of a lease, an attach, a detach and a release on a bridge, with real VMs, in network namespaces of the
 * test's own: what the host holds afterwards is what the instances have, and they have what their records say.
 */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { after, before, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { type Lab, makeLab, nft } from '../harness/bridged-lab.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { inOwnNetwork } from '../harness/own-network.ts'
import { atRest, type ShownInstance } from './house-in-order.ts'

const BRIDGE = 'dormouse0'
const IMAGE = 'test/bridged:latest'
const SHAPE = { image: IMAGE, size: '256MB', vcpus: 1, overlay_size: '64MB' }
const PORT = 8085

type From = 'nothing' | 'Running' | 'Stopped' | 'Standby'

if (inOwnNetwork(import.meta.filename)) {
  let lab: Lab
  let daemon: DaemonProcess

  const begin = (env: Record<string, string> = {}): Promise<DaemonProcess> =>
    startDaemon({ dir: join(lab.dir, 'd'), driver: 'qemu-microvm', env: { DORMOUSE_NETWORK: 'bridged', ...env } })
  before(async () => {
    lab = await makeLab()
    daemon = await begin()
    const { path } = await makeBusyboxImage(join(lab.dir, 'image'), {
      files: { '/www/index.html': 'a page from a guest\n' },
      cmd: ['/bin/httpd', '-f', '-p', '80', '-h', '/www'],
    })
    await importImage(daemon, path, IMAGE)
    // It is there all the time, and no death may be to its harm.
    await make('bystander', 8080)
  })
  after(async () => {
    await daemon?.[Symbol.asyncDispose]()
    await lab?.[Symbol.asyncDispose]()
  })

  const make = (name: string, hostPort: number): Promise<unknown> =>
    daemon.client.post('/instances?wait=running', { name, ...SHAPE, network: { ports: [{ host_port: hostPort, guest_port: 80 }] } })
  const post = (path: string, body: object = {}) => daemon.client.post(`/instances/x/${path}`, body)
  const page = (port: number): Promise<string> =>
    fetch(`http://127.0.0.1:${port}/`, { signal: AbortSignal.timeout(3000) }).then(
      async (answer) => (await answer.text()).trim(),
      (error: Error) => String((error.cause as NodeJS.ErrnoException | undefined)?.code ?? error.name),
    )
  const devices = (): string[] => readdirSync('/sys/class/net').filter((name) => /^[du][0-9a-f]{2}-/.test(name))
  const tapOf = ({ id }: ShownInstance): string =>
    devices().find((name) => name.startsWith('d') && name.endsWith(id.slice(0, 11))) ?? `no TAP of ${id}`
  const tapsWithRules = (): string[] => [...nft('list', 'set', 'bridge', BRIDGE, 'nics').matchAll(/"(\S+)"/g)].map(([, tap = '']) => tap)
  const publishedPorts = (): number[] =>
    [...nft('list', 'map', 'inet', BRIDGE, 'ports4').matchAll(/tcp \. (\d+) :/g)].map(([, port]) => Number(port))
  function leases(): string[] {
    const db = new DatabaseSync(daemon.paths.database, { readOnly: true })
    try {
      return db
        .prepare('SELECT instance_id AS id FROM leases')
        .all()
        .map(({ id }) => String(id))
    } finally {
      db.close()
    }
  }

  const create = (): Promise<unknown> => make('x', PORT)
  const start = (): Promise<unknown> => post('start')
  const restore = (): Promise<unknown> => daemon.client.post('/instances/x/restore')
  const fork = (): Promise<unknown> => post('fork', { name: 'twin', from_running: true })
  const stop = (): Promise<unknown> => post('stop')
  const nap = (): Promise<unknown> => post('standby')
  const remove = (): Promise<unknown> => daemon.client.delete('/instances/x')
  const endItself = (): Promise<unknown> => execOverApi(daemon.socket, 'x', { command: ['/bin/killall', 'httpd'] })
  const move = (): Promise<unknown> => daemon.client.patch('/instances/x', { network: { ports: [{ host_port: 8086, guest_port: 80 }] } })
  const slow = (): Promise<unknown> => daemon.client.patch('/instances/x', { network: { bandwidth_upload: '1MB/s' } })

  const CASES: readonly (readonly [at: string, from: From, deed: () => Promise<unknown>])[] = [
    ['create:files', 'nothing', create],
    ['create:attach', 'nothing', create],
    ['create:spawn', 'nothing', create],
    ['create:record', 'nothing', create],
    ['start:attach', 'Stopped', start],
    ['start:spawn', 'Stopped', start],
    ['start:record', 'Stopped', start],
    ['restore:attach', 'Standby', restore],
    ['restore:load', 'Standby', restore],
    ['restore:record', 'Standby', restore],
    ['create:attach', 'Running', fork],
    ['create:load', 'Running', fork],
    ['update:ports', 'Running', move],
    ['update:bandwidth', 'Running', slow],
    ['update:record', 'Running', move],
    ['update:record', 'Running', slow],
    ['stop:detach', 'Running', stop],
    ['standby:detach', 'Running', nap],
    ['exit:detach', 'Running', endItself],
    ['delete:detach', 'Running', remove],
    ['delete:forget', 'Stopped', remove],
  ]
  for (const [at, from, deed] of CASES) {
    test(`a daemon that dies at ${at} of ${deed.name} leaves no TAP, rule, port or lease that is no one's, and none is missing`, async () => {
      if (from !== 'nothing') await create()
      if (from === 'Stopped') await stop()
      if (from === 'Standby') await nap()
      await daemon.stop()
      daemon = await begin({ DORMOUSE_CRASH_AT: at })
      await Promise.all([deed().catch(() => undefined), daemon.exited])
      await daemon.kill()
      daemon = await begin()
      const all = await atRest(daemon.client)
      const running = all.filter(({ state }) => state === 'Running')
      const taps = running.map(tapOf).sort()
      // What outlived its VM is taken away behind the answer.
      const isTidy = async (): Promise<boolean> => devices().filter((name) => name.startsWith('d')).length === taps.length
      await pollUntil('the TAPs to be those of guests that run', isTidy, { signal: AbortSignal.timeout(20_000) }).catch(() => undefined)
      assert.deepEqual(
        devices()
          .filter((name) => name.startsWith('d'))
          .sort(),
        taps,
      )
      assert.deepEqual(
        devices().filter((name) => name.startsWith('u')),
        [],
        'none is limited: what was to be was not on record',
      )
      assert.deepEqual(tapsWithRules().sort(), taps)
      const recorded = running.flatMap(({ network }) => (network.ports ?? []).map(({ host_port }) => host_port))
      assert.deepEqual(publishedPorts().sort(), recorded.sort())
      assert.deepEqual(leases().sort(), all.map(({ id }) => id).sort())
      for (const port of recorded) await pollUntil(`port ${port}`, async () => (await page(port)) === 'a page from a guest', soon())
      for (const { name } of all) if (name !== 'bystander') await daemon.client.delete(`/instances/${name}`)
      assert.deepEqual(publishedPorts(), [8080])
    })
  }
}

const soon = (): { signal: AbortSignal } => ({ signal: AbortSignal.timeout(20_000) })
