/**
 * Every method of the published client, found by looking at the client itself, asked of a whole daemon that listens. One that is not in the
 * table fails the test, and so does an answer that is not what the client's own declarations or our own schemas say. Only VMs and devices are
 * made up.
 */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, type TestContext, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import Hypeman, { APIError } from '@onkernel/hypeman'
import * as copying from '@onkernel/hypeman/lib/cp'
import * as pushing from '@onkernel/hypeman/lib/push'
import { endpoint } from '../../packages/api/src/endpoints.ts'
import { ROUTE_IDS, type Route, routes } from '../../packages/api/src/routes.ts'
import { configOf } from '../../packages/daemon/src/config/config.ts'
import { Daemon } from '../../packages/daemon/src/daemon.ts'
import { FakeSysfs } from '../../packages/daemon/src/devices/fake-sysfs.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { checkInput } from '../../packages/daemon/src/http/check-input.ts'
import { FakeHypervisor } from '../../packages/daemon/src/hypervisors/fake/fake.ts'
import { imageOf, tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { startRegistry } from '../../scripts/api-examples-run.ts'
import { ApiClient } from '../harness/api-client.ts'
import { PublishedTypes } from '../harness/published-types.ts'

const IMAGE = 'registry.example/hello:1'
const GPU = '0000:65:00.0'

/** What earlier calls have made, by the name they were given here. */
type Made = Record<'web' | 'data' | 'snapshot' | 'gpu' | 'push', string>

interface Asking {
  readonly client: Hypeman
  readonly daemon: Daemon
  readonly made: Made
}

/** In an order in which they work one after the other. What each gives is what the client's declarations are held against. */
const CALLS: Readonly<Record<string, (asking: Asking) => Promise<unknown>>> = {
  'health.check': ({ client }) => client.health.check(),
  'capabilities.get': ({ client }) => client.capabilities.get(),

  'images.create': async ({ client, daemon }) => {
    const begun = await client.images.create({ name: IMAGE, tags: { team: 'a' } })
    await daemon.images.whenReady(IMAGE, { signal: AbortSignal.timeout(60_000) })
    return begun
  },
  'images.get': ({ client }) => client.images.get(IMAGE),
  'images.list': async ({ client }) => {
    const images = await client.images.list({ tags: { team: 'a' } })
    assert.deepEqual(namesOf(images), [IMAGE])
    return images
  },
  'images.tag': ({ client }) => client.images.tag(IMAGE, { target: 'registry.example/hello:2' }),
  'images.delete': ({ client }) => client.images.delete('registry.example/hello:2'),
  'pushes.create': async ({ client, made }) => {
    const push = await client.pushes.create({ image: IMAGE, target: 'registry.example/copy:1' })
    made.push = push.id
    return push
  },
  'pushes.get': ({ client, made }) => client.pushes.get(made.push),
  'pushes.list': async ({ client }) => {
    const pushes = await client.pushes.list()
    assert.equal(pushes.length, 1)
    return pushes
  },

  'devices.listAvailable': async ({ client }) => {
    const devices = await client.devices.listAvailable()
    assert.equal(devices.length, 1)
    return devices
  },
  'devices.create': async ({ client, made }) => {
    const device = await client.devices.create({ pci_address: GPU, name: 'gpu0', tags: { rack: 'r1' } })
    made.gpu = device.id
    return device
  },
  'devices.retrieve': ({ client, made }) => client.devices.retrieve(made.gpu),
  'devices.list': async ({ client }) => {
    const devices = await client.devices.list({ tags: { rack: 'r1' } })
    assert.deepEqual(namesOf(devices), ['gpu0'])
    return devices
  },
  'devices.delete': ({ client }) => client.devices.delete('gpu0'),

  'volumes.create': async ({ client, made }) => {
    const volume = await client.volumes.create({ name: 'data', size_gb: 1, tags: { team: 'a' } })
    made.data = volume.id
    return volume
  },
  'volumes.get': ({ client }) => client.volumes.get('data'),
  'volumes.createFromArchive': ({ client }) =>
    client.volumes.createFromArchive(gzipSync(tarOf(['etc/', { name: 'etc/motd', content: 'hello\n' }])), { name: 'seed', size_gb: 1 }),
  'volumes.list': async ({ client }) => {
    const volumes = await client.volumes.list()
    assert.deepEqual(namesOf(volumes), ['seed', 'data'])
    return volumes
  },
  'volumes.delete': ({ client }) => client.volumes.delete('seed'),

  'instances.create': async ({ client, made }) => {
    const instance = await client.instances.create({
      ...{ name: 'web', image: IMAGE, size: '512MB', hotplug_size: '0', overlay_size: '1GB', vcpus: 1, ttl: '1h', disk_io_bps: '10MB/s' },
      ...{ env: { A: 'b' }, tags: { team: 'a' }, cmd: ['/bin/sleep', 'infinity'], network: { enabled: true, bandwidth_download: '1Gbps' } },
      ...{ auto_standby: { enabled: true, idle_timeout: '1h' }, restart_policy: { policy: 'on_failure' } },
      ...{ health_check: { type: 'exec', exec: { command: ['true'] } }, snapshot_policy: { standby_compression_delay: '1m' } },
    })
    made.web = instance.id
    return instance
  },
  'instances.wait': async ({ client }) => {
    const waited = await client.instances.wait('web', { state: 'Running', timeout: '30s' })
    assert.deepEqual([waited.state, waited.timed_out], ['Running', false])
    return waited
  },
  'instances.get': ({ client, made }) => client.instances.get(made.web),
  'instances.list': async ({ client }) => {
    const instances = await client.instances.list({ state: 'Running', tags: { team: 'a' } })
    assert.deepEqual(namesOf(instances), ['web'])
    return instances
  },
  'instances.update': ({ client }) =>
    client.instances.update('web', { env: { A: 'c' }, auto_standby: { enabled: true, idle_timeout: '2h' } }),
  'instances.stat': ({ client }) => client.instances.stat('web', { path: '/etc/hostname' }),
  'instances.stats': ({ client }) => client.instances.stats('web'),
  'instances.logs': async ({ client, daemon, made }) => {
    await writeFile(daemon.paths.instanceLogs(made.web).app, 'one\n"two" {}\n')
    const lines: string[] = []
    for await (const line of await client.instances.logs('web', { tail: 10, source: 'app' })) lines.push(line)
    assert.deepEqual(lines, ['one', '"two" {}'])
    return lines[0]
  },
  'instances.autoStandby.status': ({ client }) => client.instances.autoStandby.status('web'),
  'instances.autoStandby.hold': ({ client }) => client.instances.autoStandby.hold('web'),
  'instances.volumes.attach': async ({ client, made }) => {
    const instance = await client.instances.volumes.attach(made.data, { id: made.web, mount_path: '/data' })
    assert.deepEqual(
      instance.volumes?.map(({ mount_path }) => mount_path),
      ['/data'],
    )
    return instance
  },
  'instances.volumes.detach': ({ client, made }) => client.instances.volumes.detach(made.data, { id: made.web }),
  'instances.snapshotSchedule.update': ({ client }) =>
    client.instances.snapshotSchedule.update('web', {
      interval: '24h',
      retention: { max_count: 7 },
      metadata: { a: 'b' },
      name_prefix: 'day',
    }),
  'instances.snapshotSchedule.get': ({ client }) => client.instances.snapshotSchedule.get('web'),
  'instances.snapshotSchedule.delete': ({ client }) => client.instances.snapshotSchedule.delete('web'),
  'instances.standby': async ({ client }) => {
    const asleep = await client.instances.standby('web', {
      compression: { enabled: true, algorithm: 'zstd', level: 3 },
      compression_delay: '1h',
    })
    assert.deepEqual([asleep.state, asleep.has_snapshot], ['Standby', true])
    return asleep
  },
  'instances.restore': ({ client }) => client.instances.restore('web'),
  'instances.snapshots.create': async ({ client, made }) => {
    const snapshot = await client.instances.snapshots.create(made.web, { kind: 'Standby', name: 'kept', tags: { a: 'b' } })
    made.snapshot = snapshot.id
    return snapshot
  },
  'instances.fork': ({ client }) => client.instances.fork('web', { name: 'web-2', from_running: true, target_state: 'Running' }),
  'instances.stop': async ({ client }) => {
    const stopped = await client.instances.stop('web')
    assert.equal(stopped.state, 'Stopped')
    return stopped
  },
  'instances.start': ({ client }) => client.instances.start('web', { cmd: ['/bin/sleep', '1d'] }),
  'instances.snapshots.restore': async ({ client, made }) => {
    await client.instances.standby('web')
    return client.instances.snapshots.restore(made.snapshot, { id: made.web, target_state: 'Standby' })
  },
  'instances.delete': async ({ client }) => {
    await client.instances.delete('web-2', { graceful_shutdown: false })
    return client.instances.delete('web')
  },

  'snapshots.get': ({ client, made }) => client.snapshots.get(made.snapshot),
  'snapshots.list': async ({ client, made }) => {
    const snapshots = await client.snapshots.list({ source_instance_id: made.web, kind: 'Standby', name: 'kept', tags: { a: 'b' } })
    assert.deepEqual(
      snapshots.map(({ id }) => id),
      [made.snapshot],
    )
    return snapshots
  },
  'snapshots.fork': ({ client, made }) => client.snapshots.fork(made.snapshot, { name: 'of-kept', target_state: 'Stopped' }),
  'snapshots.delete': ({ client, made }) => client.snapshots.delete(made.snapshot),

  'resources.get': ({ client }) => client.resources.get(),
  'resources.reclaimMemory': ({ client }) => client.resources.reclaimMemory({ reclaim_bytes: 2 ** 20, dry_run: true, reason: 'test' }),
}

/** They answer 501 until they are built, and no client asks twice. */
const LATER: Readonly<Record<string, (asking: Asking) => Promise<unknown>>> = {
  'ingresses.create': ({ client }) =>
    client.ingresses.create({ name: 'a', rules: [{ match: { hostname: 'a.example' }, target: { instance: 'web', port: 80 } }] }),
  'ingresses.list': ({ client }) => client.ingresses.list(),
  'ingresses.get': ({ client }) => client.ingresses.get('a'),
  'ingresses.delete': ({ client }) => client.ingresses.delete('a'),
  'builders.create': ({ client }) => client.builders.create({}),
  'builders.list': ({ client }) => client.builders.list(),
  'builders.get': ({ client }) => client.builders.get('a'),
  'builders.delete': ({ client }) => client.builders.delete('a'),
  'builders.prune': ({ client }) => client.builders.prune('a'),
  'builds.create': ({ client }) => client.builds.create({ source: new File([gzipSync(tarOf([]))], 'source.tar.gz'), dockerfile: 'FROM a' }),
  'builds.list': ({ client }) => client.builds.list(),
  'builds.get': ({ client }) => client.builds.get('a'),
  'builds.cancel': ({ client }) => client.builds.cancel('a'),
  'builds.events': ({ client }) => client.builds.events('a', { follow: true }),
}

const namesOf = (list: readonly { name?: string | null }[]) => list.map(({ name }) => name)

/** Every method, by its way from the client. */
function methodsOf(client: Hypeman): string[] {
  const found: string[] = []
  const look = (resource: object, path: string): void => {
    for (const name of Object.getOwnPropertyNames(Object.getPrototypeOf(resource))) if (name !== 'constructor') found.push(`${path}${name}`)
    for (const [name, inner] of resourcesIn(resource)) look(inner, `${path}${name}.`)
  }
  for (const [name, inner] of resourcesIn(client)) look(inner, `${name}.`)
  return found
}

const resourcesIn = (of: object): [string, object][] =>
  Object.entries(of).filter(([name, inner]) => !name.startsWith('_') && typeof inner === 'object' && inner !== null && '_client' in inner)

const functionsIn = (module: object): string[] =>
  Object.keys(module).filter((name) => typeof (module as Record<string, unknown>)[name] === 'function')

describe('the published client', { timeout: 120_000 }, () => {
  const stack = new AsyncDisposableStack()
  const made = {} as Made
  const misfits: string[] = []
  /** Their codes, as they came. */
  const refusals: string[] = []
  let sent = 0
  let dir: string
  let daemon: Daemon
  let client: Hypeman
  let types: PublishedTypes

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'dm-'))
    stack.defer(() => rm(dir, { recursive: true, force: true }))
    const registry = await startRegistry(stack)
    const sysfs = stack.use(
      new FakeSysfs([{ address: GPU, vendor: '10de', device: '26b9', classCode: '030200', group: 12, driver: 'nvidia' }]),
    )
    const settings = {
      ...{ DATA_DIR: join(dir, 'data'), RUN_DIR: join(dir, 'run'), LISTEN: '127.0.0.1:0', HYPERVISOR: 'fake' },
      ...{ REGISTRY_MIRRORS: `registry.example=${registry}`, INSECURE_REGISTRIES: registry, ALLOW_PRIVATE_REGISTRIES: 'true' },
      REGISTRY_CREDENTIALS_FILE: 'off',
    }
    const config = configOf(new Map(Object.entries(settings)))
    daemon = await Daemon.start({ config, log: silentLogger, hypervisors: [new FakeHypervisor()], sysfs })
    stack.defer(() => daemon.stop())
    using host = new ApiClient(join(dir, 'run/dormouse.sock'))
    const { token } = await host.post<{ token: string }>('/tokens', { subject: 'test' })
    client = new Hypeman({ baseURL: `http://127.0.0.1:${daemon.tcp?.port}`, apiKey: token, fetch: watchedFetch })
    types = new PublishedTypes(methodsOf(client))
  })
  after(() => stack.disposeAsync())

  /** Counts, and holds each answer against our own schema. */
  async function watchedFetch(url: string | URL | Request, init?: RequestInit): Promise<Response> {
    const answer = await fetch(url, init)
    const { pathname, protocol } = new URL(String(url))
    // The client tries on a data URL what forms its fetch can send.
    if (protocol === 'http:') sent++
    const schema = schemaAt(init?.method?.toUpperCase() ?? 'GET', pathname)
    if (!answer.ok) refusals.push(((await answer.clone().json()) as { code: string }).code)
    if (schema !== undefined && answer.ok) {
      try {
        checkInput(schema, await answer.clone().json(), `${init?.method} ${pathname}`)
      } catch (error) {
        misfits.push((error as Error).message)
      }
    }
    return answer
  }

  test('has no method that is not asked here', () => {
    assert.deepEqual(Object.keys({ ...CALLS, ...LATER }).sort(), methodsOf(client).sort())
  })

  test('gets of each what its declarations and our schemas say', async (t) => {
    for (const [method, call] of Object.entries(CALLS)) {
      await t.test(method, async () => {
        const answer = await call({ client, daemon, made })
        // Made-up VMs have a name of their own, which no published client knows.
        const known = JSON.parse(JSON.stringify({ answer }), (key, value) => (/hypervisor$/.test(key) && value === 'fake' ? 'qemu' : value))
        assert.equal(types.misfit(known.answer, types.answerOf(method)), undefined)
        assert.deepEqual(misfits, [])
      })
    }
  })

  test('hears once of what is not built yet', async (t) => {
    for (const [method, call] of Object.entries(LATER)) {
      await t.test(method, async () => {
        const before = sent
        await assert.rejects(call({ client, daemon, made }), (error) => {
          assert.ok(error instanceof APIError, String(error))
          assert.deepEqual([error.status, (error.error as { code?: string }).code], [501, 'not_supported'])
          return true
        })
        assert.equal(sent, before + 1)
      })
    }
  })

  test('asks again, when it is told to, for what may do better later: an instance of an image that is on its way', async () => {
    const { promise: mayGo, resolve: go } = Promise.withResolvers<void>()
    const slow = await startRegistry(stack, { image: imageOf([tarOf([{ name: 'slow', content: 'slow' }])]), mayGo })
    await client.images.create({ name: `${slow}/slow:1` })
    const before = sent
    const wanted = client.instances.create({ name: 'of-slow', image: `${slow}/slow:1`, size: '512MB' })
    // It has been refused once, and waits for the time that it was told.
    await pollUntil('the refusal', async () => refusals.at(-1) === 'image_not_ready', { signal: AbortSignal.timeout(10_000) })
    go()
    assert.equal((await wanted).image, `${slow}/slow:1`)
    assert.ok(sent - before >= 2, `${sent - before} sent`)
    await client.instances.delete('of-slow')
  })

  test('has helpers for files and images, all of them used here', async (t) => {
    const { baseURL, apiKey } = client
    const image = imageOf([tarOf([{ name: 'hello', content: 'hello' }])])
    const layers = image.layers.map(({ digest, size }) => ({ digest, size, data: image.blobs.get(digest) as Buffer }))
    const source = { config: async () => image.config, layers: async () => layers }
    const ready = async (name: string) => {
      await daemon.images.whenReady(name, { signal: AbortSignal.timeout(60_000) })
      assert.equal((await client.images.get(name)).status, 'ready')
    }
    const docker = await dockerWith(image, t)
    const file = join(dir, 'note')
    await writeFile(file, 'hello\n')
    await client.instances.create({ name: 'files', image: IMAGE, size: '512MB' })
    await client.instances.wait('files', { state: 'Running', timeout: '30s' })

    const used: Readonly<Record<string, () => Promise<void>>> = {
      cpToInstance: () => copying.cpToInstance({ baseURL, apiKey }, { instanceId: 'files', srcPath: file, dstPath: '/tmp/note' }),
      cpFromInstance: async () => {
        await copying.cpFromInstance({ baseURL, apiKey }, { instanceId: 'files', srcPath: '/tmp/note', dstPath: join(dir, 'back') })
        assert.equal(await readFile(join(dir, 'back/note'), 'utf8'), 'hello\n')
      },
      extractPushConfig: async () => assert.equal(pushing.extractPushConfig(client).apiKey, apiKey),
      pushImage: async () => {
        await pushing.pushImage(pushing.extractPushConfig(client), source, 'team/pushed:1')
        await ready('team/pushed:1')
      },
      pushFromURL: async () => {
        await pushing.pushFromURL(baseURL, apiKey, source, 'team/pushed:2')
        await ready('team/pushed:2')
      },
      loadDockerImage: async () => {
        const loaded = await docker(() => pushing.loadDockerImage('built:1'))
        assert.deepEqual(await loaded.config(), image.config)
      },
      push: async () => {
        await docker(() => pushing.push(pushing.extractPushConfig(client), 'built:1', 'team/built:1'))
        await ready('team/built:1')
      },
    }
    assert.deepEqual(Object.keys(used).sort(), [...functionsIn(copying), ...functionsIn(pushing)].sort())
    for (const [helper, use] of Object.entries(used)) await t.test(helper, use)
  })
})

