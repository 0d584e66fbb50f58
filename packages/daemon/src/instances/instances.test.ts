import assert from 'node:assert/strict'
import { readdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import { pollUntil } from '../host/poll-until.ts'
import { runCommand } from '../host/run-command.ts'
import type { CreateInstance, Instance } from './instance.ts'
import type { GuestAccess } from './live-vm.ts'
import { assertInOrder, settled, TEST_IMAGE, TEST_OVERLAY, TestHouse } from './test-house.ts'

const request = (name: string, more: Partial<CreateInstance> = {}): CreateInstance => ({
  name,
  image: 'test',
  overlayBytes: TEST_OVERLAY,
  ...more,
})

async function running(house: TestHouse, name = 'a', more: Partial<CreateInstance> = {}): Promise<Instance> {
  const { id } = await house.instances.create(request(name, more))
  await house.instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  return house.instances.get(id)
}

test('a create answers when the VM runs; the guest confirms soon after', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const created = await instances.create(request('a', { tags: { team: 'x' }, env: { A: '1' } }))
  assert.equal(created.state, 'Initializing')
  assert.ok(created.vm)
  const result = await instances.wait(created.id, { state: 'Running', timeoutMs: 60_000 })
  assert.deepEqual(result, { state: 'Running', timedOut: false })
  const { phases, startedAtMs, network } = instances.get(created.id)
  assert.equal(phases.current, 'Running')
  assert.deepEqual(Object.keys(phases.durations), ['created', 'initializing'])
  assert.ok(startedAtMs)
  assert.match(network.mac ?? '', /^02:/)
})

test('an image that is not there is pulled and waited for; one that takes longer is asked for again, and leaves no instance', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await assert.rejects(instances.create(request('a', { image: 'none' })), { code: 'not_found' })
  house.pulls.set('quick', async () => TEST_IMAGE)
  assert.equal((await instances.create(request('a', { image: 'quick' }))).imageDigest, TEST_IMAGE.digest)

  house.pulls.set('slow', () => Promise.reject(new AppError('timed_out', 'Not in time')))
  await assert.rejects(instances.create(request('b', { image: 'slow' })), (error) => {
    assert.ok(error instanceof AppError)
    assert.deepEqual([error.code, error.message, error.retryAfterSeconds], ['image_not_ready', 'The image slow is still being pulled', 2])
    assert.match(error.hint ?? '', /dormouse image pull slow/)
    return true
  })
  house.pulls.set('broken', () => Promise.reject(new AppError('invalid_image', 'A layer is damaged')))
  await assert.rejects(instances.create(request('b', { image: 'broken' })), { code: 'invalid_image' })
  // Nothing is pulled for what there is no room for.
  let isAsked = false
  house.pulls.set('large', async () => {
    isAsked = true
    return TEST_IMAGE
  })
  await assert.rejects(instances.create(request('b', { image: 'large', overlayBytes: 2 ** 60 })))
  assert.equal(isAsked, false)
  assert.deepEqual(
    instances.list().map(({ name }) => name),
    ['a'],
  )
})

test('names are unique over all instances in every state', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  await assert.rejects(instances.create(request('a')), { code: 'name_conflict' })
  await instances.stop(id)
  await assert.rejects(instances.create(request('a')), { code: 'name_conflict' })
  await running(house, 'b')
  await assert.rejects(instances.update(id, { name: 'b' }), { code: 'name_conflict' })
  assert.equal((await instances.update(id, { name: 'c' })).name, 'c')
  await running(house, 'a')
})

test('of two creates of one name at the same time one wins', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const both = await Promise.allSettled([instances.create(request('a')), instances.create(request('a'))])
  assert.deepEqual(both.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
  assert.equal(instances.list().length, 1)
  await settled(instances)
  await assertInOrder(house)
})

test('an instance is found by id, by name, and by the beginning of its id', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id, name } = await running(house)
  for (const text of [id, name, id.slice(0, 4), id.slice(0, 12)]) assert.equal(instances.resolve(text).id, id)
  for (const text of [id.slice(0, 3), 'nobody', '', `${id}x`, '../..', '%'])
    assert.throws(() => instances.resolve(text), { code: 'not_found' })
})

test('a name that looks like the beginning of another id names the instance it is the name of', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const first = await running(house)
  const second = await running(house, first.id.slice(0, 6))
  assert.equal(instances.resolve(first.id.slice(0, 6)).id, second.id)
})

test('a list is newest first, and filters by state and by all of the tags', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const a = await running(house, 'a', { tags: { team: 'x', tier: '1' } })
  await running(house, 'b', { tags: { team: 'x' } })
  await running(house, 'c', { tags: { team: 'y' } })
  await instances.stop(a.id)
  const names = (list: readonly Instance[]) => list.map(({ name }) => name)
  assert.deepEqual(names(instances.list()), ['c', 'b', 'a'])
  assert.deepEqual(names(instances.list({ state: 'Running' })), ['c', 'b'])
  assert.deepEqual(names(instances.list({ tags: { team: 'x' } })), ['b', 'a'])
  assert.deepEqual(names(instances.list({ tags: { team: 'x', tier: '1' } })), ['a'])
  assert.deepEqual(names(instances.list({ tags: { constructor: 'x' } })), [])
  assert.equal(instances.list()[0], instances.list()[0])
})

