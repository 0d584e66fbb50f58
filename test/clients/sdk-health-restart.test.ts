/** Health checks, restart policies and times to live, as the published client asks for them, of a whole daemon; only the VMs are made up. */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import Hypeman, { APIError } from '@onkernel/hypeman'
import { configOf } from '../../packages/daemon/src/config/config.ts'
import { Daemon } from '../../packages/daemon/src/daemon.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { FakeHost, FakeHypervisor } from '../../packages/daemon/src/hypervisors/fake/fake.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { importArchive } from '../harness/import-archive.ts'

const IMAGE = 'docker.io/library/sleepy:1'
const PORT = 8080

describe('the published client', { timeout: 120_000 }, () => {
  const host = new FakeHost()
  let dir: string
  let daemon: Daemon
  let client: Hypeman

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'dm-'))
    const settings = { DATA_DIR: join(dir, 'data'), RUN_DIR: join(dir, 'run'), LISTEN: '127.0.0.1:0', HYPERVISOR: 'fake' }
    const config = configOf(new Map(Object.entries(settings)))
    daemon = await Daemon.start({ config, log: silentLogger, hypervisors: [new FakeHypervisor(host)] })
    const baseURL = `http://127.0.0.1:${daemon.tcp?.port}`
    const apiKey = await mint()
    client = new Hypeman({ baseURL, apiKey })
    await importImage(baseURL, apiKey)
  })
  after(async () => {
    await daemon.stop()
    await rm(dir, { recursive: true, force: true })
  })

  function mint(): Promise<string> {
    const body = JSON.stringify({ subject: 'test' })
    const headers = { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(body)) }
    const { promise, resolve, reject } = Promise.withResolvers<string>()
    const asking = request({ socketPath: join(dir, 'run/dormouse.sock'), path: '/tokens', method: 'POST', headers, agent: false })
    asking.on('response', async (answer) => {
      let text = ''
      for await (const chunk of answer) text += chunk
      resolve(JSON.parse(text).token)
    })
    asking.on('error', reject).end(body)
    return promise
  }

  async function importImage(baseURL: string, apiKey: string): Promise<void> {
    await importArchive(baseURL, apiKey, { dir, name: IMAGE })
    await daemon.images.whenReady(IMAGE, { signal: AbortSignal.timeout(60_000) })
  }

  const create = (name: string, more: Partial<Hypeman.InstanceCreateParams> = {}) =>
    client.instances.create({ name, image: IMAGE, size: '512MB', ...more })
  const until = (name: string, what: string, holds: (instance: Hypeman.Instance) => boolean): Promise<Hypeman.Instance> =>
    pollUntil(
      what,
      async () => {
        const instance = await client.instances.get(name)
        return holds(instance) ? instance : undefined
      },
      { signal: AbortSignal.timeout(30_000) },
    )
  const refused = (promise: Promise<unknown>, status: number, code: string) =>
    assert.rejects(
      promise,
      (error) => error instanceof APIError && error.status === status && (error.error as { code?: string }).code === code,
    )

  test('a service is found healthy, then not, and is started again, which list and get tell alike', async () => {
    host.services.set(PORT, (connection) => void connection.end('HTTP/1.1 204 No Content\r\n\r\n'))
    const made = await create('web', {
      health_check: {
        ...{ type: 'http', http: { port: PORT, path: '/ready', expected_status: 204 } },
        ...{ interval: '100ms', timeout: '5s', start_period: '0s', failure_threshold: 2 },
      },
      restart_policy: { policy: 'on_failure', backoff: '10ms' },
    })
    assert.deepEqual(made.health_check, {
      ...{ type: 'http', interval: '100ms', timeout: '5s', start_period: '0s', failure_threshold: 2, success_threshold: 1 },
      http: { port: PORT, path: '/ready', scheme: 'http', expected_status: 204 },
    })
    assert.deepEqual(made.restart_policy, { policy: 'on_failure', backoff: '10ms', max_attempts: 0, stable_after: '10m0s' })
    const healthy = await until('web', 'it to be healthy', ({ health_status }) => health_status?.status === 'healthy')
    assert.ok(healthy.health_status?.last_success_at)
    assert.equal(healthy.health_status?.last_error, null)
    assert.deepEqual(
      { ...healthy.restart_status },
      { attempts: 0, last_attempt_at: null, next_attempt_at: null, blocked_reason: null, last_reason: null },
    )
    host.services.delete(PORT)
    const again = await until('web', 'its restart', ({ restart_status }) => (restart_status?.attempts ?? 0) > 0)
    assert.equal(again.restart_status?.last_reason, 'health_check_failed')
    const [listed] = await client.instances.list()
    assert.equal(listed?.restart_status?.last_reason, 'health_check_failed')
    assert.notEqual(listed?.health_status?.status, undefined)
    const calm = await client.instances.update('web', { health_check: { type: 'none' }, restart_policy: { policy: 'never' } })
    assert.equal(calm.health_status?.status, 'disabled')
    await client.instances.delete('web')
  })

  test('a workload that ends is started again, but not once someone has stopped it', async () => {
    await create('job', { cmd: ['/bin/false'], restart_policy: { policy: 'always', backoff: '10ms', max_attempts: 2 } })
    const over = await until(
      'job',
      'its attempts to be over',
      ({ restart_status }) => restart_status?.blocked_reason === 'max_attempts_exceeded',
    )
    assert.deepEqual([over.state, over.exit_code, over.restart_status?.attempts], ['Stopped', 1, 2])
    const stopped = await client.instances.stop('job')
    assert.equal(stopped.restart_status?.blocked_reason, 'manual_stop')
    await client.instances.delete('job')
  })

  test('what is wrong with a policy is told with a code of its own', async () => {
    const check = { type: 'http', http: { port: 80 } } as const
    await refused(create('x', { health_check: { ...check, interval: '0s' } }), 400, 'invalid_health_check')
    await refused(create('x', { health_check: { ...check, http: { port: 80, path: 'a b' } } }), 400, 'invalid_health_check')
    await refused(create('x', { health_check: { type: 'exec', exec: { command: ['a\0'] } } }), 400, 'invalid_health_check')
    await refused(create('x', { health_check: { type: 'tcp' } }), 400, 'invalid_health_check')
    await refused(create('x', { health_check: { type: 'tcp', tcp: { port: 0 } } }), 400, 'invalid_request')
    await refused(create('x', { restart_policy: { policy: 'always', backoff: 'soon' } }), 400, 'invalid_restart_policy')
  })
})
