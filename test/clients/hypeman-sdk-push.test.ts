/** The published client, unmodified: its helper pushes an image to the daemon, which makes an instance of it and pushes it on. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import Hypeman, { APIError } from '@onkernel/hypeman'
import { extractPushConfig, pushImage } from '@onkernel/hypeman/lib/push'
import { configOf } from '../../packages/daemon/src/config/config.ts'
import { Daemon } from '../../packages/daemon/src/daemon.ts'
import { FakeHypervisor } from '../../packages/daemon/src/hypervisors/fake/fake.ts'
import { imageOf, tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { ApiClient } from '../harness/api-client.ts'
import { scratchDir } from '../harness/scratch.ts'

const IMAGE = imageOf([tarOf([{ name: 'hello', content: 'hello' }])])

async function house(t: TestContext): Promise<{ daemon: Daemon; client: Hypeman; host: string; token: string }> {
  const dir = await scratchDir(t)
  const settings = { DATA_DIR: join(dir, 'data'), RUN_DIR: join(dir, 'run'), LISTEN: '127.0.0.1:0', HYPERVISOR: 'fake' }
  const config = configOf(new Map(Object.entries(settings)))
  const daemon = await Daemon.start({ config, log: silentLogger, hypervisors: [new FakeHypervisor()] })
  t.after(() => daemon.stop())
  using api = new ApiClient(join(dir, 'run/dormouse.sock'))
  const { token } = await api.post<{ token: string }>('/tokens', { subject: 'test' })
  const host = `127.0.0.1:${daemon.tcp?.port}`
  return { daemon, host, token, client: new Hypeman({ baseURL: `http://${host}`, apiKey: token }) }
}

/** The client has no way to wait but to ask. */
async function pushed(client: Hypeman, id: string): Promise<Hypeman.Push> {
  for (;;) {
    const push = await client.pushes.get(id)
    if (push.status === 'pushed' || push.status === 'failed') return push
  }
}

test('its helper pushes an image, an instance is made of it, and it is pushed on', { timeout: 120_000 }, async (t) => {
  const { daemon, client, host, token } = await house(t)
  const source = {
    config: async () => IMAGE.config,
    layers: async () => IMAGE.layers.map(({ digest, size }) => ({ digest, size, data: IMAGE.blobs.get(digest) as Buffer })),
  }
  await pushImage(extractPushConfig(client), source, 'myorg/myapp:v1')
  await daemon.images.whenReady('myorg/myapp:v1', { signal: AbortSignal.timeout(60_000) })
  const image = await client.images.get('myorg/myapp:v1')
  assert.deepEqual([image.name, image.status], ['docker.io/myorg/myapp:v1', 'ready'])
  const instance = await client.instances.create({ name: 'of-it', image: 'myorg/myapp:v1' })
  assert.equal(instance.image, 'myorg/myapp:v1')

  const begun = await client.pushes.create({ image: 'myorg/myapp:v1', target: `${host}/copy:2`, credentials: { registry_token: token } })
  assert.deepEqual([begun.image, begun.digest, begun.target], [image.name, image.digest, `${host}/copy:2`])
  const over = await pushed(client, begun.id)
  assert.deepEqual([over.status, over.layers, over.bytes, over.error], ['pushed', 1, IMAGE.layers[0]?.size, null])
  assert.deepEqual(
    (await client.pushes.list()).map(({ id }) => id),
    [begun.id],
  )
  assert.equal((await client.images.get('copy:2')).digest, image.digest)

  const refused = async (body: Hypeman.PushCreateParams, status: number, code: string): Promise<void> => {
    const error = await client.pushes.create(body).catch((thrown: unknown) => thrown)
    assert.ok(error instanceof APIError, String(error))
    assert.deepEqual([error.status, (error.error as { code?: string }).code], [status, code])
  }
  await refused({ image: 'absent', target: `${host}/x:1` }, 404, 'not_found')
  await refused({ image: 'NO', target: `${host}/x:1` }, 400, 'invalid_name')
  await refused({ image: 'copy:2', target: 'NO' }, 400, 'invalid_target')
  assert.equal((await pushed(client, (await client.pushes.create({ image: 'copy:2', target: `${host}/x:1` })).id)).status, 'failed')
})
