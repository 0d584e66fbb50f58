/** Logs over HTTP as they are: real files, instances on a fake host. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { appendFileSync, renameSync } from 'node:fs'
import { get, type IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { decodeSse, SSE_END, SSE_HEARTBEAT } from '@dormouse/api/streams.ts'
import type { Instance } from '../instances/instance.ts'
import type { Instances } from '../instances/instances.ts'
import { TEST_OVERLAY, TestHouse } from '../instances/test-house.ts'
import { Turns } from '../lib/turns.ts'
import { fakeUses } from './fake-uses.ts'
import { HttpServer } from './server.ts'

test('a flood of empty lines is followed at once, and holds no one else up', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using server = new HttpServer({ ...fakeUses(), instances })
  const { id } = await running(instances)
  const answer = await asked(server, house.dir, `/instances/${id}/logs?follow=true&tail=0`)

  const count = 1024 * 1024
  using turns = new Turns()
  appendFileSync(house.paths.instanceLogs(id).app, '\n'.repeat(count))
  let got = 0
  for await (const chunk of answer) {
    // Each message is one empty string, and nothing else has quotes.
    for (const byte of chunk) if (byte === 0x22) got++
    if (got >= 2 * count) break
  }
  assert.equal(got, 2 * count)
  assert.ok(turns.longestMs < 50, `a turn took ${turns.longestMs} ms`)
  assert.ok(turns.totalMs < 3000, `all of it took ${turns.totalMs} ms`)
})

test('whoever has the head of the answer misses nothing that is written from then on', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using server = new HttpServer({ ...fakeUses(), instances })
  const { id } = await running(instances)
  for (let n = 0; n < 30; n++) {
    const answer = await asked(server, house.dir, `/instances/${id}/logs?follow=true&tail=0`)
    appendFileSync(house.paths.instanceLogs(id).app, `${n}\n`)
    let text = ''
    for await (const chunk of answer) {
      text += chunk
      if (text.includes('data')) break
    }
    assert.equal(said(text), `${SSE_HEARTBEAT}data: "${n}"\n\n`)
  }
})

test('a log that nothing has begun to write is not found, an empty one is', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using server = new HttpServer({ ...fakeUses(), instances })
  const ask = async (query: string) => {
    const { statusCode, headers, body } = await server.host.inject(`/instances/web/logs${query}`)
    return { status: statusCode, retry: headers['x-should-retry'], ...(statusCode === 200 ? { text: said(body) } : JSON.parse(body)) }
  }
  const { id } = await running(instances)
  assert.deepEqual(await ask(''), { status: 200, retry: undefined, text: SSE_HEARTBEAT + SSE_END })

  // This daemon is silent, so there are no lines of its own.
  const silent = await ask('?source=daemon')
  assert.deepEqual([silent.status, silent.code, silent.retry], [404, 'log_not_found', 'false'])
  assert.equal(silent.message, 'The instance web has no log daemon: nothing has begun to write it')

  await instances.stop(id)
  house.host.injectFault('start')
  await assert.rejects(instances.start(id))
  for (const query of ['', '?source=vmm', '?tail=0', '?follow=true&until=stopped']) {
    const told = await ask(query)
    assert.deepEqual([told.status, told.code], [404, 'log_not_found'], query)
  }

  const followed = await asked(server, house.dir, '/instances/web/logs?follow=true')
  assert.equal(followed.statusCode, 200)
  await instances.start(id, { cmd: ['echo', 'hello'] })
  let text = ''
  for await (const chunk of followed) {
    text += chunk
    if (text.includes('hello')) break
  }
  assert.equal(said(text), `${SSE_HEARTBEAT}data: "hello"\n\n`)
})

test('between the two halves of a rotation a log is still there', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using server = new HttpServer({ ...fakeUses(), instances })
  const { id } = await running(instances)
  const { app } = house.paths.instanceLogs(id)
  appendFileSync(app, 'older\n')
  renameSync(app, `${app}.1`)
  const { statusCode, body } = await server.host.inject('/instances/web/logs')
  assert.deepEqual([statusCode, said(body)], [200, `${SSE_HEARTBEAT}data: "older"\n\n${SSE_END}`])
})

test('a reader who stops reading stops the reading of the log', async () => {
  await using house = new TestHouse()
  const uses = fakeUses()
  await using server = new HttpServer(uses)
  uses.instances.add({ name: 'web' })
  const batch = Array<string>(16).fill('x'.repeat(1024))
  let given = 0
  uses.instances.logs = async () =>
    (async function* () {
      for (; ; given++) yield { lines: batch, place: `log-${given}` }
    })()
  const answer = await asked(server, house.dir, '/instances/web/logs?follow=true')
  for (let before = -1; before < given; ) {
    before = given
    for (let n = 0; n < 200; n++) await new Promise(setImmediate)
    // What the sockets of both sides hold, and no more.
    assert.ok(given < 64, `${given} batches were taken`)
  }
  assert.ok(given > 0)
  answer.destroy()
})

/** Without the places to go on from. */
const said = (text: string): string => text.replace(/^(id:|: at) \S+\n/gm, '')

