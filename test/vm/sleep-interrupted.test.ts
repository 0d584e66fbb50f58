/**
 * What is under way in a guest when it is put to sleep or forked: commands and copies that someone has open over the API, a guest that
 * hangs, a workload of which a part hangs in the kernel. With real VMs.
 */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { after, before, test } from 'node:test'
import { WebSocket } from 'ws'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import type { ShownInstance } from './house-in-order.ts'
import { InstanceStory } from './instance-story.ts'

let story: InstanceStory
before(async () => {
  story = await InstanceStory.begin({ driver: 'qemu-microvm' })
})
after(() => story?.[Symbol.asyncDispose]())

const within = (ms: number) => ({ signal: AbortSignal.timeout(ms) })

/** An exec or a copy over the API, as a client sees it. */
class Stream implements Disposable {
  readonly socket: WebSocket
  readonly notices: Record<string, unknown>[] = []
  readonly closed: Promise<unknown>
  bytes = 0
  readonly sum = createHash('sha256')

  private constructor(socket: WebSocket) {
    this.socket = socket
    this.closed = once(socket, 'close')
    socket.on('message', (data: Buffer, isBinary: boolean) => {
      if (!isBinary) return void this.notices.push(JSON.parse(data.toString('utf8')))
      this.bytes += data.length
      this.sum.update(data)
    })
  }

  static async open(what: 'exec' | 'cp', instance: string, first: object): Promise<Stream> {
    const stream = new Stream(new WebSocket(`ws+unix:${story.daemon.socket}:/instances/${instance}/${what}`))
    await once(stream.socket, 'open')
    stream.socket.send(JSON.stringify(first))
    return stream
  }

  [Symbol.dispose](): void {
    this.socket.terminate()
  }
}

const BIG_BYTES = 8 << 20
const half = randomBytes(30_000)
const sha256 = (...parts: Buffer[]): string => createHash('sha256').update(Buffer.concat(parts)).digest('hex')

/** A command that runs on, a file that is half there, and one of which no one has read more than the first of it. */
async function openAll(name: string): Promise<{ exec: Stream; into: Stream; outOf: Stream; bigSum: string } & Disposable> {
  const told = await story.sh(name, `head -c ${BIG_BYTES} /dev/urandom > /tmp/big; sha256sum /tmp/big`)
  const command = ['/bin/sh', '-c', 'while :; do echo tick; sleep 0.1; done # ticker']
  const exec = await Stream.open('exec', name, { command, separate_streams: true })
  const into = await Stream.open('cp', name, { direction: 'to', guest_path: '/tmp/in/file' })
  into.socket.send(half)
  const outOf = await Stream.open('cp', name, { direction: 'from', guest_path: '/tmp/big' })
  await pollUntil('the copy out to begin', () => outOf.bytes > 0, within(10_000))
  outOf.socket.pause()
  const isUnderWay = async () => exec.bytes > 0 && (await story.sh(name, 'ls -A /tmp/in 2>/dev/null || true')) !== ''
  await pollUntil('the command and the copy in to begin', isUnderWay, within(10_000))
  assert.ok(outOf.bytes < BIG_BYTES)
  const [bigSum = ''] = told.split(' ')
  const end = () => {
    for (const stream of [exec, into, outOf]) stream[Symbol.dispose]()
  }
  return { exec, into, outOf, bigSum, [Symbol.dispose]: end }
}

/** The guest has nothing of them any more. */
async function assertGone(name: string): Promise<void> {
  const left = () => story.sh(name, 'ls -A /tmp/in; ps | grep "[#] ticker" || true')
  await pollUntil(`what was open in ${name} to be gone`, async () => (await left()) === '', within(20_000))
}

test('a command and copies that are open over a nap end: each caller is told why, and no half file is left', {
  timeout: 60_000,
}, async () => {
  await story.run('a')
  using open = await openAll('a')
  await story.standby('a')
  open.outOf.socket.resume()
  await Promise.all([open.exec.closed, open.into.closed, open.outOf.closed])
  const why = 'The instance a was put into standby'
  assert.deepEqual(open.exec.notices.at(-1), { error: why, code: 'guest_unavailable' })
  assert.deepEqual(open.into.notices.at(-1), { type: 'result', success: false, error: why, code: 'guest_unavailable' })
  assert.deepEqual(open.outOf.notices.at(-1), { type: 'error', message: why, code: 'guest_unavailable', path: '/tmp/big' })
  await story.restore('a')
  await assertGone('a')
  await story.remove('a')
})

