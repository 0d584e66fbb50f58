/** Volumes under real VMs: what was written is there, wherever its instance goes and whatever becomes of it. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, afterEach, before, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { dormouse } from '../harness/dormouse-command.ts'
import type { ShownInstance } from './house-in-order.ts'
import { InstanceStory } from './instance-story.ts'

interface ShownVolume {
  readonly id: string
  readonly name: string
  readonly size_gb: number
  readonly attachments?: readonly { readonly instance_id: string; readonly mount_path: string; readonly readonly: boolean }[]
}

let story: InstanceStory
before(async () => {
  story = await InstanceStory.begin({
    driver: 'qemu',
    env: { DORMOUSE_CPU_RATIO: '32', DORMOUSE_MEMORY_RATIO: '4' },
  })
})
after(() => story?.[Symbol.asyncDispose]())
// What a test that failed has left would make the others fail too.
afterEach(async () => {
  for (const { name } of await story.daemon.client.get<ShownInstance[]>('/instances')) await story.remove(name)
  for (const { id } of await story.daemon.client.get<ShownVolume[]>('/volumes')) await drop(id)
})

const BOARDS = ['qemu', 'qemu-microvm'] as const

const make = (name: string): Promise<ShownVolume> => story.daemon.client.post('/volumes', { name, size_gb: 1 })
const get = (name: string): Promise<ShownVolume> => story.daemon.client.get(`/volumes/${name}`)
const drop = (...names: string[]): Promise<unknown> => Promise.all(names.map((name) => story.daemon.client.delete(`/volumes/${name}`)))
const mount = (volume: string, path: string, more: object = {}) => ({ volume_id: volume, mount_path: path, ...more })
const attach = (instance: string, volume: string, path: string, more: object = {}): Promise<ShownInstance> =>
  story.daemon.client.post(`/instances/${instance}/volumes/${volume}`, { mount_path: path, ...more })
const detach = (instance: string, volume: string): Promise<unknown> =>
  story.daemon.client.delete(`/instances/${instance}/volumes/${volume}`)

/** Writes 4 MiB of chance and gives their checksum. */
const fill = (name: string, file: string): Promise<string> =>
  story.sh(name, `dd if=/dev/urandom of=${file} bs=64k count=64 2>/dev/null && sync && sha256sum < ${file}`)
const sum = (name: string, file: string): Promise<string> => story.sh(name, `sha256sum < ${file}`)

