import assert from 'node:assert/strict'
import { once } from 'node:events'
import { duplexPair, type Readable } from 'node:stream'
import { test } from 'node:test'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import pino from 'pino'
import { FakeGuest, type FakeGuestUses } from './fake-guest.ts'
import { GuestClient, type GuestConfig } from './guest-client.ts'
import type { JournalFact } from './journal.ts'

const log = pino({ level: 'silent' })
const step = (limitMs = 5000) => ({ signal: AbortSignal.timeout(limitMs), log })

const configOf = (argv: string[]): GuestConfig => ({
  hostname: 'box',
  machineId: '0123456789abcdef0123456789abcdef',
  workload: { kind: 'exec', argv, env: { COLOUR: 'blue' }, cwd: '/', user: '', stopSignal: 'SIGTERM' },
  disks: { overlay: true, modules: true, volumes: [] },
})

async function parked(uses: FakeGuestUses = {}): Promise<{ fake: FakeGuest; client: GuestClient }> {
  const fake = new FakeGuest(uses)
  const [ours, theirs] = duplexPair()
  fake.attach(theirs)
  return { fake, client: await GuestClient.connect(ours, step()) }
}

async function running(argv = ['/bin/serve']): Promise<{ fake: FakeGuest; client: GuestClient }> {
  const guest = await parked()
  await guest.client.go(configOf(argv), step())
  return guest
}

async function textOf(stream: Readable): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of stream) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks).toString()
}

test('a parked guest is told its configuration and runs', async () => {
  const { fake, client } = await parked()
  assert.equal(client.hello.phase, 'parked')
  await client.go(configOf(['/bin/serve']), step())
  assert.equal(fake.phase, 'running')
  assert.notEqual(client.bootNonce, client.hello.bootNonce)
  await client.started(step())
  assert.deepEqual(await client.ping(step()), { phase: 'running', bootNonce: fake.bootNonce, isFrozen: false })
})

test('the same configuration a second time changes nothing, another is refused', async () => {
  const { client } = await running()
  await client.go(configOf(['/bin/serve']), step())
  await assert.rejects(client.go(configOf(['/bin/other']), step()), (error) => errorCodeOf(error) === 'invalid_state')
})

test('a workload that cannot be started is told with the reason, and its end follows', async () => {
  const facts: JournalFact[] = []
  const { client } = await parked({ onJournal: (fact) => facts.push(fact) })
  await assert.rejects(client.go(configOf(['/bin/missing']), step()), /command not found: \/bin\/missing/)
  assert.deepEqual(await client.exited, { code: 127, message: 'command not found: /bin/missing' })
  assert.deepEqual(
    facts.map(({ event }) => event),
    ['exited'],
  )
})

test('a program that is run gives its output, its code and its words', async () => {
  const { client } = await running()
  const exec = await client.exec({ command: ['echo', 'hello', 'you'] }, step())
  assert.equal(await textOf(exec.stdout), 'hello you\n')
  assert.equal(await textOf(exec.stderr), '')
  assert.deepEqual(await exec.exit, { code: 0, message: 'exited' })
  const none = await client.exec({ command: ['nowhere'] }, step())
  assert.deepEqual(await none.exit, { code: 127, message: 'command not found: nowhere' })
})

test('what is written to a program comes back whole, at whatever pace it is read', async () => {
  const { client } = await running()
  const exec = await client.exec({ command: ['cat'] }, step())
  const sent = Buffer.alloc(3_000_000, 'The quick brown fox. ')
  exec.stdin.end(sent)
  assert.equal(await textOf(exec.stdout), sent.toString())
  assert.equal((await exec.exit).code, 0)
})

test('a reader that stands still holds up its own stream and no other', async () => {
  const { client } = await running()
  const stalled = await client.exec({ command: ['cat'] }, step())
  stalled.stdin.write(Buffer.alloc(2_000_000))
  const others = await Promise.all(Array.from({ length: 20 }, () => client.exec({ command: ['echo', 'x'] }, step())))
  for (const other of others) assert.equal(await textOf(other.stdout), 'x\n')
  assert.equal((await client.stat('/bin/sh', { followLinks: false }, step())).link_target, '/bin/busybox')
  assert.ok(stalled.stdout.readableLength <= 256 << 10, `${stalled.stdout.readableLength} bytes were taken in`)
  stalled.kill()
  await stalled.exit
})

test('output that no one wants does not hold a program up', async () => {
  const { client } = await running()
  const exec = await client.exec({ command: ['cat'] }, step())
  exec.stdout.destroy()
  exec.stdin.end(Buffer.alloc(2_000_000))
  assert.equal((await exec.exit).code, 0)
})