test('start and stop may be repeated; a start with another command is refused while it runs', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id, startedAtMs } = await running(house)
  assert.equal((await instances.start(id)).startedAtMs, startedAtMs)
  await assert.rejects(instances.start(id, { cmd: ['true'] }), { code: 'invalid_state' })
  assert.equal((await instances.stop(id)).state, 'Stopped')
  const { stoppedAtMs } = await instances.stop(id)
  assert.equal((await instances.stop(id)).stoppedAtMs, stoppedAtMs)
})

test('stops and starts that come at once are done in turn, and equal ones are joined', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  const after = house.events.latestId()
  const answers = await Promise.all([instances.stop(id), instances.stop(id), instances.start(id), instances.start(id), instances.stop(id)])
  assert.equal(answers.length, 5)
  const states: unknown[] = []
  const end = new AbortController()
  for await (const batch of house.events.subscribe({ after, signal: end.signal })) {
    for (const { data } of batch) if (states.at(-1) !== data.state) states.push(data.state)
    if (batch.at(-1)?.id === house.events.latestId()) end.abort()
  }
  assert.deepEqual(states, ['Shutdown', 'Stopped', 'Created', 'Initializing', 'Shutdown', 'Stopped'])
  await assertInOrder(house)
})

test('more requests than an instance can queue are turned away', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  const many = await Promise.allSettled(Array.from({ length: 60 }, (_, n) => instances.update(id, { tags: { n: String(n) } })))
  const refused = many.filter((it) => it.status === 'rejected')
  assert.ok(refused.length >= 60 - 33)
  for (const { reason } of refused) assert.equal(reason.code, 'rate_limited')
})

test('after a delete was accepted nothing else is, but another delete joins it', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  const waiting = instances.wait(id, { state: 'Stopped', timeoutMs: 60_000 })
  const deleting = instances.delete(id)
  await assert.rejects(instances.start(id), { code: 'invalid_state', message: /it is being deleted/ })
  await Promise.all([deleting, instances.delete(id)])
  await assert.rejects(waiting, { code: 'not_found' })
  await assert.rejects(instances.stop(id), { code: 'not_found' })
  await assertInOrder(house)
})

test('a delete during a create waits for it and then takes all of it away', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const creating = instances.create(request('a'))
  while (instances.list().length === 0) await new Promise((resolve) => setImmediate(resolve))
  const [{ id }] = instances.list() as [Instance]
  await Promise.all([creating.catch(() => undefined), instances.delete(id)])
  assert.deepEqual(instances.list(), [])
  await assertInOrder(house)
})

test('a wait answers early, with the reason, when the state will not come', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house, 'a', { cmd: ['sleep'] })
  await instances.stop(id)
  const result = await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  assert.deepEqual([result.state, result.timedOut], ['Stopped', false])
  assert.match(result.reason ?? '', /It is Stopped \(its workload ended with code 143/)
})

test('a wait that runs out of time, or whose caller hangs up, says where the instance is', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  const late = await instances.wait(id, { state: 'Stopped', timeoutMs: 20 })
  assert.deepEqual([late.state, late.timedOut], ['Running', true])
  assert.match(late.reason ?? '', /still Running/)
  const gone = await instances.wait(id, { state: 'Stopped', timeoutMs: 60_000, signal: AbortSignal.timeout(20) })
  assert.equal(gone.timedOut, true)
  await assert.rejects(instances.wait(id, { state: 'Unknown', timeoutMs: 10 }), { code: 'invalid_state' })
})

test('a wait that begins before a start was asked for sees it through', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  await instances.stop(id)
  const starting = instances.start(id)
  assert.equal((await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })).state, 'Running')
  await starting
})

test('host ports belong to one instance at a time, in every state, and 0 picks a free one', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const a = await running(house, 'a', { network: { ports: [{ hostPort: 0, guestPort: 80 }] } })
  const [port] = a.network.ports
  assert.ok(port && port.hostPort > 0)
  await instances.stop(a.id)
  const same = { ports: [{ hostPort: port.hostPort, guestPort: 81 }] }
  await assert.rejects(instances.create(request('b', { network: same })), { code: 'port_in_use', message: /published by the instance a$/ })
  await assert.rejects(instances.create(request('b', { network: { ports: [...same.ports, ...same.ports] } })), { code: 'invalid_request' })
  await instances.delete(a.id)
  await running(house, 'b', { network: same })
})

