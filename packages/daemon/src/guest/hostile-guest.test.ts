/** A guest may send anything. These tests send it, and look at what it does to the daemon: nothing. */
import assert from 'node:assert/strict'
import { type Duplex, duplexPair } from 'node:stream'
import { test } from 'node:test'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import fc from 'fast-check'
import pino from 'pino'
import { FieldReader, FieldWriter } from './fields.ts'
import { decodeFrame, encodeFrame, type Frame, FrameSplitter } from './frames.ts'
import { GuestClient } from './guest-client.ts'
import { parseJournal } from './journal.ts'
import { CHANNEL, FLAG, FRAME, OP, PHASE, PROTO_VERSION, STATUS, TAG } from './wire.ts'

const log = pino({ level: 'silent' })
const step = (limitMs = 5000) => ({ signal: AbortSignal.timeout(limitMs), log })
/** Turns of the event loop that a flood is watched for. */
const TURNS = 50
const isUnavailable = (error: unknown) => errorCodeOf(error) === 'guest_unavailable'

/** A guest that shakes hands properly and then does as it is told by the test. */
async function meet(
  answer: (frame: Frame, line: Line) => void,
  before: Uint8Array = Buffer.alloc(0),
): Promise<{ client: GuestClient; line: Line }> {
  const [ours, theirs] = duplexPair()
  const line = new Line(theirs)
  theirs.write(before)
  const splitter = new FrameSplitter()
  theirs.on('data', (chunk: Buffer) => {
    for (const frame of splitter.push(chunk)) {
      if (frame.type === FRAME.HELLO) line.welcome(new FieldReader(frame.payload).bytes(TAG.EPOCH) ?? Buffer.alloc(0))
      else answer(frame, line)
    }
  })
  return { client: await GuestClient.connect(ours, step()), line }
}

class Line {
  readonly #stream: Duplex

  constructor(stream: Duplex) {
    this.#stream = stream
    stream.on('error', () => undefined)
  }