for (const board of BOARDS) {
  test(`on ${board} what is on a volume outlives naps, stops, the VMM's death and the instance`, async () => {
    await make('data')
    const instance = await story.run('web', { hypervisor: board, volumes: [mount('data', '/data')] })
    assert.match(await story.sh('web', 'grep " /data " /proc/mounts'), /^\/dev\/vd\w \/data ext4 rw/)
    const sums = [await fill('web', '/data/one')]
    await story.standby('web')
    await story.restore('web')
    assert.equal(await sum('web', '/data/one'), sums[0])
    sums.push(await fill('web', '/data/two'))
    await story.daemon.client.post('/instances/web/stop', {})
    await story.daemon.client.post('/instances/web/start?wait=running', {})
    assert.deepEqual([await sum('web', '/data/one'), await sum('web', '/data/two')], sums)
    sums.push(await fill('web', '/data/three'))
    process.kill(await story.vmmOf(instance), 'SIGKILL')
    await story.daemon.client.get('/instances/web/wait?state=Stopped')
    await story.restartDaemon('kill')
    await story.daemon.client.post('/instances/web/start?wait=running', {})
    for (const [index, file] of ['one', 'two', 'three'].entries()) assert.equal(await sum('web', `/data/${file}`), sums[index], file)
    await story.remove('web')
    await story.run('next', { hypervisor: board, volumes: [mount('data', '/elsewhere', { readonly: true })] })
    assert.equal(await sum('next', '/elsewhere/three'), sums[2])
    assert.match(await story.sh('next', 'touch /elsewhere/x 2>&1 || true'), /Read-only/)
    await story.assertInOrder()
    await story.remove('next')
    await drop('data')
    await story.assertInOrder()
  })

  test(`on ${board} a volume comes and goes while its instance runs`, async () => {
    await make('data')
    await story.run('web', { hypervisor: board })
    await story.sh('web', 'cat /proc/uptime > /tmp/before')
    await attach('web', 'data', '/srv/data')
    const written = await fill('web', '/srv/data/file')
    assert.equal((await get('data')).attachments?.[0]?.mount_path, '/srv/data')
    await story.sh('web', '(cd /srv/data && exec sleep 1000) >/dev/null 2>&1 & echo $! > /tmp/pid')
    const busy = await story.refused('DELETE', '/instances/web/volumes/data')
    assert.equal(busy.code, 'in_use')
    assert.match(busy.message, /\/srv\/data is in use by .*sleep/)
    assert.equal(await sum('web', '/srv/data/file'), written)
    await story.sh('web', 'kill $(cat /tmp/pid)')
    await detach('web', 'data')
    assert.equal(await story.sh('web', 'ls /srv/data; grep -c /srv/data /proc/mounts || true'), '0')
    await attach('web', 'data', '/again', { readonly: true })
    assert.equal(await sum('web', '/again/file'), written)
    await story.standby('web')
    await story.restore('web')
    assert.equal(await sum('web', '/again/file'), written)
    await detach('web', 'data')
    await attach('web', 'data', '/srv/data')
    // It has run on all the while, and has what came when it boots anew.
    await story.sh('web', 'test -f /tmp/before')
    await story.daemon.client.post('/instances/web/stop', {})
    await story.daemon.client.post('/instances/web/start?wait=running', {})
    assert.equal(await sum('web', '/srv/data/file'), written)
    await story.assertInOrder()
    await story.remove('web')
    await drop('data')
  })
}

test('a fork has the moment’s data; source and fork go on apart', async () => {
  await make('data')
  await story.run('web', { volumes: [mount('data', '/data')] })
  const first = await fill('web', '/data/file')
  // Not synced: it is in the guest's memory, which the fork has too.
  await story.sh('web', 'echo unsynced > /data/late')
  await story.fork('web', { name: 'copy', from_running: true })
  assert.deepEqual([await sum('copy', '/data/file'), await story.sh('copy', 'cat /data/late')], [first, 'unsynced'])
  const [ofSource, ofCopy] = [await fill('web', '/data/file'), await fill('copy', '/data/file')]
  assert.notEqual(ofSource, ofCopy)
  for (const [name, expected] of [
    ['web', ofSource],
    ['copy', ofCopy],
  ] as const) {
    await story.daemon.client.post(`/instances/${name}/stop`, {})
    await story.daemon.client.post(`/instances/${name}/start?wait=running`, {})
    assert.deepEqual([await sum(name, '/data/file'), await story.sh(name, 'cat /data/late')], [expected, 'unsynced'])
  }
  const copied = await get('data-copy')
  assert.deepEqual([copied.size_gb, copied.attachments?.length], [1, 1])
  await story.assertInOrder()
  await story.remove('web', 'copy')
  await drop('data', 'data-copy')
  await story.assertInOrder()
})

test('a volume goes back to a snapshot with the memory that knows it', async () => {
  await make('data')
  await story.run('web', { volumes: [mount('data', '/data')] })
  const first = await fill('web', '/data/file')
  await story.sh('web', 'echo unsynced > /data/late')
  const kept = await story.snapshot('web', { kind: 'Standby' })
  await fill('web', '/data/file')
  await story.sh('web', 'rm /data/late; echo new > /data/new; sync')
  await story.stop('web')
  await story.restoreSnapshot('web', kept, 'Running')
  assert.deepEqual(
    [await sum('web', '/data/file'), await story.sh('web', 'cat /data/late; ls /data/new 2>/dev/null || true')],
    [first, 'unsynced'],
  )
  // It can be written, and is whole on its disk.
  const last = await fill('web', '/data/file')
  await story.daemon.client.post('/instances/web/stop', {})
  await story.daemon.client.post('/instances/web/start?wait=running', {})
  assert.equal(await sum('web', '/data/file'), last)
  const fork = await story.forkSnapshot(kept, 'copy')
  assert.equal(await sum(fork.name, '/data/file'), first)
  await story.remove('web', 'copy')
  await story.daemon.client.delete(`/snapshots/${kept.id}`)
  await drop('data', 'data-copy')
  await story.assertInOrder()
})