test('a command and copies of a source go on over a fork and a snapshot of it, and the fork has nothing of them', {
  timeout: 60_000,
}, async () => {
  await story.run('a')
  using open = await openAll('a')
  await story.fork('a', { name: 'b', from_running: true })
  const kept = await story.snapshot('a', { kind: 'Standby' })

  const ticked = open.exec.bytes
  await pollUntil('the command to go on', () => open.exec.bytes > ticked, within(10_000))
  assert.deepEqual(open.exec.notices, [])
  open.into.socket.send(half)
  open.into.socket.send(JSON.stringify({ type: 'end' }))
  open.outOf.socket.resume()
  await pollUntil('the copy in to end', () => open.into.notices.length > 0, within(10_000))
  assert.deepEqual(open.into.notices, [{ type: 'result', success: true, bytes_written: 2 * half.length }])
  assert.equal((await story.sh('a', 'sha256sum /tmp/in/file')).split(' ')[0], sha256(half, half))
  await pollUntil('the copy out to end', () => open.outOf.notices.at(-1)?.final === true, within(30_000))
  assert.deepEqual([open.outOf.bytes, open.outOf.sum.digest('hex')], [BIG_BYTES, open.bigSum])

  await assertGone('b')
  await story.daemon.client.delete(`/snapshots/${kept.id}`)
  await story.remove('a', 'b')
})

test('a workload of which a part hangs in the kernel sleeps, wakes and is forked with it', { timeout: 60_000 }, async () => {
  const a = await story.run('a')
  // Its disk takes no writes for a while: whoever tries hangs where no signal reaches it, and no freezer either.
  const disk = 'for d in /sys/block/vd*; do grep -q overlay $d/serial && echo /dev/$(basename $d); done'
  await story.sh('a', `mkdir -p /disk && mount -t ext4 $(${disk}) /disk && fsfreeze --freeze /disk`)
  const stuck = 'ps -o stat,args | grep -c "^D.*[s]tuck" || true'
  await story.sh('a', '(sh -c "echo it was written > /root/stuck" >/dev/null 2>&1 &)')
  await pollUntil('a process to hang', async () => (await story.sh('a', stuck)) === '1', within(10_000))
  const before = await story.look(a)
  await story.standby('a')
  await story.restore('a')
  const b = await story.fork('a', { name: 'b', from_running: true })
  for (const one of [a, b]) {
    const now = await story.look(one)
    assert.deepEqual([now.boot, now.born], [before.boot, before.born])
    assert.ok(now.count >= before.count)
    await story.sh(one.name, 'fsfreeze --unfreeze /disk')
    const isWritten = async () => (await story.sh(one.name, 'cat /root/stuck 2>/dev/null || true')) === 'it was written'
    await pollUntil('the process to go on', isWritten, within(10_000))
  }
  await story.remove('a', 'b')
})

/** Of its processor's time: more than a refused fork, a nap and the patience of a restore take of it. */
const HANGS_MS = 20_000

test('a guest that hangs cannot be forked, is put to sleep all the same, and is Running once it answers', {
  timeout: 120_000,
}, async () => {
  const a = await story.run('a')
  const before = await story.look(a)
  await story.restartDaemon('stop', { DORMOUSE_BOOT_LIMIT: '3s' })
  assert.equal(await story.ask(a, `hog ${HANGS_MS}`), 'hogging')

  const forked = await story.daemon.client.call<{ code: string; hint: string }>('POST', '/instances/a/fork', {
    name: 'b',
    from_running: true,
  })
  assert.deepEqual([forked.status, forked.body.code], [503, 'guest_unavailable'])
  assert.match(forked.body.hint, /standby/)
  assert.equal((await story.standby('a')).state, 'Standby')
  await story.assertInOrder()
  // A copy of it would run under its name before it could be told another.
  const copied = await story.daemon.client.call<{ code: string; hint: string }>('POST', '/instances/a/fork', { name: 'b' })
  assert.deepEqual([copied.status, copied.body.code], [503, 'guest_unavailable'])
  assert.match(copied.body.hint, /Restore it/)

  const woken = await story.daemon.client.call<{ code: string }>('POST', '/instances/a/restore', {})
  assert.deepEqual([woken.status, woken.body.code], [503, 'guest_unavailable'])
  const { state, state_error, operation } = await story.daemon.client.get<ShownInstance & { state_error: string }>('/instances/a')
  assert.deepEqual([state, operation], ['Unknown', 'restore'])
  assert.match(state_error, /does not answer/)
  const isBack = async () => (await story.get('a')).state === 'Running'
  await pollUntil('it to answer', isBack, within(60_000))
  const now = await story.look(a)
  assert.deepEqual([now.boot, now.born, now.held], [before.boot, before.born, before.held])
  assert.equal((await story.get('a')).operation, undefined)
  await story.remove('a')
  await story.assertInOrder()
})