  bytes(bytes: Uint8Array): void {
    if (this.#stream.writable) this.#stream.write(bytes)
  }

  frame(type: number, stream: number, payload: Uint8Array = Buffer.alloc(0), flags = 0): void {
    this.bytes(encodeFrame(type, flags, stream, payload))
  }

  welcome(epoch: Uint8Array): void {
    const fields = new FieldWriter().number(TAG.VERSION, PROTO_VERSION).bytes(TAG.EPOCH, epoch).bytes(TAG.BOOT_NONCE, Buffer.alloc(16, 1))
    this.bytes(Buffer.of(0))
    this.frame(FRAME.WELCOME, 0, fields.number(TAG.PHASE, PHASE.RUNNING).finish())
  }
}

const ok = (window = 0) => new FieldWriter().number(TAG.STATUS, STATUS.OK).number(TAG.WINDOW, window).finish()

/** Opens an exec and lets the test go on from its reply. */
async function execAgainst(rest: (id: number, line: Line) => void) {
  const { client } = await meet((frame, line) => {
    if (frame.type !== FRAME.REQUEST) return
    line.frame(FRAME.REPLY, frame.stream, ok(1000))
    rest(frame.stream, line)
  })
  const exec = await client.exec({ command: ['x'] }, step())
  return { client, exec }
}

test('a guest that floods its line with events and zeros leaves the daemon time for the rest', async () => {
  for (const noise of [encodeFrame(FRAME.EVENT, 0, 0, Buffer.alloc(0)), Buffer.alloc(1)]) {
    const { client, line } = await meet(() => undefined)
    const flood = Buffer.concat(Array.from({ length: Math.floor((1 << 16) / noise.length) }, () => noise))
    const enough = new AbortController()
    let turns = 0
    const count = () => {
      turns++
      if (turns < TURNS) setImmediate(count)
      else enough.abort()
    }
    // Far more than is taken in so many turns: what is left waits in the pipe, as the guest does.
    for (let i = 0; i < 400; i++) line.bytes(flood)
    const cpu = process.cpuUsage()
    setImmediate(count)
    await client.stat('/x', { followLinks: false }, { signal: enough.signal, log }).catch(() => undefined)
    // Of its own time: on a busy host others have the processor meanwhile.
    const { user, system } = process.cpuUsage(cpu)
    const msOfEach = (user + system) / 1000 / turns
    assert.ok(msOfEach < 30, `${turns} turns of ${msOfEach} ms`)
    await client[Symbol.asyncDispose]()
  }
})

test('more output than there was credit for ends the connection', async () => {
  const { client, exec } = await execAgainst((id, line) => {
    for (let i = 0; i < 9; i++) line.frame(FRAME.DATA, id, Buffer.alloc(32768), CHANNEL.STDOUT)
  })
  await assert.rejects(exec.exit, isUnavailable)
  await client.closed
})

test('a credit beyond all measure ends the connection', async () => {
  const { client, exec } = await execAgainst((id, line) => {
    for (let i = 0; i < 5; i++) line.frame(FRAME.CREDIT, id, Buffer.from('ffffff7f', 'hex'))
  })
  await assert.rejects(exec.exit, isUnavailable)
  await client.closed
})

const accusations: Record<string, (id: number, line: Line) => void> = {
  'a frame of a stream that is not open': (_, line) => line.frame(FRAME.DATA, 77),
  'a second reply': (id, line) => line.frame(FRAME.REPLY, id, ok()),
  'an entry in a program’s stream': (id, line) => line.frame(FRAME.ENTRY, id, ok()),
  'output on a channel that there is not': (id, line) => line.frame(FRAME.DATA, id, Buffer.alloc(1), 3),
  'output after its end': (id, line) => {
    line.frame(FRAME.DATA, id, Buffer.alloc(0), CHANNEL.STDOUT | FLAG.EOF)
    line.frame(FRAME.DATA, id, Buffer.alloc(1), CHANNEL.STDOUT)
  },
  'fields that are none': (id, line) => line.frame(FRAME.END, id, Buffer.from('0102')),
  'an exit code beyond 255': (id, line) => line.frame(FRAME.END, id, new FieldWriter().number(TAG.EXIT_CODE, 256).finish()),
  'what is no frame': (_, line) => line.bytes(Buffer.from('05aabb00', 'hex')),
  'a credit of three bytes': (id, line) => line.frame(FRAME.CREDIT, id, Buffer.alloc(3)),
}
for (const [what, misbehave] of Object.entries(accusations)) {
  test(`${what} ends the connection`, async () => {
    const { client, exec } = await execAgainst(misbehave)
    await assert.rejects(exec.exit, isUnavailable)
    await client.closed
  })
}

for (const path of ['/etc/passwd', '../x', 'a/../../x', '', 'a//b', 'a/..', '..']) {
  test(`a walk that names ${JSON.stringify(path)} ends the connection`, async () => {
    const { client } = await meet((frame, line) => {
      if (frame.type !== FRAME.REQUEST) return
      line.frame(FRAME.REPLY, frame.stream, ok())
      line.frame(FRAME.ENTRY, frame.stream, new FieldWriter().text(TAG.PATH, path).number(TAG.FILE_KIND, 1).finish())
    })
    await assert.rejects(Array.fromAsync(client.copyFrom('/data', { followLinks: false }, step())), isUnavailable)
  })
}

test('a guest that never answers is asked in vain, for as long as the caller says', async () => {
  const { client } = await meet(() => undefined)
  await assert.rejects(client.stat('/x', { followLinks: false }, step(30)), (error) => errorCodeOf(error) === 'timed_out')
  await client[Symbol.asyncDispose]()
})

test('an answer that comes too late is no harm', async () => {
  const late: (() => void)[] = []
  const { client } = await meet((frame, line) => {
    if (frame.type !== FRAME.REQUEST) return
    if (new FieldReader(frame.payload).number(TAG.OP) === OP.PING) line.frame(FRAME.REPLY, frame.stream, ok())
    else late.push(() => line.frame(FRAME.REPLY, frame.stream, ok()))
  })
  await assert.rejects(client.thaw(step(20)), (error) => errorCodeOf(error) === 'timed_out')
  for (const answer of late) answer()
  await client.ping(step())
})

test('what an earlier daemon left in the pipe is passed over', async () => {
  const stale = Buffer.concat([
    encodeFrame(FRAME.DATA, 1, 3, Buffer.alloc(300, 5)).subarray(20),
    encodeFrame(FRAME.WELCOME, 0, 0, new FieldWriter().number(TAG.VERSION, 1).bytes(TAG.EPOCH, Buffer.alloc(16, 9)).finish()),
    encodeFrame(FRAME.END, 0, 3, ok()),
    encodeFrame(FRAME.DATA, 1, 3, Buffer.alloc(300, 5)).subarray(0, 100),
  ])
  const { client } = await meet(() => undefined, stale)
  assert.equal(client.hello.phase, 'running')
  await client[Symbol.asyncDispose]()
})

test('the words of a guest are one short line', async () => {
  const { client } = await meet((frame, line) => {
    if (frame.type !== FRAME.REQUEST) return
    const fields = new FieldWriter().number(TAG.STATUS, STATUS.FAILED).text(TAG.MESSAGE, `a\u001b[31m\r\nb\u2028${'x'.repeat(5000)}`)
    line.frame(FRAME.REPLY, frame.stream, fields.finish())
  })
  await assert.rejects(client.thaw(step()), (error) => {
    assert.ok(error instanceof AppError)
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they must not be there
    assert.doesNotMatch(error.message, /[\u0000-\u001f\u2028]/)
    assert.ok(error.message.length < 700)
    return true
  })
})

test('any frame survives the wire in any pieces', () => {
  const frame = fc.record({
    type: fc.nat(255),
    flags: fc.nat(255),
    stream: fc.nat(0xffff_ffff),
    payload: fc.oneof(fc.uint8Array({ maxLength: 2000 }), fc.uint8Array({ maxLength: 600, max: 1 })),
  })
  fc.assert(
    fc.property(fc.array(frame, { maxLength: 5 }), fc.integer({ min: 1, max: 3000 }), (frames, piece) => {
      const wire = Buffer.concat(frames.map((each) => encodeFrame(each.type, each.flags, each.stream, each.payload)))
      const splitter = new FrameSplitter()
      const back: Frame[] = []
      for (let at = 0; at < wire.length; at += piece) back.push(...splitter.push(wire.subarray(at, at + piece)))
      assert.deepEqual(
        back,
        frames.map((each) => ({ ...each, payload: Buffer.from(each.payload) })),
      )
    }),
  )
})

test('any bytes are read as a frame or not at all, and any fields as fields or refused', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 500 }), (bytes) => {
      const frame = decodeFrame(bytes)
      if (frame) assert.equal(frame.payload.length + 8 <= bytes.length, true)
      try {
        const fields = new FieldReader(Buffer.from(bytes))
        for (const { tag } of fields.all()) fields.text(tag)
      } catch (error) {
        assert.ok(isUnavailable(error))
      }
    }),
    { numRuns: 1000 },
  )
})