test('two who share a volume write into overlays of their own', async () => {
  await make('data')
  await story.run('web', { volumes: [mount('data', '/data')] })
  const shared = await fill('web', '/data/file')
  // Its journal is left open.
  process.kill(await story.vmmOf(await story.get('web')), 'SIGKILL')
  await story.daemon.client.get('/instances/web/wait?state=Stopped')
  await story.remove('web')
  const overlay = { readonly: true, overlay: true, overlay_size: '64MB' }
  await story.run('one', { volumes: [mount('data', '/data', overlay)] })
  await story.run('two', { volumes: [mount('data', '/data', overlay)] })
  await story.run('reader', { volumes: [mount('data', '/data', { readonly: true })] })
  await story.sh('one', 'echo one > /data/own; echo one >> /data/file; sync')
  await story.sh('two', 'echo two > /data/own; sync')
  assert.equal(await sum('reader', '/data/file'), shared)
  assert.equal(await sum('two', '/data/file'), shared)
  // As much as was asked for, and then it is full like any disk.
  assert.match(await story.sh('two', 'dd if=/dev/urandom of=/data/much bs=1M count=100 2>&1; true'), /No space left/)
  const much = Number(await story.sh('two', 'sync; stat -c %s /data/much'))
  assert.ok(much > 50 * 2 ** 20 && much <= 64 * 2 ** 20, `${much} bytes`)
  assert.equal(await sum('two', '/data/file'), shared)
  await story.standby('two')
  await story.restore('two')
  await story.fork('two', { name: 'three', from_running: true })
  assert.match(
    await story.sh('three', 'echo more > /data/more 2>&1; dd if=/dev/zero of=/data/more bs=1M count=20 2>&1; true'),
    /No space left/,
  )
  await story.sh('three', 'rm /data/much && dd if=/dev/urandom of=/data/again bs=1M count=40 2>/dev/null && sync')
  assert.equal(await sum('three', '/data/file'), shared)
  assert.deepEqual([await story.sh('one', 'cat /data/own'), await story.sh('two', 'cat /data/own')], ['one', 'two'])
  await story.daemon.client.post('/instances/one/stop', {})
  await story.daemon.client.post('/instances/one/start?wait=running', {})
  assert.equal(await story.sh('one', 'cat /data/own'), 'one')
  await story.remove('one', 'two', 'three', 'reader')
  await story.run('web', { volumes: [mount('data', '/data')] })
  assert.deepEqual([await sum('web', '/data/file'), await story.sh('web', 'ls /data/own 2>/dev/null || true')], [shared, ''])
  await story.assertInOrder()
  await story.remove('web')
  await drop('data')
})

test('layers that pile up below volumes are taken together while the guest runs', async () => {
  await make('data')
  await make('shared')
  const overlay = mount('shared', '/over', { readonly: true, overlay: true, overlay_size: '256MB' })
  await story.run('web', { volumes: [mount('data', '/data'), overlay] })
  const sums = new Map<string, string>()
  for (let round = 0; round < 10; round++) {
    for (const dir of ['/data', '/over']) sums.set(`${dir}/${round}`, await fill('web', `${dir}/${round}`))
    const { id } = await story.snapshot('web', { kind: 'Standby' })
    if (round !== 4) await story.daemon.client.delete(`/snapshots/${id}`)
  }
  const agree = async (): Promise<void> => {
    for (const [file, expected] of sums) assert.equal(await sum('web', file), expected, file)
  }
  await story.sh('web', 'sync; echo 3 > /proc/sys/vm/drop_caches')
  await agree()
  await story.assertInOrder()
  await story.standby('web')
  await story.restore('web')
  await agree()
  await story.daemon.client.post('/instances/web/stop', {})
  await story.daemon.client.post('/instances/web/start?wait=running', {})
  await agree()
  await detach('web', 'shared')
  const [kept] = await story.daemon.client.get<{ id: string }[]>('/snapshots')
  const fork = await story.forkSnapshot({ id: kept?.id ?? '' } as never, 'copy')
  assert.equal(await sum(fork.name, '/over/4'), sums.get('/over/4'))
  await story.remove('web', 'copy')
  await story.daemon.client.delete(`/snapshots/${kept?.id}`)
  await drop('data', 'data-copy', 'shared')
  await story.assertInOrder()
})

