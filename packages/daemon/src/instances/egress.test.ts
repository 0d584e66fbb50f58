/** Instances whose way out is a proxy of their own: what the proxy knows, what no one else is told, and how it lives with its VM. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { guestVariablesOf } from '../egress/credentials.ts'
import { pollUntil } from '../host/poll-until.ts'
import { type Nic, UserNetwork } from '../network/network.ts'
import { guestConfigOf } from './guest-config-of.ts'
import type { InstanceId } from './instance.ts'
import { assertInOrder, settled, TEST_IMAGE, TEST_OVERLAY, TestHouse } from './test-house.ts'

const SECRET = 's3cret-of-the-host'
const inject = [{ header: 'authorization', format: `Bearer \${value}`, hosts: ['api.example.com'] }]
const egress = { mode: 'all', credentials: { KEY: { source: 'REAL_KEY', inject } } } as const
const request = { name: 'a', image: 'test', overlayBytes: TEST_OVERLAY, env: { REAL_KEY: SECRET, LANG: 'C' }, egress } as const

const proxyOf = (house: TestHouse, id: InstanceId) => house.proxies.running.get(house.paths.proxyRunDir(id))
const worthOf = (house: TestHouse, id: InstanceId) => proxyOf(house, id)?.order?.mediation.values.REAL_KEY
const until = (what: string, holds: () => boolean) =>
  pollUntil(what, holds, { signal: AbortSignal.timeout(10_000) }, { everyMs: 1, upToMs: 5 })

async function running(house: TestHouse): Promise<InstanceId> {
  const { id } = await house.instances.create(request)
  await settled(house.instances)
  return id
}

test('its proxy is there as long as its VM, and knows what to do before the VM starts', async () => {
  await using house = new TestHouse()
  const orders: (string | undefined)[] = []
  const instances = await house.begin({
    atStep: async (operation, step) => {
      const [proxy] = house.proxies.running.values()
      if (step === 'spawn' || step === 'load') orders.push(`${operation} ${proxy?.order?.mediation.values.REAL_KEY}`)
    },
  })
  const id = await running(house)
  const { authority } = instances.get(id).egress ?? assert.fail()
  await assertInOrder(house)
  await instances.standby(id)
  await assertInOrder(house)
  assert.equal(house.proxies.running.size, 0)
  await instances.restore(id)
  await instances.stop(id)
  await assertInOrder(house)
  await instances.start(id)
  await settled(instances)
  assert.deepEqual(orders, [`create ${SECRET}`, `restore ${SECRET}`, `start ${SECRET}`])
  assert.deepEqual(instances.get(id).egress?.authority, authority)
  await instances.delete(id)
  await assertInOrder(house)
})

test('a fork has a proxy of its own, and the authority that its guest has read', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const id = await running(house)
  const kept = await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
  const fork = await instances.fork(id, { name: 'b', fromRunning: true })
  await instances.update(fork.id, { env: { REAL_KEY: 'of the fork' } })
  await instances.update(id, { env: { REAL_KEY: 'rotated', LANG: 'de' } })
  const early = await instances.forkSnapshot(kept, { name: 'd' })
  assert.equal(early.env.LANG, 'C')
  await instances.delete(id)
  const again = await instances.forkSnapshot(kept, { name: 'c' })
  for (const [it, value] of [
    [fork, 'of the fork'],
    [early, 'rotated'],
    [again, SECRET],
  ] as const) {
    assert.deepEqual(instances.get(it.id).egress, kept.instance.egress)
    assert.equal(worthOf(house, it.id), value)
  }
  await assertInOrder(house)
})

test('a value that is rotated counts at once, in any state, and does not come back with a snapshot', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const id = await running(house)
  const kept = await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
  await instances.update(id, { env: { REAL_KEY: 'second', LANG: 'de' } })
  assert.equal(worthOf(house, id), 'second')
  // What is shown can be sent back.
  await instances.update(id, { env: guestVariablesOf(instances.get(id).env, egress.credentials) })
  await assert.rejects(instances.update(id, { env: { REAL_KEY: 'a\nb' } }), { code: 'invalid_request' })
  assert.equal(worthOf(house, id), 'second')
  await instances.standby(id)
  await instances.update(id, { env: { REAL_KEY: 'third' } })
  await instances.restoreSnapshot(id, kept, 'Running')
  assert.deepEqual([instances.get(id).env.REAL_KEY, instances.get(id).env.LANG], ['third', 'C'])
  assert.equal(worthOf(house, id), 'third')
  await assertInOrder(house)
})

test('a proxy that dies, or cannot be told, has a successor that knows what is on record', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const id = await running(house)
  const first = proxyOf(house, id) ?? assert.fail()
  house.proxies.onStart = async () => {
    house.proxies.onStart = undefined
    throw new Error('not at once')
  }
  house.proxies.die(house.paths.proxyRunDir(id))
  await until('another proxy', () => worthOf(house, id) === SECRET)
  const second = proxyOf(house, id) ?? assert.fail()
  assert.notEqual(second, first)
  second.onConfigure = async () => {
    throw new Error('it does not listen')
  }
  await instances.update(id, { env: { REAL_KEY: 'second' } })
  await until('another proxy', () => worthOf(house, id) === 'second')
  assert.notEqual(proxyOf(house, id), second)
  // One whose VM goes while it is to be started again stays away.
  house.proxies.onStart = async () => {
    throw new Error('never')
  }
  house.proxies.die(house.paths.proxyRunDir(id))
  await instances.stop(id)
  await assertInOrder(house)
  await assert.rejects(instances.start(id), { code: 'internal_error' })
  assert.equal(instances.get(id).state, 'Stopped')
  await assert.rejects(instances.create({ ...request, name: 'b' }), { code: 'internal_error' })
  assert.equal(instances.list().length, 1)
  await assertInOrder(house)
})

test('a daemon that begins finds its proxies, tells them anew, and starts those that are gone', async () => {
  await using house = new TestHouse()
  let instances = await house.begin()
  const ids = [await running(house), (await instances.create({ ...request, name: 'b' })).id]
  await settled(instances)
  const [kept, gone] = ids.map((id) => proxyOf(house, id) ?? assert.fail())
  await house.end()
  if (kept) kept.order = undefined
  house.proxies.die(house.paths.proxyRunDir(ids[1] ?? assert.fail()))
  instances = await house.begin()
  await assertInOrder(house)
  const [first, second] = ids.map((id) => proxyOf(house, id))
  assert.equal(first, kept)
  assert.notEqual(second, gone)
})

/** As a bridge does it: guests are led to ports of the host, once they are attached. */
class LeadingNetwork {
  /** Where the guests that are attached are led. */
  readonly led = new Map<string, number | undefined>()
  /** All that it was told to lead to. */
  readonly told: (number | undefined)[] = []
  onAttach: (() => Promise<void>) | undefined
  #lastPort = 4000
  readonly network = Object.assign(new UserNetwork({ dns: [] }), {
    listenForProxy: async () => ({ fd: -1, port: ++this.#lastPort, [Symbol.dispose]: () => undefined }),
    leadToProxy: async (id: string, port: number | undefined) => {
      this.told.push(port)
      if (this.led.has(id)) this.led.set(id, port)
    },
    attach: async ({ id, egress }: Nic) => {
      await this.onAttach?.()
      this.led.set(id, egress?.proxyPort)
    },
    detach: async (id: string) => void this.led.delete(id),
    recover: async (live: readonly Nic[]) => {
      for (const { id, egress } of live) this.led.set(id, egress?.proxyPort)
    },
  })
}

test('no one is led to the port of a proxy that has died: neither a guest that runs, nor one that comes, nor by the next daemon', async () => {
  const bridge = new LeadingNetwork()
  const { network, led, told } = bridge
  await using house = new TestHouse({ network })
  let instances = await house.begin()
  const id = await running(house)
  assert.deepEqual([led.get(id), proxyOf(house, id)?.order?.guestAddress], [4001, '10.0.2.15'])
  const gate = Promise.withResolvers<void>()
  using _ = { [Symbol.dispose]: () => gate.resolve() }
  house.proxies.onStart = () => gate.promise
  house.proxies.die(house.paths.proxyRunDir(id))
  await until('no way out', () => led.get(id) === undefined)
  house.proxies.onStart = undefined
  gate.resolve()
  await until('a way out', () => led.get(id) === 4002)
  assert.equal(proxyOf(house, id)?.order?.guestAddress, '10.0.2.15')

  await instances.standby(id)
  bridge.onAttach = async () => {
    bridge.onAttach = undefined
    house.proxies.die(house.paths.proxyRunDir(id))
    await until('another proxy', () => told.at(-1) === 4004)
  }
  await instances.restore(id)
  assert.equal(led.get(id), 4004)

  await house.end()
  house.proxies.die(house.paths.proxyRunDir(id))
  house.proxies.onStart = async () => {
    throw new Error('never')
  }
  instances = await house.begin()
  assert.equal(led.get(id), undefined)
  house.proxies.onStart = undefined
  await until('a way out', () => led.get(id) !== undefined)
  await assertInOrder(house)
})

test('neither its guest, nor who asks, nor what is written down is told a value or the key of its authority', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const id = await running(house)
  const network = new UserNetwork({ dns: [] })
  const config = guestConfigOf(instances.get(id), { image: TEST_IMAGE, network, hasModules: false })
  const { KEY, REAL_KEY, LANG, HTTPS_PROXY, http_proxy, NO_PROXY } = config.workload.env
  assert.deepEqual([KEY, REAL_KEY, LANG], ['mock-KEY', undefined, 'C'])
  assert.deepEqual([HTTPS_PROXY, http_proxy, NO_PROXY], ['http://10.0.2.4:3128', 'http://10.0.2.4:3128', 'localhost,127.0.0.1,::1'])
  const { authority } = instances.get(id).egress ?? assert.fail()
  assert.equal(config.authority, authority.certificate)
  const specs = house.host.running().map(({ spec }) => spec)
  const told = JSON.stringify([config, specs, house.db.prepare('SELECT * FROM events').all()])
  for (const secret of [SECRET, 'PRIVATE KEY', authority.key.split('\n')[1] ?? assert.fail()]) assert.ok(!told.includes(secret), secret)
})

test('who has no credentials goes out by a proxy all the same, and trusts no one new', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await instances.create({ ...request, egress: { mode: 'http_https_only', credentials: {} } })
  await settled(instances)
  const network = new UserNetwork({ dns: [] })
  const config = guestConfigOf(instances.get(id), { image: TEST_IMAGE, network, hasModules: false })
  assert.deepEqual([config.authority, config.workload.env.REAL_KEY], [undefined, SECRET])
  // What is said of the way out goes to the guest with its environment.
  const env = { LONG: 'x'.repeat(100 * 1024), MORE: 'x'.repeat(100 * 1024) }
  await assert.rejects(instances.update(id, { env }), { code: 'invalid_request', message: /larger than 192 ?K/ })
  await assert.rejects(
    instances.create({ name: 'b', image: 'test', overlayBytes: TEST_OVERLAY, env, egress: { mode: 'all', credentials: {} } }),
    {
      code: 'invalid_request',
    },
  )
  const [spec] = house.host.running().map((machine) => machine.spec)
  assert.ok(spec?.nic?.backend === 'user')
  assert.deepEqual(spec.nic.egress, { socket: join(house.paths.proxyRunDir(id), 'guest/guest.sock'), mode: 'http_https_only' })
  await assertInOrder(house)
})