test('whatever a guest sends, a request settles and the connection stays whole or is closed', async () => {
  const anyFrame = fc.record({
    type: fc.integer({ min: 3, max: 12 }),
    flags: fc.constantFrom(0, 1, 2, 3, 128, 129),
    isOurs: fc.boolean(),
    payload: fc.oneof(
      fc.uint8Array({ maxLength: 40 }),
      fc.constant(new Uint8Array(ok(1000))),
      fc.constant(new Uint8Array(new FieldWriter().number(TAG.EXIT_CODE, 3).finish())),
    ),
  })
  await fc.assert(
    fc.asyncProperty(fc.array(anyFrame, { minLength: 1, maxLength: 8 }), fc.constantFrom('exec', 'get', 'stat'), async (frames, what) => {
      const { client, line } = await meet((frame) => {
        if (frame.type !== FRAME.REQUEST) return
        for (const { type, flags, isOurs, payload } of frames) line.frame(type, isOurs ? frame.stream : 9, payload, flags)
        line.bytes(Buffer.from('05aabb00', 'hex'))
      })
      const work =
        what === 'exec'
          ? client.exec({ command: ['x'] }, step()).then((exec) => exec.exit)
          : what === 'get'
            ? Array.fromAsync(client.copyFrom('/x', { followLinks: false }, step()))
            : client.stat('/x', { followLinks: false }, step())
      await work.then(
        () => undefined,
        (error: unknown) => assert.ok(error instanceof AppError, String(error)),
      )
      await client.closed
    }),
    { numRuns: 150 },
  )
})

test('a journal of any text gives facts or none', () => {
  const line = fc.oneof(
    fc.string(),
    fc.json(),
    fc.constant('{"event":"started","atMs":5}'),
    fc.constant('{"event":"exited","code":7,"message":"x"}'),
  )
  fc.assert(
    fc.property(fc.array(line, { maxLength: 20 }), (lines) => {
      for (const fact of parseJournal(lines.join('\n'))) {
        assert.ok(fact.event === 'started' || (Number.isInteger(fact.code) && fact.code >= 0 && fact.code < 256))
      }
    }),
  )
  assert.deepEqual(
    parseJournal('\n{"event":"exited","atMs":9,"code":300,"message":"x"}\n{"event":"exited","code":1,"message":"a\\nb"}\n{"ev'),
    [{ event: 'exited', code: 1, message: 'a b' }],
  )
})

test('a guest that reads nothing loses the connection, not the memory of the daemon', async () => {
  const [ours, theirs] = duplexPair()
  const line = new Line(theirs)
  theirs.once('data', (chunk: Buffer) => {
    for (const frame of new FrameSplitter().push(chunk)) line.welcome(new FieldReader(frame.payload).bytes(TAG.EPOCH) ?? Buffer.alloc(0))
    theirs.pause()
  })
  const client = await GuestClient.connect(ours, step())
  const env = { A: 'x'.repeat(120_000), B: 'x'.repeat(120_000) }
  const asked: Promise<unknown>[] = []
  let most = 0
  while (!ours.destroyed && asked.length < 250) {
    asked.push(assert.rejects(client.exec({ command: ['sh'], env }, step(60_000)), isUnavailable))
    most = Math.max(most, ours.writableLength)
  }
  assert.equal(ours.destroyed, true)
  assert.ok(most < 34 << 20, `${most} bytes waited`)
  await Promise.all(asked)
})
