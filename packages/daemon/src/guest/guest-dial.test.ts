import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, request } from 'node:http'
import { type Duplex, duplexPair } from 'node:stream'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import pino from 'pino'
import type { FakeService } from './fake-dial.ts'
import { FakeGuest } from './fake-guest.ts'
import { GuestClient } from './guest-client.ts'

const log = pino({ level: 'silent' })
const step = (limitMs = 10_000) => ({ signal: AbortSignal.timeout(limitMs), log })

async function serving(services: Readonly<Record<number, FakeService>>): Promise<{ fake: FakeGuest; client: GuestClient }> {
  const fake = new FakeGuest({ services: new Map(Object.entries(services).map(([port, service]) => [Number(port), service])) })
  const [ours, theirs] = duplexPair()
  fake.attach(theirs)
  const client = await GuestClient.connect(ours, step())
  await client.go(
    {
      hostname: 'box',
      machineId: '0123456789abcdef0123456789abcdef',
      workload: { kind: 'exec', argv: ['/bin/serve'], env: {}, cwd: '/', user: '', stopSignal: 'SIGTERM' },
      disks: { overlay: true, modules: true, volumes: [] },
    },
    step(),
  )
  return { fake, client }
}

/** Sends back what comes, and ends when it ends. */
const echo: FakeService = (connection) => void connection.pipe(connection)
const send = (connection: Duplex, bytes: Buffer): Duplex => connection.end(bytes)

test('what listens in a guest is talked to through its agent, each direction to its own end', async () => {
  const { client } = await serving({ 7: echo })
  const connection = await client.dial({ port: 7 }, step())
  // More than any window: credit has to come and go.
  const sent = 'x'.repeat(1 << 20)
  send(connection, Buffer.from(sent))
  assert.equal((await text(connection)).length, sent.length)
})

test('HTTP is spoken over it', async () => {
  const server = createServer((asked, response) => response.writeHead(204, { path: asked.url }).end())
  const { client } = await serving({ 80: (connection) => void server.emit('connection', connection) })
  const connection = await client.dial({ port: 80, address: '10.0.2.15' }, step())
  const asking = request({ path: '/ready', createConnection: () => connection }).end()
  const [answer] = await once(asking, 'response')
  assert.deepEqual([answer.statusCode, answer.headers.path], [204, '/ready'])
  asking.destroy()
})

test('a port at which nothing listens is told in the guest’s words, and the line goes on', async () => {
  const { client } = await serving({ 7: echo })
  await assert.rejects(client.dial({ port: 8 }, step()), /Connection refused/)
  const connection = await client.dial({ port: 7 }, step())
  send(connection, Buffer.from('still there'))
  assert.equal(await text(connection), 'still there')
})

test('to hang up ends it in the guest, whoever was speaking', async () => {
  const closed = Promise.withResolvers<void>()
  const { client } = await serving({
    9: (connection) => {
      connection.on('close', () => closed.resolve())
      // More than anyone reads.
      connection.write(Buffer.alloc(1 << 20))
    },
  })
  const connection = await client.dial({ port: 9 }, step())
  await once(connection, 'readable')
  connection.destroy()
  await closed.promise
  await client.ping(step())
})

test('a guest that is lost ends it with the reason, and a workload that is frozen takes no calls', async () => {
  const { client, fake } = await serving({ 7: echo })
  const connection = await client.dial({ port: 7 }, step())
  const broken = once(connection, 'error')
  await client.freeze({}, step())
  await assert.rejects(client.dial({ port: 7 }, step()), { code: 'conflict' })
  fake.crash()
  assert.match(String((await broken)[0]), /guest/)
  await assert.rejects(client.dial({ port: 7 }, step()), { code: 'guest_unavailable' })
})
