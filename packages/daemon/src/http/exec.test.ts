import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import { decodeOutput, type ExecStart, STDIN_FRAME_COST } from '@dormouse/api/streams.ts'
import WebSocket from 'ws'
import { type FakeExec, type FakeUses, fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

interface Line {
  readonly socket: WebSocket
  /** Everything that came until the close, and the close's code. */
  readonly all: Promise<{ frames: (string | Buffer)[]; code: number }>
  frame(): Promise<string | Buffer>
}

async function house(t: TestContext): Promise<{
  uses: FakeUses
  server: HttpServer
  dial(path?: string, headers?: object): Line
  run(what: (exec: FakeExec) => void): void
  settled(figure: () => number): Promise<number>
}> {
  const uses = fakeUses()
  uses.instances.add({ name: 'web' })
  uses.instances.add({ name: 'asleep', state: 'Stopped' })
  const server = new HttpServer(uses)
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(async () => {
    await server.close()
    rmSync(dir, { recursive: true, force: true })
  })
  const socketPath = join(dir, 's')
  const { tcp } = await server.listen({ socket: { path: socketPath, mode: 0o600 }, tcp: { host: '127.0.0.1', port: 0 } })
  return {
    uses,
    server,
    settled: (figure) => settled(figure, async () => void (await (await fetch(`http://127.0.0.1:${tcp?.port}/health`)).arrayBuffer())),
    run: (what) => {
      uses.instances.oneGuest.run = what
    },
    dial: (path = '/instances/web/exec', headers) =>
      lineOf(
        headers
          ? new WebSocket(`ws://127.0.0.1:${tcp?.port}${path}`, { headers: headers as Record<string, string> })
          : new WebSocket(`ws+unix:${socketPath}:${path}`),
      ),
  }
}

function lineOf(socket: WebSocket): Line {
  const frames: (string | Buffer)[] = []
  const waiting: ((frame: string | Buffer) => void)[] = []
  const unread: (string | Buffer)[] = []
  socket.on('message', (data: Buffer, isBinary) => {
    const frame = isBinary ? data : data.toString()
    frames.push(frame)
    const next = waiting.shift()
    if (next) next(frame)
    else unread.push(frame)
  })
  const all = new Promise<{ frames: (string | Buffer)[]; code: number }>((resolve, reject) => {
    socket.on('close', (code) => resolve({ frames, code }))
    socket.on('error', reject)
  })
  all.catch(() => undefined)
  return {
    socket,
    all,
    frame: () => new Promise((resolve) => (unread.length > 0 ? resolve(unread.shift() ?? '') : waiting.push(resolve))),
  }
}

const say = (line: Line, ...frames: (object | Buffer | string)[]) => {
  const send = () => {
    for (const frame of frames) line.socket.send(typeof frame === 'string' || Buffer.isBuffer(frame) ? frame : JSON.stringify(frame))
  }
  if (line.socket.readyState === WebSocket.OPEN) send()
  else line.socket.on('open', send)
}
const start = (more: ExecStart = {}): ExecStart => ({ command: ['sh'], ...more })

test('output is merged by default, and the exit code is the last frame before a clean close', async (t) => {
  const { dial, run, uses } = await house(t)
  run((exec) => {
    exec.stdout.write('out')
    exec.stderr.write('err')
    setImmediate(() => exec.end(3))
  })
  const line = dial()
  say(line, start({ command: ['make', 'it so'], env: { A: 'b' }, cwd: '/tmp', user: 'nobody' }))
  const { frames, code } = await line.all
  assert.deepEqual(frames.map(String).sort(), ['err', 'out', '{"exitCode":3}'])
  assert.equal(code, 1000)
  assert.deepEqual(uses.instances.oneGuest.execs[0]?.asked, {
    command: ['make', 'it so'],
    tty: false,
    env: { A: 'b' },
    cwd: '/tmp',
    user: 'nobody',
  })
})

test('only clients that ask get words beside the exit code: one of the published ones takes nothing else there', async (t) => {
  const { dial, run } = await house(t)
  const last = async (more: ExecStart) => {
    const line = dial()
    say(line, start(more))
    return (await line.all).frames.at(-1)
  }
  for (const [end, code, message] of [
    [(exec: FakeExec) => exec.end(137, 'killed by signal 9 (SIGKILL)'), 137, 'killed by signal 9 (SIGKILL)'],
    [() => undefined, 124, 'killed after 0.01 s'],
  ] as const) {
    run(end)
    assert.equal(await last({ timeout: 0.01 }), JSON.stringify({ exitCode: code }))
    assert.equal(await last({ timeout: 0.01, separate_streams: true }), JSON.stringify({ exitCode: code, message }))
  }
})

test('clients that ask get stdout and stderr apart, with their channel', async (t) => {
  const { dial, run } = await house(t)
  run((exec) => {
    exec.stdout.write('out')
    exec.stderr.write('err')
    setImmediate(() => exec.end(0))
  })
  const line = dial()
  say(line, start({ separate_streams: true }))
  const { frames } = await line.all
  const outputs = frames.filter(Buffer.isBuffer).map((frame) => decodeOutput(frame))
  assert.deepEqual(outputs.map((one) => `${one?.channel} ${Buffer.from(one?.bytes ?? []).toString()}`).sort(), ['stderr err', 'stdout out'])
})

test('an empty command is a shell, and so is one that was not given; null is not given', async (t) => {
  const { dial, uses } = await house(t)
  for (const frame of ['{}', '{"command":[]}', '{"command":null,"tty":true,"env":null,"cwd":null,"timeout":null}']) {
    const line = dial()
    say(line, frame)
    await line.all
    assert.deepEqual(uses.instances.oneGuest.execs.at(-1)?.asked.command, ['/bin/sh'], frame)
  }
  assert.deepEqual(
    uses.instances.oneGuest.execs.map(({ asked }) => asked.tty),
    [false, false, true],
  )
})

test('stdin flows in order, and ends when the caller says so', async (t) => {
  const { dial, run } = await house(t)
  run((exec) => {
    let got = ''
    exec.stdin.on('data', (chunk) => {
      got += chunk
    })
    exec.stdin.on('end', () => {
      exec.stdout.write(got)
      exec.end(0)
    })
  })
  const line = dial()
  say(line, start({ separate_streams: true }), Buffer.from('a'), Buffer.from('b\n'), { stdin: 'eof' })
  const { frames } = await line.all
  assert.equal(String(frames[0]), '\u0001ab\n')
})

test('without separate streams a text frame is input, as the published clients have it', async (t) => {
  const { dial, run } = await house(t)
  run((exec) =>
    exec.stdin.once('data', (chunk) => {
      exec.stdout.write(chunk)
      exec.end(0)
    }),
  )
  const line = dial()
  say(line, start(), '{"resize":{"rows":1,"cols":1}}')
  assert.equal(String((await line.all).frames[0]), '{"resize":{"rows":1,"cols":1}}')
})

test('on a terminal a resize frame changes its size, and other text is typed', async (t) => {
  const { dial, run, uses } = await house(t)
  run((exec) =>
    exec.stdin.once('data', (chunk) => {
      exec.stdout.write(chunk)
      exec.end(0)
    }),
  )
  const line = dial()
  say(line, start({ tty: true, rows: 24, cols: 80 }), { resize: { rows: 40, cols: 120 } }, { resize: { rows: 0, cols: 'x' } }, 'ls\n')
  assert.equal(String((await line.all).frames[0]), 'ls\n')
  const [exec] = uses.instances.oneGuest.execs
  assert.deepEqual([exec?.heard[0], exec?.asked.rows, exec?.asked.cols, exec?.asked.tty], ['resize 40x120', 24, 80, true])
})

test('signals are passed on by name, and a frame that is no control is told of', async (t) => {
  const { dial, run, uses } = await house(t)
  run(() => undefined)
  const line = dial()
  say(line, start({ separate_streams: true }), { signal: 'TERM' }, { signal: 'rm -rf' }, { colour: 'red' }, 'not json', {
    signal: 'SIGUSR1',
  })
  for (let n = 0; n < 3; n++) assert.match(String(await line.frame()), /^\{"error":/)
  const [exec] = uses.instances.oneGuest.execs
  while (!exec?.heard.includes('SIGUSR1')) await new Promise(setImmediate)
  assert.deepEqual(exec?.heard, ['SIGTERM', 'SIGUSR1'])
  exec?.end(143)
  assert.match(String((await line.all).frames.at(-1)), /"exitCode":143/)
})

test('a first frame that is none is told, and nothing is run', async (t) => {
  const { dial, uses } = await house(t)
  for (const frame of [
    Buffer.from('x'),
    'not json',
    '[]',
    '{"command":"ls"}',
    '{"comand":["ls"]}',
    '{"command":["a\\u0000b"]}',
    '{"command":[null]}',
    'null',
    '{"timeout":-1}',
    '{"timeout":2147484}',
    '{"timeout":31536000}',
  ]) {
    const line = dial()
    say(line, frame)
    const { frames, code } = await line.all
    const { error } = JSON.parse(String(frames[0]))
    // Once as the contract has it, and once for who knows nothing but exit codes.
    assert.deepEqual(frames.slice(1).map(String), [`Error: ${error}\r\n`, '{"exitCode":127}'], String(frame))
    assert.equal(code, 1000)
  }
  const apart = dial()
  say(apart, { separate_streams: true, timeout: -1 })
  assert.deepEqual(
    (await apart.all).frames.map((frame) => JSON.parse(String(frame)).code),
    ['invalid_request'],
  )
  assert.equal(uses.instances.oneGuest.execs.length, 0)
})

test('a command that is not there is output and exit code 127', async (t) => {
  const { dial } = await house(t)
  const line = dial()
  say(line, start({ command: ['absent'] }))
  const { frames } = await line.all
  assert.equal(String(frames[0]), 'Error: absent: command not found\r\n')
  assert.equal(JSON.parse(String(frames[1])).exitCode, 127)
})

test('a command that was not started because the guest was lost has no exit code of its own', async (t) => {
  const { dial, uses } = await house(t)
  const told = async (error: Error, more: ExecStart = {}) => {
    uses.instances.oneGuest.startError = error
    const line = dial()
    say(line, start(more))
    return (await line.all).frames.map(String)
  }
  const apart = { separate_streams: true }
  for (const code of ['guest_unavailable', 'timed_out', 'internal_error'] as const) {
    const error = new AppError(code, 'It is gone')
    assert.deepEqual(await told(error, apart), [`{"error":"It is gone","code":"${code}"}`])
    assert.deepEqual(await told(error), ['Error: It is gone\r\n', '{"exitCode":127}'])
  }
  const secret = new Error('/secret')
  assert.deepEqual(await told(secret, apart), ['{"error":"The guest did not answer","code":"guest_unavailable"}'])
  assert.deepEqual(await told(secret), ['Error: The guest did not answer\r\n', '{"exitCode":127}'])
  assert.equal(JSON.parse((await told(new AppError('invalid_path', 'Denied')))[1] ?? '').exitCode, 126)
})

test('a guest that is lost while its command runs is no success to any client', async (t) => {
  const { dial, run } = await house(t)
  run((exec) => {
    exec.stdout.write('half')
    exec.lose(new AppError('guest_unavailable', 'The instance web was stopped'))
  })
  const told = async (more: ExecStart) => {
    const line = dial()
    say(line, start(more))
    const { frames } = await line.all
    return frames.map(String).filter((frame) => !frame.endsWith('half'))
  }
  assert.deepEqual(await told({}), ['Error: The instance web was stopped\r\n', '{"exitCode":127}'])
  assert.deepEqual(await told({ separate_streams: true }), ['{"error":"The instance web was stopped","code":"guest_unavailable"}'])
})

test('a command that ends with the daemon is told so, also where its guest says nothing any more', async (t) => {
  const { dial, run, server } = await house(t)
  let begun = 0
  run((exec) => {
    begun++
    exec.kill = () => exec.lose(new AppError('guest_unavailable', 'The connection to the guest agent was closed'))
  })
  const [merged, apart] = [dial(), dial()]
  say(merged, start())
  say(apart, start({ separate_streams: true }))
  while (begun < 2) await new Promise(setImmediate)
  await server.close()
  assert.deepEqual((await merged.all).frames.map(String), ['Error: The daemon is shutting down\r\n', '{"exitCode":127}'])
  assert.deepEqual((await apart.all).frames.map(String), ['{"error":"The daemon is shutting down","code":"shutting_down"}'])
})

test('the longest timeout, and one of a part of a millisecond, are as long as they say', async (t) => {
  const { dial, run, uses } = await house(t)
  run((exec) => setImmediate(() => exec.end(0)))
  for (const timeout of [2_147_483, 1.00001]) {
    const line = dial()
    say(line, start({ timeout }))
    assert.equal(JSON.parse(String((await line.all).frames.at(-1))).exitCode, 0)
  }
  run(() => undefined)
  const line = dial()
  say(line, start({ timeout: 0.0005 }))
  assert.equal(JSON.parse(String((await line.all).frames.at(-1))).exitCode, 124)
  assert.deepEqual(uses.instances.oneGuest.execs.at(-1)?.heard.includes('kill'), true)
})

test('a guest that cannot run a command says why as output, one whose program answers 127 does not', async (t) => {
  const { dial, run } = await house(t)
  run((exec) => exec.end(126, 'permission denied: /etc/passwd'))
  const line = dial()
  say(line, start())
  assert.deepEqual((await line.all).frames.map(String), ['Error: permission denied: /etc/passwd\r\n', '{"exitCode":126}'])
  run((exec) => exec.end(127, 'exited with code 127'))
  const second = dial()
  say(second, start())
  assert.equal((await second.all).frames.length, 1)
})

test('a command that takes longer than its timeout is killed and answers 124', async (t) => {
  const { dial, run, uses } = await house(t)
  run(() => undefined)
  const line = dial()
  say(line, start({ timeout: 0.05 }))
  const { frames } = await line.all
  assert.equal(JSON.parse(String(frames.at(-1))).exitCode, 124)
  assert.equal(uses.instances.oneGuest.execs[0]?.heard[0], 'kill')
})

test('streams of a guest that break end the command, not the daemon', async (t) => {
  const { dial, run } = await house(t)
  run((exec) => {
    exec.stdin.destroy(new Error('broken'))
    exec.stdout.destroy(new Error('broken'))
    exec.stderr.destroy(new Error('broken'))
    exec.end(0)
  })
  const line = dial()
  say(line, start({ separate_streams: true }), Buffer.from('x'), { stdin: 'eof' }, { stdin: 'eof' }, Buffer.from('y'))
  const { frames, code } = await line.all
  assert.match(String(frames.at(-1)), /"error"|"exitCode"/)
  assert.equal(code, 1000)
})

test('a caller who hangs up takes the command with him', async (t) => {
  const { dial, run, uses } = await house(t)
  run((exec) => exec.stdout.write('x'))
  const line = dial()
  say(line, start())
  await line.frame()
  line.socket.terminate()
  await uses.instances.oneGuest.execs[0]?.exit
})

test('a slow reader holds the guest back, and gets every byte', async (t) => {
  const { dial, run, uses, settled } = await house(t)
  const total = 32 * 1024 * 1024
  let given = 0
  run(async (exec) => {
    const chunk = Buffer.alloc(64 * 1024, 'x')
    while (given < total) {
      given += chunk.length
      if (!exec.stdout.write(chunk)) await new Promise((resolve) => exec.stdout.once('drain', resolve))
    }
    exec.end(0)
  })
  const line = dial()
  say(line, start())
  await line.frame()
  line.socket.pause()
  // Until no more is taken: what fits into the buffers on the way is bounded.
  assert.ok((await settled(() => given)) < total, 'the guest was not held back')
  line.socket.resume()
  const { frames } = await line.all
  const bytes = frames.filter(Buffer.isBuffer)
  assert.equal(
    bytes.reduce((sum, frame) => sum + frame.length, 0),
    total,
  )
  assert.ok(bytes.every((frame) => frame.length <= 32 * 1024))
  assert.equal(uses.instances.oneGuest.execs.length, 1)
})

test('a guest that reads slowly holds the caller back', async (t) => {
  const { dial, run, uses, settled } = await house(t)
  run(() => undefined)
  const line = dial()
  const chunk = Buffer.alloc(512 * 1024, 'y')
  say(line, start(), ...Array.from({ length: 64 }, () => chunk))
  while (uses.instances.oneGuest.execs.length === 0) await new Promise(setImmediate)
  const [exec] = uses.instances.oneGuest.execs
  assert.ok(exec)
  assert.ok((await settled(() => line.socket.bufferedAmount)) > 10 * 1024 * 1024, 'the caller was not held back')
  let got = 0
  exec.stdin.on('data', (data) => {
    got += data.length
    if (got === 64 * chunk.length) exec.end(0)
  })
  await line.all
  assert.equal(got, 64 * chunk.length)
})

test('what a slow reader has yet to take is not cut off by the end of the command', async (t) => {
  const { dial, run } = await house(t)
  const total = 4 * 1024 * 1024
  run((exec) => {
    exec.stdout.write(Buffer.alloc(total, 'x'))
    exec.end(0)
  })
  const line = dial()
  say(line, start())
  await line.frame()
  line.socket.pause()
  // Ten minutes in which nothing is read.
  t.mock.timers.enable({ apis: ['setTimeout'] })
  for (let n = 0; n < 100; n++) await new Promise(setImmediate)
  t.mock.timers.tick(600_000)
  for (let n = 0; n < 100; n++) await new Promise(setImmediate)
  t.mock.timers.reset()
  line.socket.resume()
  const { frames } = await line.all
  assert.equal(
    frames.filter(Buffer.isBuffer).reduce((sum, frame) => sum + frame.length, 0),
    total,
  )
  assert.equal(frames.at(-1), '{"exitCode":0}')
})

test('a caller with a window is sent no more than that of each output until he has taken it', async (t) => {
  const { dial, run } = await house(t)
  const total = 300_000
  run((exec) => {
    exec.stdout.write(Buffer.alloc(total, 'o'))
    exec.stderr.write(Buffer.alloc(total, 'e'))
    exec.end(0)
  })
  const line = dial()
  const window = 100_000
  say(line, start({ separate_streams: true, window }))
  const got = { stdout: 0, stderr: 0 }
  const take = async (until: () => boolean) => {
    while (!until()) {
      const frame = await line.frame()
      const output = Buffer.isBuffer(frame) ? decodeOutput(frame) : undefined
      if (output) got[output.channel] += output.bytes.length
    }
  }
  await take(() => got.stdout === window && got.stderr === window)
  // One output does not wait for the other, and no grant is more than a window.
  say(line, { credit: { channel: 'stderr', bytes: Number.MAX_SAFE_INTEGER } })
  await take(() => got.stderr === 2 * window)
  say(line, { credit: { channel: 'stderr', bytes: window } }, { credit: { channel: 'stdout', bytes: 1 } })
  await take(() => got.stderr === total && got.stdout === window + 1)
  say(line, { credit: { channel: 'stdout', bytes: window } })
  await take(() => got.stdout === 2 * window + 1)
  say(line, { credit: { channel: 'stdout', bytes: window } })
  const { frames } = await line.all
  assert.equal(frames.at(-1), '{"exitCode":0,"message":""}')
})

test('what a caller with a window says is heard while his input waits', async (t) => {
  const { dial, run, uses } = await house(t)
  run((exec) => exec.stdout.write(Buffer.alloc(4096, 'o')))
  const line = dial()
  say(line, start({ separate_streams: true, window: 2048 }), ...Array.from({ length: 8 }, () => Buffer.alloc(31 * 1024, 'i')), {
    stdin: 'eof',
  })
  await line.frame()
  say(line, { credit: { channel: 'stdout', bytes: 2048 } }, { signal: 'SIGUSR1' })
  let output = 0
  while (output < 2048) {
    const frame = await line.frame()
    if (Buffer.isBuffer(frame)) output += frame.length - 1
  }
  const [exec] = uses.instances.oneGuest.execs
  assert.ok(exec)
  while (!exec.heard.includes('SIGUSR1')) await new Promise(setImmediate)
  let got = 0
  for await (const chunk of exec.stdin) got += chunk.length
  exec.end(0)
  assert.equal(got, 8 * 31 * 1024)
  const { frames } = await line.all
  const credits = frames.flatMap((frame) => (Buffer.isBuffer(frame) ? [] : [JSON.parse(frame).credit ?? 0]))
  assert.equal(
    credits.reduce((sum, one) => sum + one, 0),
    got + 8 * STDIN_FRAME_COST,
  )
})

test('a window of no size, or without separate streams, is refused', async (t) => {
  const { dial } = await house(t)
  for (const first of [{ window: 65_536 }, { separate_streams: true, window: 0 }, { separate_streams: true, window: 1e9 }]) {
    const line = dial()
    say(line, start(first))
    assert.match(String((await line.all).frames[0]), /"code":"invalid_request"/)
  }
})

/**
 * Until it stays the same while others are answered: what fits into the buffers on the way is in them. Each answer goes through the same event
 * loop and the same kernel's loopback, in which what could still move has had its turn.
 */
async function settled(figure: () => number, others: () => Promise<void>): Promise<number> {
  let before = -1
  while (before !== figure()) {
    before = figure()
    for (let n = 0; n < 20; n++) await others()
  }
  return before
}

test('frames without bytes fill no memory either: a guest that reads nothing holds back who sends them', async (t) => {
  const { dial, run, uses, settled } = await house(t)
  run(() => undefined)
  const nothing = Buffer.alloc(0)
  for (const first of [{}, { separate_streams: true, window: 65_536 }]) {
    const before = uses.instances.oneGuest.execs.length
    const line = dial()
    say(line, start(first), Buffer.alloc(512 * 1024))
    while (uses.instances.oneGuest.execs.length === before) await new Promise(setImmediate)
    for (let n = 0; n < 300_000; n++) line.socket.send(nothing)
    // Six bytes each on the wire; the rest waits where it comes from.
    assert.ok((await settled(() => line.socket.bufferedAmount)) > 1_000_000)
    line.socket.terminate()
  }
})

test('a peer that asks and never reads does not fill memory with answers', async (t) => {
  const { dial, run, server, settled } = await house(t)
  run((exec) => exec.stdout.write('x'))
  for (const flood of [
    (line: Line) => line.socket.ping(Buffer.alloc(125)),
    (line: Line) => say(line, { nonsense: true }),
    (line: Line) => say(line, { signal: 'SIG' }),
  ]) {
    const line = dial()
    say(line, start({ separate_streams: true }))
    await line.frame()
    line.socket.pause()
    for (let n = 0; n < 30_000; n++) flood(line)
    await settled(() => line.socket.bufferedAmount)
    const held = [...server.host.websocketServer.clients].map(({ bufferedAmount }) => bufferedAmount)
    assert.ok(held.length === 1 && (held[0] ?? 0) < 600_000, `${held} bytes wait`)
    line.socket.terminate()
    while (server.host.websocketServer.clients.size > 0) await new Promise(setImmediate)
  }
})

test('one instance has room for so many, and leaves the others theirs', async (t) => {
  const { dial, run, uses } = await house(t)
  uses.instances.add({ name: 'other' })
  run((exec) => exec.stdout.write('x'))
  const begin = async (path?: string) => {
    const line = dial(path)
    say(line, start())
    await line.frame()
    return line
  }
  const lines = await Promise.all(Array.from({ length: 64 }, () => begin()))
  const refusal = (line: Line) =>
    new Promise<number | undefined>((resolve) => {
      line.socket.on('unexpected-response', (_, answer) => answer.resume().socket.on('close', () => resolve(answer.statusCode)))
    })
  assert.equal(await refusal(dial()), 429)
  assert.equal(await refusal(dial('/instances/web/cp')), 429)
  await begin('/instances/other/exec')
  lines[0]?.socket.terminate()
  // One that was refused holds no place.
  for (;;) {
    const line = dial()
    const how = await Promise.race([refusal(line), new Promise((resolve) => line.socket.on('open', () => resolve('open')))])
    if (how === 'open') break
    assert.equal(how, 429)
  }
})

test('who asks without an upgrade hears why it would be refused', async (t) => {
  const { server } = await house(t)
  const ask = async (path: string) => {
    const answer = await server.host.inject(path)
    return [answer.statusCode, answer.json().code]
  }
  assert.deepEqual(await ask('/instances/nobody/exec'), [404, 'not_found'])
  assert.deepEqual(await ask('/instances/asleep/cp'), [409, 'invalid_state'])
  assert.deepEqual(await ask('/instances/web/exec'), [400, 'invalid_request'])
})

test('a frame that is too large ends the connection, and nothing else', async (t) => {
  const { dial, run } = await house(t)
  run((exec) => exec.stdin.resume())
  const text = dial()
  say(text, start(), 'x'.repeat(1024 * 1024 + 1))
  assert.equal((await text.all).code, 1009)
  const binary = dial()
  say(binary, start(), Buffer.alloc(32 * 1024 * 1024 + 1))
  await cutOff(binary)
})

/** Of a peer that is cut off while it sends it is chance whether it reads why, or only finds that it cannot write. */
async function cutOff({ socket }: Line): Promise<void> {
  const code = await new Promise<number>((resolve) => socket.on('close', resolve))
  assert.ok([1006, 1009, 1013].includes(code), String(code))
}

test('input of many megabytes may be one frame, as one of the published clients sends it', async (t) => {
  const { dial, run } = await house(t)
  const total = 32 * 1024 * 1024
  run((exec) => {
    let left = total
    exec.stdin.on('data', (chunk: Buffer) => {
      left -= chunk.length
      if (left === 0) exec.end(0)
    })
  })
  const line = dial()
  say(line, start(), Buffer.alloc(total, 'i'))
  assert.deepEqual(await line.all, { frames: ['{"exitCode":0}'], code: 1000 })
})

test('large frames of one instance have room for so much, whether they wait or are on their way', async (t) => {
  const { dial, run, uses, server } = await house(t)
  uses.instances.add({ name: 'other' })
  run(() => undefined)
  const frame = Buffer.alloc(24 * 1024 * 1024)
  const begin = async (command: string, path?: string) => {
    say(dial(path), start({ command: [command] }), frame)
    for (;;) {
      const exec = uses.instances.oneGuest.execs.find(({ asked }) => asked.command[0] === command)
      // It waits for a program that reads nothing.
      if (exec && exec.stdin.writableLength + exec.stdin.readableLength >= frame.length) return exec
      await new Promise(setImmediate)
    }
  }
  const held = [await begin('first'), await begin('second')]
  const third = dial()
  say(third, start({ command: ['third'] }), frame)
  await cutOff(third)
  await begin('fourth', '/instances/other/exec')
  for (const exec of held) exec.end(0)
  while (server.host.websocketServer.clients.size > 1) await new Promise(setImmediate)
  await begin('fifth')
})

test('an instance that does not run refuses before the upgrade, as does a bad token', async (t) => {
  const { dial, server } = await house(t)
  // The server ends the connection as well: a refused caller holds nothing.
  const refusal = (line: Line) =>
    new Promise<number | undefined>((resolve) => {
      line.socket.on('unexpected-response', (_, answer) => answer.resume().socket.on('close', () => resolve(answer.statusCode)))
    })
  assert.equal(await refusal(dial('/instances/asleep/exec')), 409)
  assert.equal(await refusal(dial('/instances/nobody/exec')), 404)
  assert.equal(await refusal(dial('/nothing/exec')), 404)
  assert.equal(await refusal(dial('/instances/web/exec', {})), 401)
  const { token } = await server.authority.mint({ subject: 'a', scopes: ['instance:read'], ttlMs: 60_000 })
  assert.equal(await refusal(dial('/instances/web/exec', { authorization: `Bearer ${token}` })), 403)
  const { token: writer } = await server.authority.mint({ subject: 'a', scopes: ['instance:write'], ttlMs: 60_000 })
  const line = dial('/instances/web/exec', { authorization: `Bearer ${writer}` })
  say(line, start())
  assert.equal((await line.all).code, 1000)
})

test('the daemon takes no one with it when it closes: commands are ended and told so', async (t) => {
  const { dial, run, server } = await house(t)
  run((exec) => exec.stdout.write('x'))
  const line = dial()
  say(line, start())
  await line.frame()
  await server.close()
  assert.equal((await line.all).code, 1000)
})