for (const [one, all, other] of [
  ['127.0.0.1', '0.0.0.0', '127.0.0.2'],
  ['::1', '::', undefined],
] as const) {
  test(`a port of ${one} and of ${all} are one port, of one instance and of two, whichever comes first`, async () => {
    await using house = new TestHouse()
    const instances = await house.begin()
    const a = await running(house, 'a', { network: { ports: [{ hostIp: one, hostPort: 0, guestPort: 80 }] } })
    const hostPort = a.network.ports[0]?.hostPort ?? 0
    const on = (hostIp: string) => ({ ports: [{ hostIp, hostPort, guestPort: 81 }] })
    const isTakenBy = (name: string) => ({ code: 'port_in_use', message: new RegExp(`published by the instance ${name}$`) })
    // Nothing listens while it is stopped: only the record tells.
    await instances.stop(a.id)
    await assert.rejects(instances.create(request('b', { network: on(all) })), isTakenBy('a'))
    const b = await running(house, 'b')
    await assert.rejects(instances.update(b.id, { network: on(all) }), isTakenBy('a'))
    await assert.rejects(instances.create(request('c', { network: { ports: [...on(all).ports, ...on(one).ports] } })), {
      code: 'invalid_request',
      message: /asked for twice/,
    })
    // Its own port makes room for the wider one.
    assert.equal((await instances.update(a.id, { network: on(all) })).network.ports[0]?.hostIp, all)
    for (const hostIp of [one, other].filter((it) => it !== undefined)) {
      await assert.rejects(instances.create(request('c', { network: on(hostIp) })), isTakenBy('a'))
    }
    // The other family has ports of its own.
    await instances.update(b.id, { network: on(one === '::1' ? '127.0.0.1' : '::1') })
    await instances.start(a.id)
    await settled(instances)
    await assertInOrder(house)
  })
}

test('an IPv6 address is one address, however it is written', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const a = await running(house, 'a', { network: { ports: [{ hostIp: '0:0:0:0:0:0:0:1', hostPort: 0, guestPort: 80 }] } })
  const [port] = a.network.ports
  assert.equal(port?.hostIp, '::1')
  const same = { hostIp: '0::0:1', hostPort: port.hostPort, guestPort: 81 }
  await assert.rejects(instances.create(request('b', { network: { ports: [same] } })), { code: 'port_in_use' })
})

test('a host port that another program has is refused before anything is made', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const server = createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const { port } = server.address() as { port: number }
  const ports = [{ hostIp: '127.0.0.1', hostPort: port, guestPort: 80 }]
  await assert.rejects(instances.create(request('a', { network: { ports } })), { code: 'port_in_use', message: /another program/ })
  assert.deepEqual(instances.list(), [])
  server.close()
})

test('ports move while the VM runs, and those of a stopped instance from its next start', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house, 'a', { network: { ports: [{ hostPort: 0, guestPort: 80 }] } })
  const moved = await instances.update(id, { network: { ports: [{ hostPort: 0, guestPort: 81 }] } })
  assert.deepEqual(house.host.running()[0]?.ports, moved.network.ports)
  await instances.stop(id)
  const { network } = await instances.update(id, { network: { ports: [{ ...moved.network.ports[0], hostPort: 0, guestPort: 82 }] } })
  await instances.start(id)
  assert.deepEqual(house.host.running()[0]?.ports, network.ports)
  await settled(instances)
  await assertInOrder(house)
})

test('how fast a network may be is given to its VM, changes in any state, and is kept', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id, network } = await running(house, 'a', { network: { bandwidthDownload: 1 << 20, bandwidthUpload: 0 } })
  assert.deepEqual([network.bandwidthDownload, network.bandwidthUpload], [1 << 20, undefined])
  const paces = () => house.host.running().map(({ bandwidth }) => bandwidth)
  assert.deepEqual(paces(), [{ downloadBps: 1 << 20 }])
  await instances.update(id, { network: { bandwidthUpload: 1 << 19 } })
  assert.deepEqual(paces(), [{ downloadBps: 1 << 20, uploadBps: 1 << 19 }])
  await instances.update(id, { network: { bandwidthDownload: 0 } })
  assert.deepEqual(paces(), [{ uploadBps: 1 << 19 }])
  await instances.standby(id)
  await instances.update(id, { network: { bandwidthDownload: 1 << 21 } })
  await instances.restore(id)
  assert.deepEqual(paces(), [{ downloadBps: 1 << 21, uploadBps: 1 << 19 }])
  await instances.fork(id, { name: 'b', fromRunning: true, bandwidthUpload: 0 })
  assert.deepEqual(
    new Set(paces().map((pace) => JSON.stringify(pace))),
    new Set(['{"downloadBps":2097152,"uploadBps":524288}', '{"downloadBps":2097152}']),
  )
  await settled(instances)
  await assertInOrder(house)
})

test('a bandwidth that cannot be given changes nothing', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house, 'a', { network: { bandwidthDownload: 1 << 20, ports: [{ hostPort: 0, guestPort: 80 }] } })
  const before = instances.get(id).network
  for (const [code, network] of [
    ['invalid_bandwidth_download', { bandwidthDownload: 10 }],
    ['invalid_bandwidth_upload', { bandwidthUpload: 2 ** 41 }],
  ] as const) {
    await assert.rejects(instances.update(id, { network }), { code })
    await assert.rejects(instances.create(request('b', { network })), { code })
    await assert.rejects(instances.fork(id, { name: 'b', fromRunning: true, ...network }), { code })
  }
  await assert.rejects(instances.create(request('b', { network: { enabled: false, bandwidthUpload: 1 << 20 } })), {
    code: 'invalid_request',
  })
  house.host.injectFault('set_bandwidth')
  await assert.rejects(instances.update(id, { network: { bandwidthUpload: 1 << 20, ports: [{ hostPort: 0, guestPort: 81 }] } }))
  assert.deepEqual(instances.get(id).network, before)
  assert.deepEqual(house.host.running()[0]?.ports, before.ports)
  assert.deepEqual(house.host.running()[0]?.bandwidth, { downloadBps: 1 << 20 })
})

