/** A whole daemon on made-up VMs and devices, with a registry that has every image, some of everything to begin with, and an open ear. */
import assert from 'node:assert/strict'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ERROR_CODES } from '../../packages/api/src/errors.ts'
import { configOf } from '../../packages/daemon/src/config/config.ts'
import { Daemon } from '../../packages/daemon/src/daemon.ts'
import { FakeSysfs } from '../../packages/daemon/src/devices/fake-sysfs.ts'
import { FakeProxies } from '../../packages/daemon/src/egress/fake-proxies.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { FakeHost, FakeHypervisor } from '../../packages/daemon/src/hypervisors/fake/fake.ts'
import { createLogger } from '../../packages/daemon/src/log.ts'
import { startRegistry } from '../../scripts/api-examples-run.ts'
import { ApiClient } from '../harness/api-client.ts'

export interface FuzzedDaemon extends AsyncDisposable {
  readonly url: string
  readonly token: string
  /** What the daemon's log says that it must not: faults, and refusals that the route table does not tell of. */
  faults(): string[]
  /** Deletes everything there is, as a user would, and looks whether anything stays. */
  assertEmptied(): Promise<void>
}

const IMAGE = 'hello:1'
const GPU = '0000:65:00.0'
const SHOWN = 20

export async function fuzzedDaemon(): Promise<FuzzedDaemon> {
  await using undo = new AsyncDisposableStack()
  const dir = await mkdtemp(join(tmpdir(), 'dm-'))
  undo.defer(() => rm(dir, { recursive: true, force: true }))
  const registry = await startRegistry(undo)
  const settings = {
    ...{ DATA_DIR: join(dir, 'data'), RUN_DIR: join(dir, 'run'), LISTEN: '127.0.0.1:0', HYPERVISOR: 'fake', POOL_SIZE: '0' },
    ...{ REGISTRY_MIRRORS: `docker.io=${registry},registry.example=${registry}`, INSECURE_REGISTRIES: registry },
    // What is drawn shall not be refused for want of room alone.
    ...{ CPU_RATIO: '1000', MEMORY_RATIO: '100', DISK_RATIO: '20', NETWORK_RATIO: '100', DISK_IO_RATIO: '100' },
    ...{ ALLOW_PRIVATE_REGISTRIES: 'true', REGISTRY_CREDENTIALS_FILE: 'off', PUBLISH_ADDRESS: '127.0.0.1' },
  }
  const sysfs = undo.use(
    new FakeSysfs([
      { address: GPU, vendor: '10de', device: '26b9', classCode: '030200', group: 12, driver: 'nvidia' },
      { address: '0000:17:00.0', vendor: '15b3', device: '101d', classCode: '020000', group: 3, driver: 'mlx5_core' },
    ]),
  )
  const faults = new Set<string>()
  const log = createLogger({ level: 'warn', destination: { write: (line) => void (isFault(line) && faults.add(line.trim())) } })
  const host = new FakeHost()
  const proxies = new FakeProxies()
  const daemon = await Daemon.start({
    config: configOf(new Map(Object.entries(settings))),
    log,
    hypervisors: [new FakeHypervisor(host)],
    sysfs,
    proxies,
  })
  undo.defer(() => daemon.stop())
  const client = undo.use(new ApiClient(join(dir, 'run/dormouse.sock')))
  await fill(daemon, client)
  const { token } = await client.post<{ token: string }>('/tokens', { subject: 'fuzz' })
  const kept = undo.move()
  return {
    url: `http://127.0.0.1:${daemon.tcp?.port}`,
    token,
    faults: () => [...faults].slice(0, SHOWN),
    assertEmptied: async () => {
      await empty(client)
      assert.deepEqual(host.running(), [])
      assert.deepEqual([...proxies.running.keys()], [])
      assert.deepEqual([host.violations, sysfs.violations], [[], []])
      const { paths } = daemon
      for (const left of [paths.disksDir, paths.instancesDir, paths.imageDraftsDir, paths.imageRootfsDir, paths.imageLayersDir])
        assert.deepEqual(await readdir(left).catch(() => []), [], left)
    },
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

function isFault(line: string): boolean {
  const { msg, err, level } = JSON.parse(line) as { msg?: string; level: string; err?: { code?: string } }
  if (msg === 'error is not listed by its route') return true
  return level === 'error' && (err?.code === 'internal_error' || !ERROR_CODES.some((code) => code === err?.code))
}

async function fill(daemon: Daemon, client: ApiClient): Promise<void> {
  await client.post('/images', { name: IMAGE })
  await daemon.images.whenReady(IMAGE, { signal: AbortSignal.timeout(60_000) })
  await client.post('/volumes', { name: 'data', size_gb: 1 })
  await client.post('/devices', { name: 'gpu0', pci_address: GPU })
  for (const name of ['web', 'box', 'job']) await client.post('/instances?wait=running', { name, image: IMAGE, size: '512MB' })
  await client.post('/instances/box/snapshots', { kind: 'Standby', name: 'kept' })
  await client.post('/instances/box/standby', {})
  await client.post('/instances/job/stop', {})
}

async function empty(client: ApiClient): Promise<void> {
  const each = async (path: string, key: 'id' | 'name' = 'id', query = ''): Promise<void> => {
    for (const one of await client.get<Record<'id' | 'name', string>[]>(path))
      await client.delete(`${path}/${encodeURIComponent(one[key])}${query}`)
  }
  await each('/instances', 'id', '?graceful_shutdown=false')
  for (const path of ['/snapshots', '/volumes', '/devices']) await each(path)
  // What is being pushed cannot be deleted, and a registry that cannot be reached is tried more than once.
  const isOver = async () =>
    (await client.get<{ status: string }[]>('/pushes')).every(({ status }) => status === 'pushed' || status === 'failed')
  await pollUntil('the pushes to be over', isOver, { signal: AbortSignal.timeout(120_000) }, { everyMs: 20, upToMs: 500 })
  await each('/images', 'name')
  await client.post('/prune', { all: true })
}