test('every blank line ends a message that has a value, as the published clients take it', async (t) => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using server = new HttpServer({ ...fakeUses(), instances })
  const { id } = await running(instances)
  const log = house.paths.instanceLogs(id).app
  const blocks = (text: string) => text.split('\n\n').slice(0, -1)
  assert.deepEqual(blocks((await server.host.inject('/instances/web/logs')).body), [])
  t.mock.timers.enable({ apis: ['setInterval'] })
  const answer = await asked(server, house.dir, '/instances/web/logs?follow=true')
  const chunks = answer[Symbol.asyncIterator]()
  let text = ''
  const until = async (what: string) => {
    while (!text.includes(what)) text += (await chunks.next()).value
  }
  await until('at ')
  t.mock.timers.tick(60_000)
  t.mock.timers.reset()
  await until('\n:\n')
  appendFileSync(log, 'one\n\ntwo\n')
  await until('two')
  answer.destroy()
  const { body } = await server.host.inject('/instances/web/logs')
  for (const whole of [text, body]) {
    const values = blocks(whole).map((block) => block.split('\n').find((line) => line.startsWith('data: ')))
    assert.deepEqual(values, ['data: "one"', 'data: ""', 'data: "two"'])
  }
})

test('whoever comes back with the id that he had last is given every line since, once', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using server = new HttpServer({ ...fakeUses(), instances })
  const { id } = await running(instances)
  const log = house.paths.instanceLogs(id).app
  appendFileSync(log, 'one\ntwo\n')
  let last: string | undefined
  const read = async (query: string) => {
    const headers = last === undefined ? {} : { 'last-event-id': last }
    const { body } = await server.host.inject({ url: `/instances/web/logs${query}`, headers })
    const lines: string[] = []
    for await (const message of decodeSse(Readable.from([Buffer.from(body)]))) {
      lines.push(JSON.parse(message.data))
      last = message.id ?? last
    }
    return lines
  }
  assert.deepEqual(await read('?tail=1'), ['two'])
  assert.deepEqual(await read('?tail=1'), [])
  appendFileSync(log, 'three\nfour\n')
  renameSync(log, `${log}.1`)
  appendFileSync(log, 'five\n')
  // What he has had counts, not where he began.
  assert.deepEqual(await read('?tail=1'), ['three', 'four', 'five'])
})

test('of five hundred who follow one log each is given all of it, those too who stand still meanwhile', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  await using server = new HttpServer({ ...fakeUses(), instances })
  const { id } = await running(instances)
  const log = house.paths.instanceLogs(id).app
  const sockets: Socket[] = []
  server.host.server.on('connection', (socket) => sockets.push(socket))
  const follow = () => asked(server, house.dir, `/instances/${id}/logs?follow=true&tail=0`)
  const answers = [await follow(), ...(await Promise.all(Array.from({ length: 499 }, follow)))]
  const lines = Array.from({ length: 2000 }, (_, n) => `${n} ${'x'.repeat(500)}`)
  const begun = answers.map((answer) => once(answer, 'readable'))
  for (let at = 0; at < lines.length; at += 100) appendFileSync(log, `${lines.slice(at, at + 100).join('\n')}\n`)
  const [quick, ...slow] = answers
  assert.deepEqual(await taken(quick, lines.length), lines)
  await Promise.all(begun)
  // A megabyte each, had it been kept for them. What the server holds of it is a batch or two and the socket's own buffer.
  assert.equal(sockets.length, 500)
  for (const { writableLength } of sockets) assert.ok(writableLength <= 128 * 1024, `${writableLength} bytes wait for a reader`)
  for (const answer of slow.slice(0, 20)) assert.deepEqual(await taken(answer, lines.length), lines)
  for (const answer of answers) answer.destroy()
})

/** The next `count` lines. */
async function taken(answer: IncomingMessage | undefined, count: number): Promise<string[]> {
  const lines: string[] = []
  for await (const { data } of decodeSse(answer as AsyncIterable<Uint8Array>)) {
    lines.push(JSON.parse(data))
    if (lines.length === count) break
  }
  return lines
}

async function asked(server: HttpServer, dir: string, path: string): Promise<IncomingMessage> {
  const socketPath = join(dir, 's')
  if (!server.host.server.listening) await server.listen({ socket: { path: socketPath, mode: 0o600 } })
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
  get({ socketPath, path }, resolve).on('error', reject)
  return promise
}

async function running(instances: Instances): Promise<Instance> {
  const { id } = await instances.create({ name: 'web', image: 'test', overlayBytes: TEST_OVERLAY })
  await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  return instances.get(id)
}
