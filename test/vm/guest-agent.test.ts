/** What the agent does beside the program, for a daemon that may be slow, many, or dead in the middle of a word. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { after, before, test } from 'node:test'
import { FieldWriter } from '../../packages/daemon/src/guest/fields.ts'
import { encodeFrame } from '../../packages/daemon/src/guest/frames.ts'
import { type CopyEntry, GuestClient } from '../../packages/daemon/src/guest/guest-client.ts'
import { FRAME, OP, TAG } from '../../packages/daemon/src/guest/wire.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { makeStep } from '../harness/qemu-driver.ts'
import { type Guest, type GuestHouse, guestHouse, textOf } from './guest-story.ts'

let house: GuestHouse
let guest: Guest
before(async () => {
  house = await guestHouse('qemu-microvm')
  guest = await house.running()
})
after(async () => {
  await guest?.[Symbol.asyncDispose]()
  await house[Symbol.asyncDispose]()
})

const reconnect = async () => {
  guest.client = await GuestClient.connect(await guest.vm.connectGuest(makeStep()), makeStep())
}

test('stdout and stderr come apart, with the code and the words of the end', async () => {
  const told = await guest.run('echo out; echo err >&2; exit 5')
  assert.deepEqual(told, { code: 5, message: 'exited with code 5', stdout: 'out\n', stderr: 'err\n' })
})

test('stdin ends when it is ended', async () => {
  const { stdout } = await guest.run(['sha256sum'], { input: 'x'.repeat(300_000) })
  assert.equal(stdout.split(' ')[0], createHash('sha256').update('x'.repeat(300_000)).digest('hex'))
})

test('environment, directory and user are the workload’s unless they are given', async () => {
  const { stdout } = await guest.run('echo $COLOUR $EXTRA $HOME; pwd; id -u; id -G', {
    env: { EXTRA: 'more', COLOUR: 'red' },
    cwd: '/tmp',
    user: 'alice:audio',
  })
  assert.equal(stdout, 'red more /home/alice\n/tmp\n1000\n29\n')
  const plain = await guest.run('echo $COLOUR; pwd; id -u')
  assert.equal(plain.stdout, 'blue\n/\n0\n')
  assert.equal((await guest.run('true', { cwd: '/nowhere' })).code, 126)
})

test('a program that is not there has code 127, one that may not be run 126', async () => {
  assert.deepEqual(await guest.run(['nosuch']), { code: 127, message: 'command not found: nosuch', stdout: '', stderr: '' })
  assert.equal((await guest.run(['/etc/passwd'])).code, 126)
})

test('a terminal is one: it has a size that changes, echoes, and turns ^C into a signal', async () => {
  const exec = await guest.client.exec(
    {
      command: ['sh', '-c', 'tty; stty size; trap "stty size; exit 9" INT; echo ready; while :; do sleep 0.1; done'],
      tty: true,
      rows: 30,
      cols: 100,
    },
    makeStep(),
  )
  let seen = ''
  exec.stdout.on('data', (chunk: Buffer) => {
    seen += chunk
  })
  await pollUntil('the terminal to be ready', async () => (seen.includes('ready') ? true : undefined), makeStep(), { everyMs: 10 })
  assert.match(seen, /\/dev\/pts\/\d+\r\n30 100\r\n/)
  exec.resize(50, 120)
  exec.stdin.write('\u0003')
  assert.equal((await exec.exit).code, 9)
  // The line discipline sends the signal before it echoes: the trap's answer may come first.
  const after = seen.slice(seen.indexOf('ready'))
  assert.match(after, /\^C/)
  assert.match(after, /50 120/)
})

test('a terminal’s input ends as a typed ^D ends it', async () => {
  const exec = await guest.client.exec({ command: ['cat'], tty: true }, makeStep())
  exec.stdin.end('line\n')
  assert.match(await textOf(exec.stdout), /line\r\nline\r\n/)
  assert.equal((await exec.exit).code, 0)
})

test('a signal reaches the program and its foreground children, a kill all it has started', async () => {
  const exec = await guest.client.exec({ command: ['sh', '-c', 'sleep 1000 & sleep 1001'] }, makeStep())
  exec.signal('SIGTERM')
  assert.deepEqual(await exec.exit, { code: 143, message: 'killed by signal 15 (SIGTERM)' })
  const stubborn = await guest.client.exec({ command: ['sh', '-c', 'trap "" TERM HUP; setsid sleep 2001 & sleep 2000'] }, makeStep())
  stubborn.kill()
  assert.equal((await stubborn.exit).code, 137)
  assert.equal((await guest.run('ps | grep "sleep 200[01]" | grep -vc grep')).stdout, '0\n')
})

test('a program that takes too long ends with 124', async () => {
  const { code, message } = await guest.run('sleep 1000', { timeoutMs: 200 })
  assert.deepEqual({ code, message }, { code: 124, message: 'timed out' })
})

test('what a program leaves running in the background does not hold its stream', async () => {
  const { code, stdout } = await guest.run('sleep 3000 & echo started')
  assert.deepEqual({ code, stdout }, { code: 0, stdout: 'started\n' })
  assert.equal((await guest.run('pidof sleep >/dev/null && ps | grep "sleep 3000" | grep -vc grep')).stdout, '1\n')
  await guest.run('pkill -f "sleep 3000"')
})

test('twenty streams at once are whole, while one reader stands still', async () => {
  const stalled = await guest.client.exec({ command: ['sh', '-c', 'yes | head -c 2000000'] }, makeStep())
  const size = 100_000
  const told = await Promise.all(Array.from({ length: 20 }, (_, i) => guest.run(`yes ${i} | head -c ${size}; echo err${i} >&2`)))
  for (const [i, { stdout, stderr }] of told.entries()) {
    assert.equal(stdout.length, size)
    assert.ok(stdout.startsWith(`${i}\n${i}\n`))
    assert.equal(stderr, `err${i}\n`)
  }
  assert.ok(stalled.stdout.readableLength <= 256 << 10)
  assert.equal((await textOf(stalled.stdout)).length, 2_000_000)
  assert.equal((await stalled.exit).code, 0)
})

test('stat tells of files, directories and links, and of what is not there', async () => {
  await guest.run('mkdir -p /tmp/d && ln -sf d /tmp/l && ln -sf nowhere /tmp/broken && printf 12345 > /tmp/f && chmod 4750 /tmp/f')
  const stat = (path: string, followLinks = false) => guest.client.stat(path, { followLinks }, makeStep())
  const { mode, size, ...file } = await stat('/tmp/f')
  assert.deepEqual({ mode, size }, { mode: 0o4750, size: 5 })
  assert.deepEqual(file, { exists: true, is_file: true, is_dir: false, is_symlink: false, link_target: '' })
  assert.deepEqual(
    [(await stat('/tmp/l')).is_symlink, (await stat('/tmp/l')).link_target, (await stat('/tmp/l', true)).is_dir],
    [true, 'd', true],
  )
  assert.deepEqual(
    [(await stat('/tmp/broken')).exists, (await stat('/tmp/broken', true)).exists, (await stat('/nowhere/x')).exists],
    [true, false, false],
  )
  assert.equal((await stat('/etc/passwd/x')).exists, false)
})

test('files and trees go in and out as they are', async () => {
  const bytes = randomBytes(2_000_000)
  const source = async function* () {
    for (let at = 0; at < bytes.length; at += 70_000) yield bytes.subarray(at, at + 70_000)
  }
  const none = async function* () {}
  const { client } = guest
  assert.deepEqual(await client.copyTo({ path: '/tree/sub', isDir: true, mode: 0o2775, uid: 1000, gid: 27 }, none(), makeStep()), {
    bytesWritten: 0,
  })
  await client.copyTo({ path: '/tree/sub/tool', mode: 0o4755, uid: 1000, gid: 27, mtime: 1_000_000_000 }, source(), makeStep())
  await client.copyTo({ path: '/tree/link', linkTarget: 'sub/tool' }, none(), makeStep())
  const { stdout } = await guest.run(
    'stat -c "%a %u:%g %s %Y" /tree/sub/tool; stat -c "%a %u:%g" /tree/sub; readlink /tree/link; sha256sum < /tree/sub/tool; ls -A /tree/sub',
  )
  const sum = createHash('sha256').update(bytes).digest('hex')
  assert.equal(stdout, `4755 1000:27 2000000 1000000000\n2775 1000:27\nsub/tool\n${sum}  -\ntool\n`)
  await assert.rejects(client.copyTo({ path: '/tree/sub' }, source(), makeStep()), { code: 'invalid_path' })
  await assert.rejects(client.copyTo({ path: '/tree/sub/tool', isDir: true }, none(), makeStep()), { code: 'invalid_path' })
  await assert.rejects(client.copyTo({ path: '/etc/hosts' }, source(), makeStep()), { code: 'conflict' })

  await guest.run('mkfifo /tree/fifo; ln -s /tree /tree/loop')
  const entries = await Array.fromAsync(client.copyFrom('/tree', { followLinks: false }, makeStep()))
  const headers = new Map(entries.flatMap((entry) => (entry.kind === 'header' ? [[entry.path, entry] as const] : [])))
  assert.deepEqual([...headers.keys()].sort(), ['tree', 'tree/link', 'tree/loop', 'tree/sub', 'tree/sub/tool'])
  assert.equal(headers.get('tree/link')?.linkTarget, 'sub/tool')
  const { mode, uid, gid, size, mtime } = headers.get('tree/sub/tool') ?? assert.fail()
  assert.deepEqual({ mode, uid, gid, size, mtime }, { mode: 0o4755, uid: 1000, gid: 27, size: 2_000_000, mtime: 1_000_000_000 })
  assert.deepEqual(bytesOf(entries), bytes)

  const followed = await Array.fromAsync(client.copyFrom('/tree/link', { followLinks: true }, makeStep()))
  assert.deepEqual(bytesOf(followed), bytes)
  await assert.rejects(Array.fromAsync(client.copyFrom('/tree', { followLinks: true }, makeStep())), /Symbolic link loop/)
  await assert.rejects(Array.fromAsync(client.copyFrom('/nowhere', { followLinks: false }, makeStep())), { code: 'path_not_found' })
})

const bytesOf = (entries: readonly CopyEntry[]) => Buffer.concat(entries.flatMap((entry) => (entry.kind === 'data' ? [entry.bytes] : [])))

test('a copy that breaks off leaves nothing behind', async () => {
  const broken = async function* () {
    yield Buffer.alloc(100_000)
    throw new Error('the source broke')
  }
  await assert.rejects(guest.client.copyTo({ path: '/broken/file' }, broken(), makeStep()))
  const look = async () => ((await guest.run('ls -A /broken')).stdout === '' ? true : undefined)
  await pollUntil('the draft to be gone', look, makeStep(), { everyMs: 50 })
})

test('a daemon that dies in the middle of a frame is followed by one that is understood', async () => {
  const { bootNonce } = guest.client
  await guest.client[Symbol.asyncDispose]()
  const request = encodeFrame(
    FRAME.REQUEST,
    0,
    1,
    new FieldWriter()
      .number(TAG.OP, OP.STAT)
      .text(TAG.PATH, `/${'x'.repeat(3000)}`)
      .finish(),
  )
  for (const cut of [1, 9, 500, request.length - 1]) {
    const stream = await guest.vm.connectGuest(makeStep())
    stream.write(request.subarray(0, cut))
    await new Promise<void>((resolve) => stream.end(() => resolve()))
    stream.destroy()
    await once(stream, 'close')
    await reconnect()
    assert.equal(guest.client.hello.phase, 'running')
    assert.equal(guest.client.bootNonce, bootNonce)
    assert.equal((await guest.run('echo here')).stdout, 'here\n')
    await guest.client[Symbol.asyncDispose]()
  }
  await reconnect()
})

test('a daemon that dies while much is on its way takes its programs with it, and the next one starts clean', async () => {
  const noisy = await guest.client.exec({ command: ['sh', '-c', 'yes loud-one'] }, makeStep())
  await guest.client.exec({ command: ['sh', '-c', 'trap "" HUP; sleep 4000'] }, makeStep())
  await once(noisy.stdout, 'readable')
  await guest.client[Symbol.asyncDispose]()
  await reconnect()
  const left = async () => ((await guest.run('ps | grep -E "loud-one|sleep 4000" | grep -vc grep')).stdout === '0\n' ? true : undefined)
  await pollUntil('the old programs to be gone', left, makeStep(), { everyMs: 200 })
})

test('what listens in the guest is reached through its agent, each direction to its own end', async () => {
  await guest.client.exec({ command: ['nc', '-ll', '-p', '4321', '-e', 'cat'] }, makeStep())
  const dial = (address?: string) => guest.client.dial({ port: 4321, ...(address !== undefined && { address }) }, makeStep())
  await pollUntil('it to listen', () => dial().catch(() => undefined), makeStep(), { everyMs: 100 }).then((first) => first.destroy())
  // More than any window, so that credit has to come and go; and the answer ends because the question has.
  const sent = randomBytes(300_000)
  for (const address of [undefined, '10.0.2.15']) {
    const connection = await dial(address)
    connection.end(sent)
    const heard: Buffer[] = []
    for await (const chunk of connection) heard.push(chunk as Buffer)
    assert.ok(Buffer.concat(heard).equals(sent), `over ${address ?? 'the loopback'}`)
  }
})

test('a call is refused where nothing listens, ends with whoever hangs up, and is not taken for a frozen workload', async () => {
  await assert.rejects(guest.client.dial({ port: 4322 }, makeStep()), /Connection refused/)
  await assert.rejects(guest.client.dial({ port: 4321, address: '192.0.2.1', timeoutMs: 1 }, makeStep()))
  await guest.client.exec({ command: ['nc', '-l', '-p', '4323', '-e', 'yes'] }, makeStep())
  const open = () => guest.client.dial({ port: 4323 }, makeStep()).catch(() => undefined)
  const connection = await pollUntil('it to listen', open, makeStep(), { everyMs: 100 })
  await once(connection, 'readable')
  connection.destroy()
  const left = async () => ((await guest.run('pidof yes || echo none')).stdout === 'none\n' ? true : undefined)
  await pollUntil('who spoke to be gone', left, makeStep(), { everyMs: 200 })
  await guest.client.freeze({}, makeStep())
  await assert.rejects(guest.client.dial({ port: 4321 }, makeStep()), { code: 'conflict' })
  await guest.client.thaw(makeStep())
})