test('sizes change while Stopped only, a disk only grows, and each has its limits', async () => {
  await using house = new TestHouse({ settings: { MAX_VCPUS: '4', MAX_OVERLAY_SIZE: '1GB' } })
  const instances = await house.begin()
  const { id } = await running(house)
  await assert.rejects(instances.update(id, { vcpus: 1 }), { code: 'invalid_state' })
  await instances.stop(id)
  await assert.rejects(instances.update(id, { vcpus: 5 }), { code: 'invalid_request' })
  await assert.rejects(instances.update(id, { memoryBytes: 1 << 20 }), { code: 'invalid_size' })
  await assert.rejects(instances.update(id, { overlayBytes: TEST_OVERLAY / 2 }), { code: 'invalid_overlay_size' })
  await assert.rejects(instances.update(id, { overlayBytes: 2 * 2 ** 30 }), { code: 'invalid_overlay_size' })
  const grown = await instances.update(id, { vcpus: 1, memoryBytes: 2 ** 28, overlayBytes: 2 * TEST_OVERLAY })
  assert.deepEqual([grown.vcpus, grown.memoryBytes, grown.overlayBytes, grown.operation], [1, 2 ** 28, 2 * TEST_OVERLAY, undefined])
  await assertInOrder(house)
})

test('an update changes all of the patch or nothing', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  await assert.rejects(instances.update(id, { name: 'z', tags: { a: '1' }, vcpus: 1 }), { code: 'invalid_state' })
  const { name, tags } = instances.get(id)
  assert.deepEqual([name, tags], ['a', {}])
})

test('the environment is merged, and counts from the next start', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house, 'a', { env: { A: '1', B: '2' } })
  assert.deepEqual((await instances.update(id, { env: { B: '3', C: '4' } })).env, { A: '1', B: '3', C: '4' })
  await assert.rejects(instances.update(id, { env: { 'no=name': '1' } }), { code: 'invalid_request' })
})

test('what a start is given in place of the command is kept for the next', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  await instances.stop(id)
  await instances.start(id, { cmd: ['exit', '5'] })
  await instances.wait(id, { state: 'Stopped', timeoutMs: 60_000 })
  await instances.start(id, { cmd: [] })
  await instances.wait(id, { state: 'Stopped', timeoutMs: 60_000 })
  assert.deepEqual([instances.get(id).cmd, instances.get(id).exitCode], [['exit', '5'], 5])
})

test('more than the host has is refused before anything is made', async () => {
  await using house = new TestHouse({ settings: { CPU_RATIO: '1', MEMORY_RATIO: '0.1' } })
  const instances = await house.begin()
  const small = { vcpus: 1, memoryBytes: 2 ** 30 }
  const a = await running(house, 'a', small)
  await assert.rejects(instances.create(request('b', { ...small, vcpus: 2 })), { code: 'insufficient_resources', message: /CPU/ })
  await assert.rejects(instances.create(request('b', small)), { code: 'insufficient_resources', message: /memory/ })
  // Nor is anything pulled for it; but that there is no such image is told first, as more room would not help.
  house.pulls.set('there', () => assert.fail('it is waited for'))
  await assert.rejects(instances.create(request('b', { ...small, image: 'there' })), { code: 'insufficient_resources' })
  await assert.rejects(instances.create(request('b', { ...small, image: 'absent' })), { code: 'not_found' })
  await instances.stop(a.id)
  await running(house, 'b', small)
  await assert.rejects(instances.start(a.id), { code: 'insufficient_resources' })
  assert.equal(instances.get(a.id).state, 'Stopped')
  await assertInOrder(house)
})

test('more network than the host’s link carries, twice over, is refused before anything is made', async () => {
  await using house = new TestHouse({ settings: { NETWORK_BANDWIDTH: '1MB/s' } })
  const instances = await house.begin()
  const a = await running(house, 'a', { network: { bandwidthDownload: 1 << 19, bandwidthUpload: 1 << 20 } })
  await assert.rejects(instances.create(request('b', { network: { bandwidthDownload: 3 << 19 } })), {
    code: 'insufficient_resources',
    message: /not enough network for b: it needs 1536KB\/s, 1MB\/s of 2MB\/s is left/,
  })
  const b = await running(house, 'b', { network: { bandwidthDownload: 1 << 20 } })
  await assert.rejects(instances.update(b.id, { network: { bandwidthUpload: 3 << 19 } }), { code: 'insufficient_resources' })
  await assert.rejects(instances.fork(b.id, { name: 'c', fromRunning: true }), { code: 'insufficient_resources' })
  // Who asks for nothing is promised nothing.
  await running(house, 'c')
  await instances.standby(b.id)
  await instances.update(a.id, { network: { bandwidthUpload: 2 << 20 } })
  await assert.rejects(instances.restore(b.id), { code: 'insufficient_resources' })
  assert.equal(instances.get(b.id).state, 'Standby')
  await instances.update(a.id, { network: { bandwidthUpload: 0 } })
  await instances.restore(b.id)
  await settled(instances)
  await assertInOrder(house)
})

