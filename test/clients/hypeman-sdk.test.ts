/** The published client of the API this daemon speaks, unmodified, against a whole daemon that listens; only the VMs are made up. */
import assert from 'node:assert/strict'
import { chmod, mkdir, mkdtemp, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import Hypeman, { APIError } from '@onkernel/hypeman'
import { cpFromInstance, cpToInstance } from '@onkernel/hypeman/lib/cp'
import WebSocket from 'ws'
import { configOf } from '../../packages/daemon/src/config/config.ts'
import { Daemon } from '../../packages/daemon/src/daemon.ts'
import { FakeHypervisor } from '../../packages/daemon/src/hypervisors/fake/fake.ts'
import { tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { importArchive } from '../harness/import-archive.ts'

const IMAGE = 'docker.io/library/sleepy:1'

describe('the published client', { timeout: 120_000 }, () => {
  let dir: string
  let daemon: Daemon
  let baseURL: string
  let apiKey: string
  let client: Hypeman
  /** Requests that the client has sent, its own repeats counted. */
  let sent = 0

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'dm-'))
    const settings = { DATA_DIR: join(dir, 'data'), RUN_DIR: join(dir, 'run'), LISTEN: '127.0.0.1:0', HYPERVISOR: 'fake' }
    daemon = await Daemon.start({
      config: configOf(new Map(Object.entries(settings))),
      log: silentLogger,
      hypervisors: [new FakeHypervisor()],
    })
    baseURL = `http://127.0.0.1:${daemon.tcp?.port}`
    apiKey = await mint()
    client = sdk(apiKey)
    await importImage()
  })
  after(async () => {
    await daemon.stop()
    await rm(dir, { recursive: true, force: true })
  })

  const sdk = (key: string): Hypeman =>
    new Hypeman({
      baseURL,
      apiKey: key,
      fetch: (url, init) => {
        sent++
        return fetch(url, init)
      },
    })

  async function mint(...scopes: string[]): Promise<string> {
    const { request } = await import('node:http')
    const body = JSON.stringify({ subject: 'test', ...(scopes.length > 0 && { scopes }) })
    return new Promise((resolve, reject) => {
      const headers = { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(body)) }
      request({ socketPath: join(dir, 'run/dormouse.sock'), path: '/tokens', method: 'POST', headers, agent: false }, async (answer) => {
        let text = ''
        for await (const chunk of answer) text += chunk
        resolve(JSON.parse(text).token)
      })
        .on('error', reject)
        .end(body)
    })
  }

  async function importImage(): Promise<void> {
    await importArchive(baseURL, apiKey, { dir, name: IMAGE })
    await daemon.images.whenReady(IMAGE, { signal: AbortSignal.timeout(60_000) })
  }

  const create = (name: string, more: Partial<Hypeman.InstanceCreateParams> = {}) =>
    client.instances.create({ name, image: IMAGE, size: '512MB', ...more })

  async function running(name: string, more: Partial<Hypeman.InstanceCreateParams> = {}): Promise<Hypeman.Instance> {
    const made = await create(name, more)
    const { state, timed_out } = await client.instances.wait(made.id, { state: 'Running', timeout: '30s' })
    assert.deepEqual([state, timed_out], ['Running', false])
    return client.instances.get(made.id)
  }

  test('health, capabilities and resources answer as it expects', async () => {
    assert.equal((await client.health.check()).status, 'ok')
    const capabilities = await client.capabilities.get()
    assert.equal(capabilities.default_runtime.name, 'fake')
    assert.ok(capabilities.features.includes('exec'))
    const resources = await client.resources.get()
    assert.ok(resources.memory.capacity > 0)
  })

  test('an instance lives its life: created, found, changed, stopped, started, deleted', async () => {
    const made = await running('life', { tags: { team: 'a', env: 'test' }, env: { A: 'b' }, vcpus: 1 })
    assert.match(made.id, /^[a-z0-9]{24}$/)
    assert.equal(made.size, '512MB')
    assert.equal(made.expires_at, null)
    assert.deepEqual(made.env, { A: 'b' })
    assert.ok(made.started_at)

    const tagged = await client.instances.list({ tags: { team: 'a', env: 'test' } })
    assert.deepEqual(
      tagged.map(({ name }) => name),
      ['life'],
    )
    assert.deepEqual(await client.instances.list({ tags: { team: 'b' } }), [])
    assert.deepEqual(await client.instances.list({ state: 'Stopped' }), [])
    for (const key of [made.id, 'life', made.id.slice(0, 12)]) assert.equal((await client.instances.get(key)).id, made.id)

    const changed = await client.instances.update('life', { ttl: '1h' })
    assert.ok(changed.expires_at && Date.parse(changed.expires_at) > Date.now())
    assert.equal((await client.instances.update('life', { ttl: '0s' })).expires_at, null)

    const stopped = await client.instances.stop('life')
    assert.equal(stopped.state, 'Stopped')
    assert.ok(stopped.stopped_at)
    assert.equal((await client.instances.stop('life')).state, 'Stopped')
    assert.ok(['Initializing', 'Running'].includes((await client.instances.start('life', {})).state))
    assert.equal((await client.instances.wait('life', { state: 'Running' })).state, 'Running')
    assert.ok((await client.instances.get('life')).phase_durations_ms)

    await client.instances.delete('life', { graceful_shutdown: false })
    await assert.rejects(client.instances.get('life'), Hypeman.NotFoundError)
  })

  test('volumes are made, filled, found, attached at create and later, detached and deleted', async () => {
    const made = await client.volumes.create({ name: 'sdk-data', size_gb: 1, id: 'sdk-volume', tags: { team: 'v' } })
    assert.deepEqual([made.id, made.name, made.size_gb, made.attachments], ['sdk-volume', 'sdk-data', 1, undefined])
    assert.ok(Date.parse(made.created_at) <= Date.now())
    await assert.rejects(client.volumes.create({ name: 'other', size_gb: 1, id: 'sdk-volume' }), Hypeman.ConflictError)
    const filled = await client.volumes.createFromArchive(gzipSync(tarOf(['dir', { name: 'dir/file', content: 'x' }])), {
      name: 'sdk-filled',
      size_gb: 1,
      tags: { team: 'f' },
    })
    assert.deepEqual(
      (await client.volumes.list({ tags: { team: 'f' } })).map(({ id }) => id),
      [filled.id],
    )
    const large = client.volumes.createFromArchive(gzipSync(tarOf([{ name: 'a', size: 2 ** 40, storedSize: 0, sparse: [] }])), {
      name: 'bomb',
      size_gb: 1,
    })
    await assert.rejects(large, (error: APIError) => error.status === 400 && (error.error as { code: string }).code === 'archive_too_large')
    const bad = client.volumes.createFromArchive(gzipSync(tarOf([{ name: '../a', content: 'x' }])), { name: 'bad', size_gb: 1 })
    await assert.rejects(bad, Hypeman.BadRequestError)

    const { id } = await running('with-volumes', {
      volumes: [
        { volume_id: 'sdk-volume', mount_path: '/data' },
        { volume_id: filled.id, mount_path: '/shared', readonly: true, overlay: true, overlay_size: '512MB' },
      ],
    })
    const { volumes } = await client.instances.get(id)
    assert.deepEqual(volumes, [
      { volume_id: 'sdk-volume', mount_path: '/data', readonly: false },
      { volume_id: filled.id, mount_path: '/shared', readonly: true, overlay: true, overlay_size: '512MB' },
    ])
    assert.deepEqual((await client.volumes.get('sdk-data')).attachments, [{ instance_id: id, mount_path: '/data', readonly: false }])
    sent = 0
    await assert.rejects(client.volumes.delete('sdk-volume'), Hypeman.ConflictError)
    await assert.rejects(create('second', { volumes: [{ volume_id: 'sdk-volume', mount_path: '/data' }] }), Hypeman.ConflictError)
    await assert.rejects(create('second', { volumes: [{ volume_id: 'absent', mount_path: '/data' }] }), Hypeman.NotFoundError)
    await assert.rejects(create('second', { volumes: [{ volume_id: filled.id, mount_path: '/proc/x' }] }), Hypeman.BadRequestError)
    // None of them is worth a repeat.
    assert.equal(sent, 4)

    assert.equal((await client.instances.volumes.detach('sdk-volume', { id })).volumes?.length, 1)
    assert.equal((await client.instances.volumes.attach('sdk-volume', { id, mount_path: '/again' })).volumes?.length, 2)
    const fork = await client.instances.fork(id, { name: 'with-copies', from_running: true })
    const copy = fork.volumes?.find(({ mount_path }) => mount_path === '/again')
    assert.equal((await client.volumes.get(copy?.volume_id ?? '')).name, 'sdk-data-with-copies')
    const { disk_breakdown } = await client.resources.get()
    assert.equal(disk_breakdown?.volumes_bytes, 3 * 2 ** 30 + 2 * 512 * 2 ** 20)
    for (const name of ['with-volumes', 'with-copies']) await client.instances.delete(name, { graceful_shutdown: false })
    for (const { id: volume } of await client.volumes.list()) await client.volumes.delete(volume)
    assert.deepEqual(await client.volumes.list(), [])
  })

  test('a token needs the scopes of volumes', async () => {
    const reader = sdk(await mint('volume:read'))
    assert.ok(Array.isArray(await reader.volumes.list()))
    await assert.rejects(reader.volumes.create({ name: 'x', size_gb: 1 }), Hypeman.PermissionDeniedError)
    await assert.rejects(reader.volumes.delete('x'), Hypeman.PermissionDeniedError)
  })

  test('a path inside can be looked at, and what the instance uses', async () => {
    const { id } = await running('looked-at')
    const file = await client.instances.stat(id, { path: '/etc/hostname' })
    assert.deepEqual([file.exists, file.is_file, file.is_dir, file.mode], [true, true, false, 0o644])
    const link = await client.instances.stat(id, { path: '/bin/sh' })
    assert.deepEqual([link.is_symlink, link.link_target], [true, '/bin/busybox'])
    assert.equal((await client.instances.stat(id, { path: '/bin/sh', follow_links: true })).is_file, true)
    assert.equal((await client.instances.stat(id, { path: '/absent' })).exists, false)
    const stats = await client.instances.stats(id)
    assert.equal(stats.instance_id, id)
    assert.equal(stats.allocated_memory_bytes, 512 * 2 ** 20)
    await client.instances.delete(id)
  })

  test('what the workload has written is read line by line, and how it ended is told', async () => {
    const { id } = await create('speaking', { cmd: ['echo', 'hello', 'there'] })
    assert.equal((await client.instances.wait(id, { state: 'Stopped', timeout: '30s' })).state, 'Stopped')
    const lines: string[] = []
    for await (const line of await client.instances.logs(id, { tail: 10 })) lines.push(line)
    assert.deepEqual(lines, ['hello there'])
    const ended = await client.instances.get(id)
    assert.deepEqual([ended.state, ended.exit_code], ['Stopped', 0])
    await client.instances.delete(id)
  })

  test('an instance sleeps and wakes, and who asks twice is answered twice', async () => {
    const { id } = await running('sleepy')
    for (let ask = 0; ask < 2; ask++) {
      const asleep = await client.instances.standby('sleepy', {})
      assert.deepEqual([asleep.id, asleep.state, asleep.has_snapshot], [id, 'Standby', true])
    }
    assert.equal((await client.instances.wait(id, { state: 'Standby', timeout: '1s' })).timed_out, false)
    const together = await Promise.all([client.instances.restore(id), client.instances.restore(id)])
    for (const { state, has_snapshot } of [...together, await client.instances.restore(id)]) {
      assert.deepEqual([state, has_snapshot], ['Running', false])
    }
    const compression = { enabled: true, algorithm: 'zstd', level: 3 } as const
    await client.instances.standby(id, { compression, compression_delay: '1h' })
    assert.equal((await client.instances.stop(id)).state, 'Stopped')
    await assert.rejects(client.instances.restore(id), Hypeman.ConflictError)
    await client.instances.delete(id)
  })

  test('an instance is forked while it runs, sleeps and is stopped', async () => {
    const source = await running('forked', { tags: { team: 'a' } })
    await assert.rejects(client.instances.fork('forked', { name: 'fork-0' }), Hypeman.ConflictError)
    const live = await client.instances.fork('forked', { name: 'fork-1', from_running: true })
    assert.deepEqual([live.state, live.image, live.tags], ['Running', source.image, source.tags])
    assert.notEqual(live.id, source.id)
    assert.equal((await client.instances.get('forked')).state, 'Running')
    await client.instances.standby('forked', {})
    assert.equal((await client.instances.fork('forked', { name: 'fork-2' })).state, 'Standby')
    assert.equal((await client.instances.fork('forked', { name: 'fork-3', target_state: 'Running' })).state, 'Running')
    await client.instances.stop('forked')
    assert.equal((await client.instances.fork('forked', { name: 'fork-4' })).state, 'Stopped')
    await assert.rejects(client.instances.fork('forked', { name: 'fork-4' }), Hypeman.ConflictError)
    for (const name of ['forked', 'fork-1', 'fork-2', 'fork-3', 'fork-4']) await client.instances.delete(name)
  })

  test('snapshots are taken, listed, gone back to, gone on from and deleted', async () => {
    const { id } = await running('kept')
    const live = await client.instances.snapshots.create(id, { kind: 'Standby', name: 'live', tags: { why: 'test' } })
    assert.deepEqual([live.name, live.kind, live.source_instance_id, live.source_instance_name], ['live', 'Standby', id, 'kept'])
    assert.ok(live.size_bytes > 0)
    assert.equal(live.source_hypervisor as string, 'fake')
    await assert.rejects(client.instances.snapshots.create(id, { kind: 'Standby', name: 'live' }), Hypeman.ConflictError)
    await assert.rejects(client.instances.snapshots.create(id, { kind: 'Stopped' }), Hypeman.ConflictError)
    await assert.rejects(client.instances.snapshots.restore(live.id, { id }), Hypeman.ConflictError)

    await client.instances.stop(id)
    const disk = await client.instances.snapshots.create(id, { kind: 'Stopped' })
    assert.equal(disk.name, null)
    assert.deepEqual(await client.snapshots.get(live.id), live)
    const ids = async (query: Hypeman.SnapshotListParams) => (await client.snapshots.list(query)).map((snapshot) => snapshot.id)
    assert.deepEqual(await ids({ source_instance_id: id }), [disk.id, live.id])
    assert.deepEqual(await ids({ kind: 'Stopped' }), [disk.id])
    assert.deepEqual(await ids({ name: 'live' }), [live.id])
    assert.deepEqual(await ids({ tags: { why: 'test' } }), [live.id])

    assert.equal((await client.instances.snapshots.restore(live.id, { id })).state, 'Running')
    await client.instances.standby(id, {})
    assert.equal((await client.instances.snapshots.restore(disk.id, { id, target_state: 'Stopped' })).state, 'Stopped')
    await client.instances.delete(id)

    const child = await client.snapshots.fork(live.id, { name: 'of-live' })
    assert.deepEqual([child.name, child.state], ['of-live', 'Running'])
    assert.equal((await client.snapshots.fork(disk.id, { name: 'of-disk' })).state, 'Stopped')
    for (const snapshot of [live, disk]) {
      await client.snapshots.delete(snapshot.id)
      await assert.rejects(client.snapshots.get(snapshot.id), Hypeman.NotFoundError)
    }
    assert.deepEqual(await client.snapshots.list(), [])
    for (const name of ['of-live', 'of-disk']) await client.instances.delete(name)
  })

  test('a snapshot schedule is set, changed, read and removed', async () => {
    const { id } = await create('scheduled')
    const { snapshotSchedule } = client.instances
    const set = await snapshotSchedule.update(id, {
      interval: '24h',
      retention: { max_count: 7, max_age: '336h' },
      metadata: { team: 'a' },
    })
    assert.deepEqual([set.instance_id, set.interval, set.retention.max_age, set.last_run_at], [id, '24h0m0s', '336h0m0s', null])
    const changed = await snapshotSchedule.update('scheduled', {
      interval: set.interval,
      retention: { max_count: 1 },
      name_prefix: 'nightly',
    })
    assert.deepEqual([changed.next_run_at, changed.name_prefix, changed.retention], [set.next_run_at, 'nightly', { max_count: 1 }])
    assert.deepEqual(await snapshotSchedule.get(id), changed)
    await snapshotSchedule.delete(id)
    await assert.rejects(snapshotSchedule.get(id), { status: 404 })
    await client.instances.delete(id)
  })

  test('an idle instance sleeps by itself, is held and restored, and tells how it stands', async () => {
    const { id } = await client.instances.create({
      name: 'idle',
      image: IMAGE,
      auto_standby: { enabled: true, idle_timeout: '1h', ignore_source_cidrs: ['10.0.0.0/8'], ignore_destination_ports: [22] },
    })
    await client.instances.wait(id, { state: 'Running' })
    const { autoStandby } = client.instances
    const counting = await autoStandby.status(id)
    assert.deepEqual([counting.status, counting.reason], ['idle_countdown', 'idle_timeout_not_elapsed'])
    assert.deepEqual([counting.supported, counting.configured, counting.enabled, counting.eligible], [true, true, true, true])
    assert.deepEqual([counting.idle_timeout, counting.active_inbound_connections, counting.hold_until], ['1h0m0s', 0, null])
    // Each is rounded to a millisecond.
    assert.ok(Math.abs(Date.parse(counting.next_standby_at ?? '') - Date.parse(counting.idle_since ?? '') - 3_600_000) <= 1)
    const held = await autoStandby.hold('idle')
    assert.equal(held.next_standby_at, held.hold_until)
    assert.ok(Date.parse(held.hold_until ?? '') > Date.now() + 3_000_000)
    const changed = await client.instances.update(id, { auto_standby: { enabled: true, idle_timeout: '300ms' } })
    assert.deepEqual(changed.auto_standby, {
      ...{ enabled: true, idle_timeout: '300ms', ignore_source_cidrs: [], ignore_destination_ports: [] },
    })
    // The hold of an hour goes with the next one, which is of the new idle time.
    await autoStandby.hold(id)
    assert.deepEqual((await client.instances.wait(id, { state: 'Standby' })).state, 'Standby')
    const before = sent
    await assert.rejects(autoStandby.hold(id), (error: APIError) => {
      assert.deepEqual([error.status, (error.error as { code?: string }).code], [409, 'instance_in_standby'])
      return true
    })
    assert.equal(sent, before + 1)
    const asleep = await autoStandby.status(id)
    assert.deepEqual([asleep.status, asleep.reason, asleep.eligible], ['ineligible', 'instance_not_running', false])
    await client.instances.update(id, { auto_standby: { enabled: false } })
    await client.instances.restore(id)
    assert.equal((await autoStandby.hold(id)).status, 'disabled')
    await client.instances.delete(id)
  })

  test('a followed log ends when the reader leaves', async () => {
    const { id } = await running('followed')
    const stream = await client.instances.logs(id, { follow: true, source: 'hypeman' })
    stream.controller.abort()
    await client.instances.delete(id)
  })

  test('files go in and come out again, byte for byte, those too that look like messages', async () => {
    const { id } = await running('copied')
    const from = join(dir, 'from')
    const to = join(dir, 'to')
    await mkdir(join(from, 'deep'), { recursive: true })
    await mkdir(to)
    const files: Record<string, Buffer> = {
      'a.txt': Buffer.from('hello\n'),
      empty: Buffer.alloc(0),
      'looks.json': Buffer.from('{"type":"end","final":true}'),
      'list.json': Buffer.from('[]'),
      'deep/large.bin': Buffer.from(Array.from({ length: 100_000 }, (_, n) => (n * 31) & 0xff)),
    }
    for (const [name, bytes] of Object.entries(files)) await writeFile(join(from, name), bytes)
    await chmod(join(from, 'a.txt'), 0o750)
    await symlink('a.txt', join(from, 'link'))

    await cpToInstance({ baseURL, apiKey }, { instanceId: id, srcPath: from, dstPath: '/tmp/box' })
    assert.equal((await client.instances.stat(id, { path: '/tmp/box/deep' })).is_dir, true)
    assert.equal((await client.instances.stat(id, { path: '/tmp/box/a.txt' })).mode, 0o750)

    await cpFromInstance({ baseURL, apiKey }, { instanceId: id, srcPath: '/tmp/box', dstPath: to })
    for (const [name, bytes] of Object.entries(files)) assert.deepEqual(await readFile(join(to, 'box', name)), bytes, name)
    assert.equal((await stat(join(to, 'box/a.txt'))).mode & 0o777, 0o750)

    await assert.rejects(cpFromInstance({ baseURL, apiKey }, { instanceId: id, srcPath: '/absent', dstPath: to }), /Copy error at .*absent/)
    await client.instances.delete(id)
  })

  test('a command runs over a WebSocket by hand, as its documentation tells', async () => {
    const { id } = await running('commanded')
    const socket = new WebSocket(`${baseURL.replace('http', 'ws')}/instances/${id}/exec`, {
      headers: { Authorization: `Bearer ${apiKey}` },
    })
    const got: string[] = []
    socket.on('message', (data) => got.push(String(data)))
    socket.on('open', () => socket.send(JSON.stringify({ command: ['echo', 'hi', 'there'], tty: false })))
    const code = await new Promise((resolve) => socket.on('close', resolve))
    assert.equal(code, 1000)
    assert.equal(got[0], 'hi there\n')
    assert.equal(JSON.parse(got.at(-1) ?? '{}').exitCode, 0)
    await client.instances.delete(id)
  })

  test('images are listed, found by their name with slashes, tagged and deleted', async () => {
    const image = await client.images.get(IMAGE)
    assert.equal(image.status, 'ready')
    assert.match(image.digest, /^sha256:[0-9a-f]{64}$/)
    const tagged = await client.images.tag(IMAGE, { target: 'docker.io/library/other:2' })
    assert.equal(tagged.digest, image.digest)
    assert.ok((await client.images.list()).length >= 2)
    await client.images.delete('docker.io/library/other:2')
    await assert.rejects(client.images.get('docker.io/library/other:2'), Hypeman.NotFoundError)
  })

  test('what will be the same next time is sent once', async () => {
    await create('taken')
    const refusals: readonly (readonly [number, string, () => Promise<unknown>])[] = [
      [409, 'name_conflict', () => create('taken')],
      [400, 'invalid_request', () => create('Not A Name')],
      [400, 'invalid_size', () => create('sized', { size: 'enormous' })],
      [404, 'not_found', () => client.instances.get('nobody')],
      [409, 'invalid_state', () => client.instances.fork('taken', { name: 'child' })],
      [501, 'not_supported', () => client.ingresses.list()],
      [404, 'not_found', () => create('volumed', { volumes: [{ volume_id: 'absent', mount_path: '/data' }] })],
      [400, 'invalid_timeout', () => client.instances.wait('taken', { state: 'Running', timeout: 'never' })],
    ]
    for (const [status, code, call] of refusals) {
      const before = sent
      await assert.rejects(call(), (error) => {
        assert.ok(error instanceof APIError, String(error))
        assert.deepEqual([error.status, (error.error as { code?: string }).code], [status, code])
        return true
      })
      assert.equal(sent - before, 1, `${code} was sent ${sent - before} times`)
    }
    await client.instances.delete('taken')
  })

  test('a wait for what cannot come is answered at once, with a reason', async () => {
    const { id } = await running('rested')
    await client.instances.stop(id)
    const answer = await client.instances.wait(id, { state: 'Running', timeout: '30s' })
    assert.deepEqual([answer.state, answer.timed_out], ['Stopped', false])
    assert.match(String((answer as { reason?: string }).reason), /\w/)
    await client.instances.delete(id)
  })

  test('a token does what its scopes allow, and no more', async () => {
    const reader = sdk(await mint('instance:read'))
    assert.ok(Array.isArray(await reader.instances.list()))
    await assert.rejects(reader.instances.create({ name: 'no', image: IMAGE }), Hypeman.PermissionDeniedError)
    await assert.rejects(reader.images.list(), Hypeman.PermissionDeniedError)
    await assert.rejects(sdk('not.a.token').instances.list(), Hypeman.AuthenticationError)
  })
})