/** What the helpers know as Docker's daemon: it saves `image` under every name. They look for it where the environment says. */
async function dockerWith(image: ReturnType<typeof imageOf>, t: TestContext): Promise<<T>(work: () => Promise<T>) => Promise<T>> {
  const layers = image.layers.map((_, index) => ({ name: `${index}/layer.tar`, content: tarOf([{ name: 'hello', content: 'hello' }]) }))
  const manifest = [{ Config: 'config.json', RepoTags: ['built:1'], Layers: layers.map(({ name }) => name) }]
  const saved = tarOf([
    { name: 'manifest.json', content: JSON.stringify(manifest) },
    { name: 'config.json', content: image.config },
    ...layers,
  ])
  const server = createServer((asked, answer) => void answer.writeHead(asked.url === '/images/built:1/get' ? 200 : 404).end(saved))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => server.close())
  return async (work) => {
    const { DOCKER_HOST: before } = process.env
    process.env.DOCKER_HOST = `tcp://127.0.0.1:${(server.address() as AddressInfo).port}`
    try {
      return await work()
    } finally {
      if (before === undefined) delete process.env.DOCKER_HOST
      else process.env.DOCKER_HOST = before
    }
  }
}

function schemaAt(method: string, path: string): Route['answer'] {
  const isAt = (pattern: string) => new RegExp(`^${pattern.replace(/\{\w+\}/g, '[^/]+')}$`).test(path)
  const fits = ROUTE_IDS.filter((id) => endpoint(id).method === method && isAt(endpoint(id).path))
  // A path that is written out comes before one with a name in it.
  const id = fits.find((one) => endpoint(one).path === path) ?? fits[0]
  const route: Route | undefined = id && routes[id]
  return route?.stream === undefined ? route?.answer : undefined
}