test('an instance whose time is up is deleted, and cannot be changed before that', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house, 'a', { expiresAtMs: Date.now() + 60_000 })
  assert.equal((await instances.update(id, { expiresAtMs: null })).expiresAtMs, undefined)
  await instances.update(id, { expiresAtMs: Date.now() - 1 })
  await assert.rejects(instances.update(id, { tags: {} }), { code: 'instance_expired' })
  instances.deleteExpired()
  await settled(instances)
  assert.deepEqual(instances.list(), [])
  await assertInOrder(house)
})

test('what cannot be is refused by name', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  for (const name of ['', 'A', '-a', 'a-', 'a_b', 'a'.repeat(64), 'a/b', 'ä']) {
    await assert.rejects(instances.create(request(name)), { code: 'invalid_name' }, name)
  }
  await assert.rejects(instances.create(request('a', { image: 'absent' })), { code: 'not_found' })
  await assert.rejects(instances.create(request('a', { memoryBytes: 2 ** 20 })), { code: 'invalid_size' })
  await assert.rejects(instances.create(request('a', { memoryBytes: 2 ** 30 + 1 })), { code: 'invalid_size' })
  await assert.rejects(instances.create(request('a', { overlayBytes: 0 })), { code: 'invalid_overlay_size' })
  await assert.rejects(instances.create(request('a', { hypervisor: 'firecracker' })), { code: 'not_supported' })
  await assert.rejects(instances.create(request('a', { hypervisor: 'vz' })), { code: 'not_supported', message: /part of macOS/ })
  await assert.rejects(instances.create(request('a', { env: { '': 'x' } })), { code: 'invalid_request' })
  await assert.rejects(instances.create(request('a', { network: { enabled: false, ports: [{ hostPort: 0, guestPort: 1 }] } })), {
    code: 'invalid_request',
  })
  assert.deepEqual(instances.list(), [])
})

test('the guest can be reached while Running only, and says why not otherwise', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  const step = { signal: AbortSignal.timeout(60_000), log: house.log }
  const guest = await instances.guest(id, step)
  assert.equal((await guest.stat('/', { followLinks: true }, step)).is_dir, true)
  assert.ok((await instances.stats(id)).memoryVmsBytes > 0)
  await instances.stop(id)
  await assert.rejects(instances.guest(id, step), { code: 'invalid_state', message: /it is stopped: start it first/ })
  assert.equal((await instances.stats(id)).memoryVmsBytes, 0)
})

test('through a nap and a wake the guest cannot be reached, as its state says, and never fails to answer', async () => {
  await using house = new TestHouse()
  const told: string[] = []
  const instances = await house.begin({
    atStep: async (operation, name) => {
      if (operation !== 'standby' && operation !== 'restore') return
      const [one] = house.instances.list()
      assert.ok(one)
      const step = { signal: AbortSignal.timeout(60_000), log: house.log }
      const refusal = house.instances.guest(one.id, step, 'stat').then(
        () => 'let in',
        (error: { code: string }) => error.code,
      )
      told.push(`${operation}:${name} ${one.state} ${await refusal}`)
    },
  })
  const { id } = await running(house)
  await instances.standby(id)
  await instances.restore(id)
  for (const state of ['Running', 'Standby', 'Paused'])
    assert.ok(
      told.some((line) => line.includes(` ${state} `)),
      told.join('\n'),
    )
  assert.deepEqual(
    told.filter((line) => !line.endsWith(' invalid_state')),
    [],
  )
})

test('a program that is asked for while its instance is forked begins when the workload goes on', async () => {
  await using house = new TestHouse()
  const asked: Promise<string>[] = []
  const instances = await house.begin({
    atStep: async (operation, name) => {
      if (operation !== 'fork' || !['freeze', 'pause', 'capture', 'pivot', 'resume'].includes(name)) return
      const [one] = house.instances.list().filter(({ name }) => name === 'a')
      assert.ok(one)
      const step = { signal: AbortSignal.timeout(60_000), log: house.log }
      const guest = await house.instances.guest(one.id, step)
      asked.push(
        guest.exec({ command: ['echo', name] }, step).then(
          async ({ stdout }) => String(Buffer.concat(await Array.fromAsync(stdout))).trim(),
          (error: Error) => error.message,
        ),
      )
    },
  })
  const { id } = await running(house)
  await instances.fork(id, { name: 'b', fromRunning: true, target: 'Standby' })
  assert.deepEqual((await Promise.all(asked)).sort(), ['capture', 'freeze', 'pause', 'pivot', 'resume'])
})

test('a program that waits for a workload to go on is told when its instance is put to sleep instead', async () => {
  await using house = new TestHouse()
  let asked: Promise<unknown> = Promise.resolve()
  let guest: GuestAccess | undefined
  const step = { signal: AbortSignal.timeout(60_000), log: house.log }
  const instances = await house.begin({
    atStep: async (operation, name) => {
      if (operation !== 'standby' || name !== 'pause') return
      asked = assert.rejects(guest?.exec({ command: ['echo'] }, step) ?? Promise.resolve(), { message: /was put into standby/ })
    },
  })
  const { id } = await running(house)
  guest = await instances.guest(id, step)
  await instances.standby(id)
  await asked
})

test('an image is in use while an instance stands on it', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id, imageDigest } = await running(house)
  assert.equal(instances.isImageInUse(imageDigest), true)
  await instances.delete(id)
  assert.equal(instances.isImageInUse(imageDigest), false)
})

