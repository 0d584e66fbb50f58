import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Qmp, QmpError } from './qmp.ts'

let dir: string
let count = 0
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'qmp-'))
})
after(() => rm(dir, { recursive: true, force: true }))

const within = (ms: number): Parameters<typeof Qmp.connect>[1] => ({ signal: AbortSignal.timeout(ms) }) as Parameters<typeof Qmp.connect>[1]

/** Serves one connection: greets, and answers each command with what `answer` gives. */
async function fakeQemu(answer: (command: string) => string): Promise<AsyncDisposable & { file: string }> {
  const file = path.join(dir, `${count++}.sock`)
  const server = net.createServer((socket) => {
    socket.on('error', () => undefined)
    socket.write('{"QMP": {"version": {}, "capabilities": []}}\r\n')
    socket.setEncoding('utf8')
    let text = ''
    socket.on('data', (chunk: string) => {
      text += chunk
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const { execute } = JSON.parse(text.slice(0, end))
        text = text.slice(end + 1)
        socket.write(execute === 'qmp_capabilities' ? '{"return": {}}\r\n' : answer(execute))
      }
    })
  })
  server.listen(file)
  await once(server, 'listening')
  return { file, [Symbol.asyncDispose]: async () => void server.close() }
}

test('answers come back in the order of the commands, events in between', async () => {
  await using qemu = await fakeQemu((command) => `{"event": "STOP"}\n{"return": "${command}"}\n`)
  using qmp = await Qmp.connect(qemu.file, within(5000))
  const answers = await Promise.all(['a', 'b', 'c'].map((command) => qmp.execute(command, undefined, within(5000))))
  assert.deepEqual(answers, ['a', 'b', 'c'])
  await qmp.event('STOP', within(5000))
})

test('an event is told by what it is about, whether it came before it was waited for or after', async () => {
  await using qemu = await fakeQemu((command) => `{"event": "DONE", "data": {"device": "${command}"}}\n{"return": {}}\n`)
  using qmp = await Qmp.connect(qemu.file, within(5000))
  const second = qmp.event('DONE', within(5000), ({ device }) => device === 'b')
  for (const command of ['a', 'b']) await qmp.execute(command, undefined, within(5000))
  assert.deepEqual(await second, { device: 'b' })
  assert.deepEqual(await qmp.event('DONE', within(5000), ({ device }) => device === 'a'), { device: 'a' })
  await assert.rejects(
    qmp.event('DONE', within(20), ({ device }) => device === 'c'),
    { code: 'timed_out' },
  )
})

test('a refusal names the command', async () => {
  await using qemu = await fakeQemu(() => '{"error": {"class": "GenericError", "desc": "no such thing"}}\n')
  using qmp = await Qmp.connect(qemu.file, within(5000))
  await assert.rejects(
    qmp.execute('device_add', {}, within(5000)),
    (error) => error instanceof QmpError && /device_add: no such thing/.test(error.message),
  )
})

test('an answer that comes too late is not taken for the next one', async () => {
  const answers: (() => void)[] = []
  const server = net.createServer((socket) => {
    socket.write('{"QMP": {}}\n')
    socket.on('data', (chunk) => {
      for (const line of String(chunk).trim().split('\n')) {
        const { execute } = JSON.parse(line)
        const say = (): void => void socket.write(`{"return": "${execute}"}\n`)
        if (execute === 'slow') answers.push(say)
        else {
          for (const late of answers.splice(0)) late()
          say()
        }
      }
    })
  })
  const file = path.join(dir, 'late.sock')
  server.listen(file)
  await once(server, 'listening')
  using qmp = await Qmp.connect(file, within(5000))
  await assert.rejects(qmp.execute('slow', undefined, within(20)), { code: 'timed_out' })
  assert.equal(await qmp.execute('quick', undefined, within(5000)), 'quick')
  server.close()
})

test('a connection that ends fails what is under way and what comes after', async () => {
  const server = net.createServer((socket) => {
    socket.write('{"QMP": {}}\n')
    socket.once('data', () => {
      socket.write('{"return": {}}\n')
      socket.once('data', () => socket.destroy())
    })
  })
  const file = path.join(dir, 'ending.sock')
  server.listen(file)
  await once(server, 'listening')
  using qmp = await Qmp.connect(file, within(5000))
  await assert.rejects(qmp.execute('stop', undefined, within(5000)), { code: 'guest_unavailable' })
  await assert.rejects(qmp.execute('cont', undefined, within(5000)), { code: 'guest_unavailable' })
  await assert.rejects(qmp.event('RESUME', within(5000)), { code: 'guest_unavailable' })
  server.close()
})

test('nonsense and endless lines end the connection', async () => {
  for (const noise of ['not json\n', 'x'.repeat(5 << 20)]) {
    await using qemu = await fakeQemu(() => noise)
    using qmp = await Qmp.connect(qemu.file, within(5000))
    await assert.rejects(qmp.execute('stop', undefined, within(5000)), { code: 'guest_unavailable' })
    await qmp.closed
  }
})

test('a VMM that does not greet is given up', async () => {
  const server = net.createServer(() => undefined)
  const file = path.join(dir, 'mute.sock')
  server.listen(file)
  await once(server, 'listening')
  await assert.rejects(Qmp.connect(file, within(30)), { code: 'timed_out' })
  server.close()
})

test('the last time of an event is told by the clock of the one that reports it', async () => {
  const at = (seconds: number): string => JSON.stringify({ event: 'STOP', timestamp: { seconds, microseconds: 250_000 } })
  await using qemu = await fakeQemu(() => `${at(7)}\n${at(8)}\n{"event": "RESUME"}\n{"return": {}}\n`)
  using qmp = await Qmp.connect(qemu.file, within(5000))
  await qmp.execute('stop', undefined, within(5000))
  assert.deepEqual([qmp.lastAtMs('STOP'), qmp.lastAtMs('RESUME'), qmp.lastAtMs('SHUTDOWN')], [8250, undefined, undefined])
})