test('a signal and a kill end a program, and a kill after its end is harmless', async () => {
  const { client } = await running()
  const first = await client.exec({ command: ['sleep', '60'] }, step())
  await first.signal('SIGINT')
  assert.equal((await first.exit).code, 130)
  first.kill()
  const second = await client.exec({ command: ['sleep', '60'] }, step())
  second.kill()
  assert.equal((await second.exit).code, 137)
  await assert.rejects(second.signal('SIGNOTHING'), /There is no signal/)
})

test('files go in and come out as they were', async () => {
  const { client } = await running()
  const bytes = Buffer.alloc(500_000, 7)
  const source = async function* () {
    yield bytes.subarray(0, 100_000)
    yield bytes.subarray(100_000)
  }
  assert.deepEqual(await client.copyTo({ path: '/data/a', mode: 0o4755 }, source(), step()), { bytesWritten: 500_000 })
  const entries = await Array.fromAsync(client.copyFrom('/data', { followLinks: false }, step()))
  const headers = entries.flatMap((entry) => (entry.kind === 'header' ? [[entry.path, entry.mode, entry.isDir]] : []))
  assert.deepEqual(headers, [
    ['data', 0o755, true],
    ['data/a', 0o4755, false],
  ])
  assert.deepEqual(Buffer.concat(entries.flatMap((entry) => (entry.kind === 'data' ? [entry.bytes] : []))), bytes)
})

test('a file is not put over a directory, and the source is let go', async () => {
  const { client } = await running()
  const closed = Promise.withResolvers<void>()
  const source = async function* () {
    try {
      for (;;) yield await new Promise<Buffer>((resolve) => setImmediate(() => resolve(Buffer.alloc(1000))))
    } finally {
      closed.resolve()
    }
  }
  const refused = client.copyTo({ path: '/etc' }, source(), step(200))
  await assert.rejects(refused)
  await closed.promise
  const missing = Array.fromAsync(client.copyFrom('/nowhere', { followLinks: false }, step()))
  await assert.rejects(missing, (error) => errorCodeOf(error) === 'path_not_found')
})

test('a guest that is gone ends what waits for it', async () => {
  const { fake, client } = await running()
  const exec = await client.exec({ command: ['cat'] }, step())
  const output = textOf(exec.stdout)
  fake.crash()
  await assert.rejects(exec.exit, (error) => errorCodeOf(error) === 'guest_unavailable')
  await assert.rejects(output)
  await assert.rejects(client.exited, (error) => errorCodeOf(error) === 'guest_unavailable')
  await client.closed
  await assert.rejects(client.ping(step()), (error) => errorCodeOf(error) === 'guest_unavailable')
})

test('a second daemon finds the guest as it is, and the first one’s programs are gone', async () => {
  const { fake, client } = await running()
  const exec = await client.exec({ command: ['cat'] }, step())
  const [ours, theirs] = duplexPair()
  fake.attach(theirs)
  const second = await GuestClient.connect(ours, step())
  assert.equal(second.hello.phase, 'running')
  await second.started(step())
  await client[Symbol.asyncDispose]()
  await assert.rejects(exec.exit)
})

/** The guest goes on elsewhere, as a capture does it: the one that was captured knows nothing of it. */
async function awoken(fake: FakeGuest, uses: FakeGuestUses = {}): Promise<{ fake: FakeGuest; client: GuestClient }> {
  const copy = FakeGuest.restore(JSON.parse(JSON.stringify(fake.snapshot())), uses)
  const [ours, theirs] = duplexPair()
  copy.attach(theirs)
  return { fake: copy, client: await GuestClient.connect(ours, step()) }
}

const said = async (client: GuestClient, ...command: string[]) => textOf((await client.exec({ command }, step())).stdout)

test('a frozen workload runs no program until it is thawed, and whoever comes is told', async () => {
  const { fake, client } = await running()
  assert.deepEqual(await client.freeze({}, step()), { isWhole: true })
  await assert.rejects(client.exec({ command: ['true'] }, step()), (error) => errorCodeOf(error) === 'conflict')
  assert.equal((await client.ping(step())).isFrozen, true)
  const [ours, theirs] = duplexPair()
  fake.attach(theirs)
  const next = await GuestClient.connect(ours, step())
  assert.equal(next.hello.isFrozen, true)
  await next.thaw(step())
  assert.equal((await next.ping(step())).isFrozen, false)
  assert.equal(await said(next, 'count'), '1\n')
})

test('a process that does not stop lets all run on, or stands aside where that is asked for', async () => {
  const { fake, client } = await running()
  fake.hasStuckProcess = true
  await assert.rejects(client.freeze({ limitMs: 10 }, step()), (error) => errorCodeOf(error) === 'timed_out')
  assert.equal(fake.isFrozen, false)
  assert.deepEqual(await client.freeze({ bestEffort: true, limitMs: 10 }, step()), { isWhole: false })
  assert.equal(fake.isFrozen, true)
})

