import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import fc from 'fast-check'
import WebSocket from 'ws'
import { chunksOf } from './cp.ts'
import { type FakeUses, fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

async function house(
  t: TestContext,
): Promise<{ uses: FakeUses; open(): WebSocket; talk(...frames: (object | Buffer)[]): Promise<(string | Buffer)[]> }> {
  const uses = fakeUses()
  uses.instances.add({ name: 'web' })
  const server = new HttpServer(uses)
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(async () => {
    await server.close()
    rmSync(dir, { recursive: true, force: true })
  })
  const path = join(dir, 's')
  await server.listen({ socket: { path, mode: 0o600 } })
  const open = () => new WebSocket(`ws+unix:${path}:/instances/web/cp`)
  return {
    uses,
    open,
    talk: (...frames) =>
      new Promise((resolve, reject) => {
        const got: (string | Buffer)[] = []
        const socket = open()
        socket.on('open', () => {
          for (const frame of frames) socket.send(Buffer.isBuffer(frame) ? frame : JSON.stringify(frame))
        })
        socket.on('message', (data: Buffer, isBinary) => {
          got.push(isBinary ? data : data.toString())
          if (!isBinary && /"final":true|"type":"(result|error)"/.test(data.toString())) socket.close()
        })
        socket.on('close', () => resolve(got))
        socket.on('error', reject)
      }),
  }
}

const told = (frames: (string | Buffer)[]) => JSON.parse(String(frames.at(-1)))

test('a file goes in whole, with its mode, and the count comes back', async (t) => {
  const { talk, uses } = await house(t)
  const answer = await talk({ direction: 'to', guest_path: '/tmp/a', mode: 0o100755 }, Buffer.from('hello '), Buffer.from('world'), {
    type: 'end',
  })
  assert.deepEqual(told(answer), { type: 'result', success: true, bytes_written: 11 })
  assert.equal(uses.instances.oneGuest.files.get('/tmp/a')?.toString(), 'hello world')
  assert.deepEqual(uses.instances.oneGuest.copied, [{ path: '/tmp/a', isDir: false, mode: 0o755 }])
})

test('a directory is made, with the mode that directories have', async (t) => {
  const { talk, uses } = await house(t)
  await talk({ direction: 'to', guest_path: '/tmp/d', is_dir: true }, { type: 'end' })
  assert.deepEqual(uses.instances.oneGuest.copied, [{ path: '/tmp/d', isDir: true, mode: 0o755 }])
})

test('an owner is set only when both halves are given and neither is root', async (t) => {
  const { talk, uses } = await house(t)
  await talk({ direction: 'to', guest_path: '/a', uid: 1000, gid: 1000 }, { type: 'end' })
  await talk({ direction: 'to', guest_path: '/b', uid: 1000, gid: 0 }, { type: 'end' })
  await talk({ direction: 'to', guest_path: '/c', uid: 1000 }, { type: 'end' })
  assert.deepEqual(
    uses.instances.oneGuest.copied.map(({ uid, gid }) => [uid, gid]),
    [
      [1000, 1000],
      [undefined, undefined],
      [undefined, undefined],
    ],
  )
})

test('a file that is copied onto a directory lands inside it, by its own name', async (t) => {
  const { talk, uses } = await house(t)
  await talk({ direction: 'to', guest_path: '/dir', src_basename: 'a.txt' }, { type: 'end' })
  await talk({ direction: 'to', guest_path: '/new', src_basename: 'a.txt' }, { type: 'end' })
  await talk({ direction: 'to', guest_path: '/unnamed', src_basename: null, is_dir: null, mode: null }, { type: 'end' })
  assert.deepEqual(
    uses.instances.oneGuest.copied.map(({ path }) => path),
    ['/dir/a.txt', '/new', '/unnamed'],
  )
})

test('what cannot be copied is told with its reason', async (t) => {
  const { talk } = await house(t)
  assert.deepEqual(told(await talk({ direction: 'to', guest_path: '/full' }, { type: 'end' })), {
    type: 'result',
    success: false,
    error: 'The disk of the guest is full',
    code: 'insufficient_resources',
  })
  assert.deepEqual(told(await talk({ direction: 'from', guest_path: '/absent' })), {
    type: 'error',
    message: 'There is no /absent in the guest',
    code: 'path_not_found',
    path: '/absent',
  })
})

test('first frames that are none are refused: relative paths, null bytes, names with slashes', async (t) => {
  const { talk, uses } = await house(t)
  for (const frame of [
    {},
    { direction: 'up', guest_path: '/a' },
    { direction: 'to', guest_path: 'a' },
    { direction: 'to', guest_path: '/a\0b' },
    { direction: 'to', guest_path: '/a', src_basename: '../../etc' },
    { direction: 'to', guest_path: '/a', uid: -1 },
    { direction: 'to', guest_path: '/a', colour: 'red' },
    Buffer.from('x'),
  ]) {
    assert.equal(told(await talk(frame)).code, 'invalid_request', JSON.stringify(frame))
  }
  assert.equal(uses.instances.oneGuest.copied.length, 0)
})

test('a text frame in the middle of a file is no end of it', async (t) => {
  const { talk, uses } = await house(t)
  assert.equal(told(await talk({ direction: 'to', guest_path: '/a' }, Buffer.from('x'), { type: 'stop' })).success, false)
  assert.equal(uses.instances.oneGuest.files.size, 0)
})

test('entries come out with a header each, and only the last end is final', async (t) => {
  const { talk, uses } = await house(t)
  uses.instances.oneGuest.entries = [
    { kind: 'header', path: 'd', mode: 0o755, isDir: true, size: 0, mtime: 7, uid: 0, gid: 0 },
    { kind: 'end' },
    { kind: 'header', path: 'd/a', mode: 0o644, isDir: false, size: 3, mtime: 8 },
    { kind: 'data', bytes: Buffer.from('abc') },
    { kind: 'end' },
    { kind: 'header', path: 'd/l', mode: 0o777, isDir: false, linkTarget: 'a', size: 0, mtime: 9 },
    { kind: 'end' },
  ]
  const frames = await talk({ direction: 'from', guest_path: '/tmp/d' })
  assert.deepEqual(
    frames.map((frame) => (Buffer.isBuffer(frame) ? frame.toString() : JSON.parse(frame))),
    [
      { type: 'header', path: 'd', mode: 0o755, is_dir: true, size: 0, mtime: 7, uid: 0, gid: 0 },
      { type: 'end', final: false },
      { type: 'header', path: 'd/a', mode: 0o644, is_dir: false, size: 3, mtime: 8 },
      'abc',
      { type: 'end', final: false },
      { type: 'header', path: 'd/l', mode: 0o777, is_dir: false, is_symlink: true, link_target: 'a', size: 0, mtime: 9 },
      { type: 'end', final: true },
    ],
  )
})

test('a caller with a window is sent no more than that until he has taken it', async (t) => {
  const { open, uses } = await house(t)
  const file = Buffer.alloc(100_000, 'x')
  uses.instances.oneGuest.entries = [
    { kind: 'header', path: 'a', mode: 0o644, isDir: false, size: file.length, mtime: 8 },
    ...Array.from({ length: 10 }, (_, n) => ({ kind: 'data' as const, bytes: file.subarray(n * 10_000, (n + 1) * 10_000) })),
    { kind: 'end' },
  ]
  const socket = open()
  let bytes = 0
  let isOver = false
  const heard = { wake: () => {} }
  socket.on('message', (data: Buffer, isBinary) => {
    if (isBinary) bytes += data.length
    else isOver ||= data.toString().includes('"final":true')
    heard.wake()
  })
  const until = async (fact: () => boolean) => {
    while (!fact()) await new Promise<void>((resolve) => Object.assign(heard, { wake: resolve }))
  }
  socket.on('open', () => socket.send(JSON.stringify({ direction: 'from', guest_path: '/a', window: 30_000 })))
  // The header counts, and what has begun to be sent is sent whole.
  await until(() => bytes === 30_000)
  for (const nonsense of ['x', '[]', 'null', '{"type":"credit"}', '{"type":"credit","bytes":-1}']) socket.send(nonsense)
  socket.send(JSON.stringify({ type: 'credit', bytes: 21_000 }))
  await until(() => bytes === 50_000)
  assert.equal(isOver, false)
  socket.send(JSON.stringify({ type: 'credit', bytes: 30_000 }))
  await until(() => bytes === 80_000)
  socket.send(JSON.stringify({ type: 'credit', bytes: 30_000 }))
  await until(() => isOver)
  assert.equal(bytes, file.length)
  socket.close()
})

test('no frame of a file reads as JSON that begins with a bracket, and together they are the file', () => {
  const awkward = fc.oneof(
    fc.json().map((text) => Buffer.from(text)),
    fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
    fc
      .constantFrom('{}', '[]', '[[1]]', '{[1]', '[[[]]]', '{"type":"end","final":true}', '[', '', '  {}', '{}\n')
      .map((text) => Buffer.from(text)),
    fc.nat(70_000).map((size) => Buffer.alloc(size, '[')),
  )
  fc.assert(
    fc.property(awkward, (bytes) => {
      const chunks = [...chunksOf(bytes)]
      assert.deepEqual(Buffer.concat(chunks), bytes)
      for (const chunk of chunks) {
        assert.ok(chunk.length > 0 && chunk.length <= 32 * 1024)
        if (chunk[0] === 0x7b || chunk[0] === 0x5b) assert.throws(() => JSON.parse(Buffer.from(chunk).toString()))
      }
    }),
  )
})