test('the daemon’s own lines about an instance are among its logs', async () => {
  await using house = new TestHouse({ logLevel: 'info' })
  const instances = await house.begin()
  const { id } = await running(house, 'a', { cmd: ['echo', 'hello'] })
  await instances.wait(id, { state: 'Stopped', timeoutMs: 60_000 })
  const lines = (await Array.fromAsync(await instances.logs(id, { source: 'daemon' }))).flatMap((batch) => batch.lines)
  assert.ok(lines.some((line) => JSON.parse(line).msg === 'instance changed'))
  const app = (await Array.fromAsync(await instances.logs(id, { source: 'app', follow: true, untilStopped: true }))).flatMap(
    (batch) => batch.lines,
  )
  assert.deepEqual(app, ['hello'])
})

test('at its end the daemon takes no more requests, finishes what is under way and leaves VMs running', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const a = await running(house)
  const b = await running(house, 'b')
  await settled(instances)
  const stopping = instances.stop(b.id)
  await house.end()
  await stopping
  await assert.rejects(instances.create(request('c')), { code: 'shutting_down' })
  assert.deepEqual(
    house.host.running().map(({ spec }) => spec.id),
    [a.id],
  )
  const again = await house.begin()
  assert.deepEqual(
    again.list().map(({ state }) => state),
    ['Stopped', 'Running'],
  )
})

/** A workload that does not listen to its stop signal. */
const deaf = (house: TestHouse, name = 'a'): Promise<Instance> => running(house, name, { cmd: ['stubborn'] })

/** Resolves when a stop has been recorded and its guest is asked. */
async function waitingForExit(house: TestHouse): Promise<void> {
  const isAsked = () => house.instances.list().some(({ state }) => state === 'Shutdown')
  await pollUntil('the stop to begin', isAsked, { signal: AbortSignal.timeout(60_000) }, { everyMs: 1, upToMs: 5 })
}

test('a stop that is forced while another waits for the workload kills it at once', { timeout: 20_000 }, async () => {
  await using house = new TestHouse({ settings: { STOP_GRACE: '60s', DELETE_GRACE: '60s' } })
  const instances = await house.begin()
  const { id } = await deaf(house)
  const gentle = instances.stop(id)
  await waitingForExit(house)
  assert.equal((await instances.stop(id, { force: true })).state, 'Stopped')
  await gentle
  await assertInOrder(house)
})

test('a stop with a smaller grace, and a delete, shorten the stop that they meet', { timeout: 20_000 }, async () => {
  await using house = new TestHouse({ settings: { STOP_GRACE: '60s', DELETE_GRACE: '10ms' } })
  const instances = await house.begin()
  const { id } = await deaf(house)
  const gentle = instances.stop(id)
  await waitingForExit(house)
  assert.equal((await instances.stop(id, { graceMs: 10 })).state, 'Stopped')
  await gentle
  const other = await deaf(house, 'b')
  const patient = instances.stop(other.id, { graceMs: 300_000 })
  await waitingForExit(house)
  await instances.delete(other.id)
  await patient.catch(() => undefined)
  await assertInOrder(house)
})

test('ports cannot be given to an instance without network', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house, 'a', { network: { enabled: false } })
  await assert.rejects(instances.update(id, { network: { ports: [{ hostPort: 0, guestPort: 80 }] } }), { code: 'invalid_request' })
  assert.deepEqual(instances.get(id).network.ports, [])
})

test('an image of another platform is refused before anything is made', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await assert.rejects(instances.create(request('a', { platform: 'linux/arm64' })), { code: 'platform_not_available' })
  assert.deepEqual(instances.list(), [])
})

test('of creates at the same time only those that fit are taken', async () => {
  // Two processors: there is room for three instances of two.
  await using house = new TestHouse({ settings: { CPU_RATIO: '3' } })
  const instances = await house.begin()
  const creates = Array.from({ length: 10 }, (_, n) =>
    instances.create(request(`a${n}`, { network: { ports: [{ hostPort: 0, guestPort: 80 }] } })),
  )
  const outcomes = await Promise.allSettled(creates)
  assert.equal(outcomes.filter(({ status }) => status === 'fulfilled').length, 3)
  for (const outcome of outcomes) if (outcome.status === 'rejected') assert.equal(outcome.reason.code, 'insufficient_resources')
})

test('overlays count at their full size, in every state', async () => {
  const { blocks, bsize } = statfsSync(tmpdir())
  const ratio = (2.5 * TEST_OVERLAY) / (blocks * bsize)
  await using house = new TestHouse({ settings: { DISK_RATIO: String(ratio) } })
  const instances = await house.begin()
  const a = await running(house, 'a')
  await instances.stop(a.id)
  await running(house, 'b')
  await assert.rejects(instances.create(request('c')), { code: 'insufficient_resources', message: /not enough disk for c/ })
  await assert.rejects(instances.update(a.id, { overlayBytes: 2 * TEST_OVERLAY }), { code: 'insufficient_resources' })
  await instances.delete(a.id)
  await running(house, 'c')
})

test('an Unknown instance counts as long as its VM may run', async () => {
  await using house = new TestHouse({ settings: { CPU_RATIO: '1' } })
  const instances = await house.begin()
  const { id } = await running(house)
  house.host.injectFault('kill')
  await assert.rejects(instances.stop(id, { force: true }))
  assert.equal(instances.get(id).state, 'Unknown')
  assert.ok(instances.get(id).vm)
  await assert.rejects(instances.create(request('b')), { code: 'insufficient_resources' })
  await instances.stop(id, { force: true })
  await running(house, 'b')
})