test('a guest that wakes as before goes on where it was, with the clock of today', async () => {
  const { fake, client } = await running()
  await said(client, 'count')
  await client.freeze({ bestEffort: true }, step())
  fake.connections = 3
  const state = fake.snapshot()
  const facts: JournalFact[] = []
  const { fake: copy, client: woken } = await awoken(FakeGuest.restore({ ...state, clockMs: state.clockMs - 3_600_000 }), {
    onJournal: (fact) => facts.push(fact),
  })
  assert.equal(woken.hello.isFrozen, true)
  const awakening = await woken.wake({ closeConnections: true, token: 'nap-1' }, step())
  assert.deepEqual(awakening, { bootNonce: fake.bootNonce, phase: 'running', closedConnections: 3 })
  assert.ok(Math.abs(copy.clockMs - Date.now()) < 1000)
  assert.equal(await said(woken, 'count'), '2\n')
  assert.equal(await said(woken, 'hostname'), 'box\n')
  assert.deepEqual(
    facts.map(({ event, boot }) => [event, boot]),
    [['started', fake.bootNonce]],
  )
  copy.connections = 1
  assert.equal((await woken.wake({ closeConnections: true, token: 'nap-1' }, step())).closedConnections, 0)
  assert.equal((await woken.wake({ closeConnections: true, token: 'nap-2' }, step())).closedConnections, 1)
})

test('a wake that lies about on a busy host is said again until it does not, so that the clock is right all the same', async () => {
  const { fake, client } = await running()
  await client.freeze({ bestEffort: true }, step())
  fake.connections = 2
  const copy = FakeGuest.restore(fake.snapshot())
  const [ours, theirs] = duplexPair()
  const [held, inner] = duplexPair()
  copy.attach(inner)
  held.pipe(theirs)
  const delaysMs: number[] = []
  theirs.on('data', (data: Buffer) => void setTimeout(() => held.write(data), delaysMs.shift() ?? 0))
  const woken = await GuestClient.connect(ours, step())
  delaysMs.push(1000, 1000, 1000, 1000)
  const { closedConnections } = await woken.wake({ closeConnections: true, token: 'late' }, step())
  // By as much as the words lay about it would be late without the last ones.
  assert.ok(Math.abs(copy.clockMs - Date.now()) < 900, `${copy.clockMs - Date.now()} ms off`)
  assert.equal(closedConnections, 2)
})

test('a guest is told the time as the host has it now, also when that was set after the daemon began', async (t) => {
  const { fake, client } = await running()
  await client.freeze({ bestEffort: true }, step())
  const { fake: copy, client: woken } = await awoken(fake)
  const now = Date.now
  t.mock.method(Date, 'now', () => now() + 3_600_000)
  await woken.wake({}, step())
  assert.ok(Math.abs(copy.clockMs - Date.now()) < 60_000, `${copy.clockMs - Date.now()} ms off`)
})

test('a guest that wakes as another is another machine, once', async () => {
  const { fake, client } = await running()
  await client.freeze({ bestEffort: true }, step())
  const { fake: copy, client: woken } = await awoken(fake)
  const network = { mac: '02:00:00:00:00:07', ipv4: { address: '10.0.0.7', prefix: 24 }, dns: [] }
  const identity = { hostname: 'fork', machineId: 'f'.repeat(32), network }
  const { bootNonce } = await woken.wake({ identity }, step())
  assert.notEqual(bootNonce, fake.bootNonce)
  assert.equal(woken.bootNonce, bootNonce)
  assert.deepEqual(copy.identity, { hostname: 'fork', machineId: 'f'.repeat(32), mac: '02:00:00:00:00:07', address: '10.0.0.7' })
  assert.equal((await woken.wake({ identity }, step())).bootNonce, bootNonce)
})

test('a guest that has never run is not woken', async () => {
  const { client } = await parked()
  await assert.rejects(client.wake({}, step()), (error) => errorCodeOf(error) === 'invalid_state')
})

test('who waits for a program when the connection is given up is told why', async () => {
  const { client } = await running()
  const exec = await client.exec({ command: ['cat'] }, step())
  await client.close(new AppError('invalid_state', 'The instance went to sleep'))
  await assert.rejects(exec.exit, /went to sleep/)
})

test('a shutdown is understood at once, the end follows', async () => {
  let isOff = false
  const { client } = await parked({ onPowerOff: () => (isOff = true) })
  await client.go(configOf(['stubborn']), step())
  await client.shutdown({ graceMs: 10 }, step())
  assert.deepEqual(await client.exited, { code: 137, message: 'killed by signal 9 (SIGKILL)' })
  await client.closed
  assert.ok(isOff)
})

test('a guest that does not answer is given up when the time is over', async () => {
  const [ours, theirs] = duplexPair()
  theirs.resume()
  const gone = once(theirs, 'close')
  await assert.rejects(GuestClient.connect(ours, step(20)), (error) => errorCodeOf(error) === 'guest_unavailable')
  theirs.destroy()
  await gone
})