test('what is in an archive is on its volume, and the CLI does all of it', async () => {
  const socket = story.daemon.socket
  const cli = async (...argv: string[]): Promise<string> => {
    const { code, stdout, stderr } = await dormouse(argv, { socket })
    assert.equal(code, 0, stderr)
    return stdout.trim()
  }
  const content = randomBytes(300_000)
  const archive = join(story.dir, 'archive.tgz')
  const entries = [
    'dir',
    { name: 'dir/file', content, mode: 0o4751, uid: 1_234_567, gid: 70_000, mtime: 1_000_000_000 },
    { name: 'dir/hard', kind: 'link' as const, linkName: 'dir/file' },
    { name: 'dir/link', kind: 'symlink' as const, linkName: '../away' },
    ...Array.from({ length: 2000 }, (_, index) => ({ name: `many/${index}`, content: `${index}` })),
  ]
  await writeFile(archive, gzipSync(tarOf(entries)))
  await cli('volume', 'import', archive, 'filled', '--size', '1g', '--tag', 'kind=archive')
  assert.match(await cli('volume', 'ls', '--tag', 'kind=archive'), /filled .* 1GB/)
  await cli('run', '-d', '--name', 'web', '-v', 'filled:/in:ro', 'box')
  assert.equal(await story.sh('web', "stat -c '%a %u %g %s %h %Y' /in/dir/file"), '4751 1234567 70000 300000 2 1000000000')
  assert.equal(await story.sh('web', 'sha256sum < /in/dir/hard'), `${createHash('sha256').update(content).digest('hex')}  -`)
  assert.equal(await story.sh('web', 'readlink /in/dir/link; ls /in/many | wc -l; cat /in/many/1999'), '../away\n2000\n1999')
  assert.match(await cli('volume', 'ls'), /web:\/in:ro/)
  await cli('volume', 'create', 'empty', '--size', '1g', '--id', 'by-hand')
  await cli('volume', 'attach', 'web', 'empty:/out')
  await story.sh('web', 'cp -a /in/. /out/ && sync')
  await cli('volume', 'grow', 'by-hand', '2g')
  assert.equal(JSON.parse(await cli('volume', 'inspect', 'empty')).size_gb, 2)
  await cli('volume', 'detach', 'web', 'empty')
  await cli('volume', 'attach', 'web', 'empty:/out:overlay=100m')
  assert.equal(await story.sh('web', 'sha256sum < /out/dir/file'), `${createHash('sha256').update(content).digest('hex')}  -`)
  await cli('rm', '-f', 'web')
  assert.deepEqual((await cli('volume', 'rm', 'filled', 'empty')).split('\n'), ['filled', 'empty'])
  await story.assertInOrder()
})

for (const board of BOARDS) {
  test(`on ${board} a volume grows under the guest that writes to it`, async () => {
    await make('data')
    await story.run('web', { hypervisor: board, volumes: [mount('data', '/data')] })
    const written = await fill('web', '/data/file')
    const mib = async () => Number(await story.sh('web', "df -m /data | tail -1 | awk '{print $2}'"))
    const before = await mib()
    await story.daemon.client.patch('/volumes/data', { size_gb: 2 })
    assert.ok((await mib()) > before + 900, 'while it runs')
    await story.daemon.client.post('/instances/web/stop', {})
    // Further than the room that mkfs left for growing.
    await story.daemon.client.patch('/volumes/data', { size_gb: 40 })
    await story.daemon.client.post('/instances/web/start?wait=running', {})
    assert.ok((await mib()) > 38 * 1024, 'at the next mount')
    assert.equal(await sum('web', '/data/file'), written)
    await story.remove('web')
    await drop('data')
  })
}