test('a layer that no row names is removed at the start of the daemon; an instance without all of its own is Unknown', async () => {
  await using house = new TestHouse()
  await house.begin()
  const { id, disk } = await running(house)
  await house.instances.stop(id)
  await house.end()
  for (const name of ['stray.raw', 'draft.qcow2']) writeFileSync(house.paths.disk(name), '')
  await house.begin()
  assert.deepEqual(readdirSync(house.paths.disksDir), disk)
  await house.end()
  rmSync(house.paths.disk(String(disk[0])))
  await house.begin()
  assert.match(house.instances.get(id).stateError ?? '', /its disk is missing/)
})

test('a disk of several layers becomes one when it grows, also after a daemon that died in the middle', async () => {
  await using house = new TestHouse()
  await house.begin()
  const { id } = await running(house)
  await house.instances.stop(id)
  await house.end()
  const chain = await house.layerDisk(id)
  assert.equal(chain.length, 2)

  let hasCrashed = false
  await house.begin({ crashAt: 'update:settle', onCrash: () => (hasCrashed = true) })
  house.instances.update(id, { overlayBytes: 2 * TEST_OVERLAY }).catch(() => undefined)
  await pollUntil('the crash', () => hasCrashed, { signal: AbortSignal.timeout(10_000) })
  house.crash()
  await house.begin()
  await settled(house.instances)
  const { disk, overlayBytes } = house.instances.get(id)
  assert.deepEqual([disk.length, overlayBytes, chain.includes(String(disk[0]))], [1, 2 * TEST_OVERLAY, false])
  await runCommand(['e2fsck', '-f', '-n', house.paths.disk(String(disk[0]))], { step: { signal: AbortSignal.timeout(10_000) } })
  // The old layers are gone with the last who stood on them.
  await assertInOrder(house)
})

test('what its disks move is limited from the start, at once by an update, and over a nap and a fork', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const rateOf = (id: string): number | undefined => house.host.running().find(({ spec }) => spec.id === id)?.diskIoBps
  const { id } = await running(house, 'a', { diskIoBps: 2 ** 24 })
  assert.equal(rateOf(id), 2 ** 24)
  await instances.update(id, { diskIoBps: 2 ** 25 })
  assert.equal(rateOf(id), 2 ** 25)
  await instances.standby(id)
  await instances.restore(id)
  const fork = await instances.fork(id, { name: 'b', fromRunning: true })
  assert.deepEqual([rateOf(id), rateOf(fork.id)], [2 ** 25, 2 ** 25])
  await instances.update(id, { diskIoBps: 0 })
  // Two processors of two, and twice what the disks move.
  assert.deepEqual([instances.get(id).diskIoBps, rateOf(id)], [undefined, 2 ** 31])
  for (const diskIoBps of [1000, 2 ** 50]) await assert.rejects(instances.update(id, { diskIoBps }), { code: 'invalid_disk_io_bps' })
  await assert.rejects(instances.create(request('c', { diskIoBps: 1 })), { code: 'invalid_disk_io_bps' })
  await assertInOrder(house)
})

test('where a VM keeps the rate that it began with, a change is refused while there is one, and is there with the next', async () => {
  await using house = new TestHouse({ lacks: ['disk_limit_live'] })
  let instances = await house.begin()
  const rateOf = (id: string): number | undefined => house.host.running().find(({ spec }) => spec.id === id)?.diskIoBps
  const { id } = await running(house, 'a', { diskIoBps: 2 ** 24 })
  const refused = { code: 'invalid_state', message: /disks of a VM .* a is Running/ }
  await assert.rejects(instances.update(id, { diskIoBps: 2 ** 25, tags: { a: 'b' } }), refused)
  await assert.rejects(instances.update(id, { diskIoBps: 0 }), refused)
  await instances.update(id, { diskIoBps: 2 ** 24, tags: { c: 'd' } })
  assert.deepEqual([instances.get(id).diskIoBps, instances.get(id).tags, rateOf(id)], [2 ** 24, { c: 'd' }, 2 ** 24])
  house.crash()
  instances = await house.begin()
  await settled(instances)
  assert.deepEqual([instances.get(id).state, rateOf(id)], ['Running', 2 ** 24])
  await instances.standby(id)
  await instances.update(id, { diskIoBps: 2 ** 25 })
  await instances.restore(id)
  assert.equal(rateOf(id), 2 ** 25)
  await instances.stop(id)
  await instances.update(id, { diskIoBps: 2 ** 26 })
  await instances.start(id)
  await settled(instances)
  assert.equal(rateOf(id), 2 ** 26)
  await assertInOrder(house)
})

test('rates that are asked for are promises, of which no more are made than the disks keep', async () => {
  await using house = new TestHouse({ settings: { DISK_IO_CAPACITY: '100MB/s', DISK_IO_RATIO: '1' } })
  const instances = await house.begin()
  const MB = 2 ** 20
  const a = await running(house, 'a', { diskIoBps: 60 * MB })
  // A share is no promise.
  const b = await running(house, 'b')
  const short = { code: 'insufficient_resources', message: /disk I\/O for .: it needs \d+MB\/s, 40MB\/s of 100MB\/s is left/ }
  await assert.rejects(instances.create(request('c', { diskIoBps: 41 * MB })), short)
  await assert.rejects(instances.update(b.id, { diskIoBps: 41 * MB }), short)
  await instances.update(a.id, { diskIoBps: 100 * MB })
  await instances.stop(a.id)
  await instances.update(b.id, { diskIoBps: 41 * MB })
  await assert.rejects(instances.start(a.id), { code: 'insufficient_resources', message: /disk I\/O/ })
})

test('what is being woken counts before it is on record', async () => {
  await using house = new TestHouse({ settings: { CPU_RATIO: '1' } })
  const instances = await house.begin()
  const a = await running(house, 'a')
  await instances.standby(a.id)
  const b = await running(house, 'b')
  await instances.standby(b.id)
  await instances.consolidated()
  const outcomes = await Promise.allSettled([instances.restore(a.id), instances.restore(b.id), instances.create(request('c'))])
  assert.equal(outcomes.filter(({ status }) => status === 'fulfilled').length, 1)
  for (const outcome of outcomes) if (outcome.status === 'rejected') assert.equal(outcome.reason.code, 'insufficient_resources')
  await assertInOrder(house)
})

test('memory is added to one that runs and taken back; where its guest does not follow, all is as it was', async () => {
  await using house = new TestHouse({ settings: { MEMORY_RATIO: '0.25' } })
  const instances = await house.begin()
  const machineOf = (id: string) => house.host.running().find(({ spec }) => spec.id === id)
  const MB = 2 ** 20
  const { id } = await running(house, 'a', { memoryBytes: 2 ** 30, hotplugBytes: 128 * MB })
  await instances.update(id, { hotplugBytes: 512 * MB })
  assert.deepEqual([instances.get(id).hotplugBytes, machineOf(id)?.hotplugBytes], [512 * MB, 512 * MB])
  await assert.rejects(instances.update(id, { hotplugBytes: 4096 * MB }), { code: 'insufficient_resources', message: /memory/ })
  await assert.rejects(instances.update(id, { hotplugBytes: MB }), { code: 'invalid_hotplug_size' })
  const machine = machineOf(id)
  if (machine) machine.guest.needsItsMemory = true
  await assert.rejects(instances.update(id, { hotplugBytes: 0, tags: { a: 'b' } }), { code: 'conflict' })
  assert.deepEqual([instances.get(id).hotplugBytes, instances.get(id).tags], [512 * MB, {}])
  if (machine) machine.guest.needsItsMemory = false
  await instances.standby(id)
  await assert.rejects(instances.update(id, { hotplugBytes: 0 }), { code: 'invalid_state' })
  await instances.restore(id)
  await instances.update(id, { hotplugBytes: 0 })
  const other = await running(house, 'b', { memoryBytes: 2 ** 30 })
  await assert.rejects(instances.update(other.id, { hotplugBytes: 128 * MB }), { code: 'invalid_state' })
  // What it begins with has to be enough to describe what is added, whichever of the two changes.
  await instances.stop(id)
  await instances.update(id, { hotplugBytes: 4096 * MB })
  await assert.rejects(instances.update(id, { memoryBytes: 128 * MB }), { code: 'invalid_hotplug_size' })
  await assertInOrder(house)
})

test('an instance may be as large as its name lets it, also as a fork, under a new name and at new sizes', async () => {
  const GIB = 2 ** 30
  await using house = new TestHouse({ settings: { NAME_LIMITS: 'ci-*:vcpus=1,db-*:memory=64GB,*-small:memory=256MB', MAX_VCPUS: '4' } })
  const instances = await house.begin()
  await assert.rejects(instances.create(request('ci-1')), { code: 'invalid_request', message: /between 1 and 1/ })
  await assert.rejects(instances.create(request('a-small')), { code: 'invalid_size', message: /256MB/ })
  // The first that fits counts.
  const small = await running(house, 'ci-small', { vcpus: 1, memoryBytes: GIB })
  const large = await running(house, 'a', { vcpus: 4 })
  const fork = (name: string) => instances.fork(large.id, { name, fromRunning: true, target: 'Stopped' })
  await assert.rejects(fork('ci-2'), { code: 'invalid_request' })
  assert.equal((await fork('db-2')).vcpus, 4)
  await instances.stop(large.id)
  await assert.rejects(instances.update(large.id, { name: 'ci-3' }), { code: 'invalid_request' })
  await instances.update(large.id, { name: 'ci-3', vcpus: 1 })
  await assert.rejects(instances.update(large.id, { vcpus: 2 }), { code: 'invalid_request' })
  await assert.rejects(instances.update(large.id, { memoryBytes: 33 * GIB }), { code: 'invalid_size' })
  assert.equal((await instances.update(large.id, { name: 'db-3', memoryBytes: 33 * GIB })).memoryBytes, 33 * GIB)
  assert.deepEqual(
    instances
      .list()
      .map(({ name }) => name)
      .toSorted(),
    ['ci-small', 'db-2', 'db-3'],
  )
  assert.equal(instances.get(small.id).vcpus, 1)
  await assertInOrder(house)
})
