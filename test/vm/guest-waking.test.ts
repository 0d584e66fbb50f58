/**
 * What a guest does before and after a nap, without the nap: its workload stands still, is told what has changed while it slept, and
 * only then runs on. What a capture and a restore add to this is in other files.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import net from 'node:net'
import { after, before, test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import { GuestClient } from '../../packages/daemon/src/guest/guest-client.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { makeStep } from '../harness/qemu-driver.ts'
import { type Guest, type GuestHouse, guestHouse, NETWORK } from './guest-story.ts'

// In RAM, beside the disk that one of the tests makes stand still.
const COUNTER = 'n=0; while :; do n=$((n+1)); echo $n > /dev/shm/next; mv /dev/shm/next /dev/shm/count; sleep 0.02; done'
const SERVE = '#!/bin/sh\ncat 2>> /dev/shm/words\necho "$?" >> /dev/shm/ended\n'

let house: GuestHouse
let guest: Guest
let port: number
before(async () => {
  house = await guestHouse('qemu-microvm', { '/bin/serve': SERVE })
  port = await freePort()
  const nic = {
    mac: NETWORK.mac,
    backend: 'user' as const,
    ports: [{ protocol: 'tcp' as const, hostIp: '127.0.0.1', hostPort: port, guestPort: 80 }],
  }
  guest = await house.running({ argv: ['sh', '-c', `nc -ll -p 80 -e /bin/serve & ${COUNTER}`] }, { nic })
  await pollUntil('the workload to count', async () => (await fileOf('/dev/shm/count').catch(() => '')) || undefined, makeStep())
})
after(async () => {
  await guest?.[Symbol.asyncDispose]()
  await house?.[Symbol.asyncDispose]()
})

const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const server = net.createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as net.AddressInfo
      server.close(() => resolve(port))
    })
  })

const reconnect = async () => {
  guest.client = await GuestClient.connect(await guest.vm.connectGuest(makeStep()), makeStep())
}

/** A file of the guest's, also while the workload stands still. */
async function fileOf(path: string): Promise<string> {
  const entries = await Array.fromAsync(guest.client.copyFrom(path, { followLinks: false }, makeStep()))
  return Buffer.concat(entries.flatMap((entry) => (entry.kind === 'data' ? [entry.bytes] : []))).toString()
}
const count = async () => Number(await fileOf('/dev/shm/count'))
const runsOn = async () => {
  const first = await count()
  await pollUntil('the count to go on', async () => ((await count()) > first ? true : undefined), makeStep(), { everyMs: 20 })
}
const standsStill = async () => {
  const first = await count()
  assert.equal((await guest.client.ping(makeStep())).isFrozen, true)
  assert.equal(await count(), first)
}

test('a frozen workload stands still, the agent does not, and a thaw lets it go on', async () => {
  await runsOn()
  assert.deepEqual(await guest.client.freeze({}, makeStep()), { isWhole: true })
  assert.deepEqual(await guest.client.freeze({ bestEffort: true }, makeStep()), { isWhole: true })
  await standsStill()
  await assert.rejects(guest.client.exec({ command: ['true'] }, makeStep()), { code: 'conflict' })
  assert.equal((await guest.client.ping(makeStep())).phase, 'running')
  await guest.client.thaw(makeStep())
  assert.equal((await guest.client.ping(makeStep())).isFrozen, false)
  await runsOn()
})

test('a frozen workload stays so over a hang-up and for the next daemon, until a word ends it', async () => {
  await guest.client.freeze({ bestEffort: true }, makeStep())
  await guest.client[Symbol.asyncDispose]()
  await reconnect()
  assert.equal(guest.client.hello.isFrozen, true)
  await standsStill()
  await guest.client.thaw(makeStep())
  await runsOn()
})

test('a process that hangs in the kernel lets all run on by the deadline; at best effort all else stands still', async () => {
  // The workload's disk is written to by no one for a while: whoever tries hangs where no signal reaches it.
  const { stdout } = await guest.run('mkdir -p /disk; cd /sys/block; for d in vd*; do grep -q overlay $d/serial && echo /dev/$d; done')
  const mounted = await guest.run(`mount -t ext4 ${stdout.trim()} /disk && fsfreeze --freeze /disk; echo $?`)
  assert.equal(mounted.stdout, '0\n', mounted.stderr)
  const stuck = await guest.client.exec({ command: ['sh', '-c', 'echo x > /root/stuck'] }, makeStep())
  const hangs = async () => ((await guest.run('ps -o stat,args | grep -q "^D.*stuck"')).code === 0 ? true : undefined)
  await pollUntil('a process to hang', hangs, makeStep(), { everyMs: 50 })

  await assert.rejects(guest.client.freeze({ limitMs: 300 }, makeStep()), { code: 'timed_out' })
  assert.equal((await guest.client.ping(makeStep())).isFrozen, false)
  await runsOn()

  assert.deepEqual(await guest.client.freeze({ bestEffort: true, limitMs: 300 }, makeStep()), { isWhole: false })
  await standsStill()
  await assert.rejects(guest.client.exec({ command: ['true'] }, makeStep()), { code: 'conflict' })
  const awakening = await guest.client.wake({}, makeStep())
  assert.equal(awakening.phase, 'running')
  await runsOn()

  // Given up while it waits: a capture may have seen it so.
  await assert.rejects(guest.client.freeze({ bestEffort: true, limitMs: 60_000 }, makeStep(300)), { code: 'timed_out' })
  await standsStill()
  await guest.client.thaw(makeStep())
  assert.equal((await guest.run('fsfreeze --unfreeze /disk && umount /disk; echo $?')).stdout, '0\n')
  assert.equal((await stuck.exit).code, 0)
})

test('a guest wakes as it was: the same machine and names, the clock right, chance fresh', async () => {
  const { bootNonce } = guest.client
  const before = (await guest.run('hostname; cat /etc/hosts /etc/machine-id; cat /sys/class/net/eth0/address')).stdout
  await guest.run('date -s @1000000000')
  await guest.client.freeze({ bestEffort: true }, makeStep())
  const asked = Date.now()
  const awakening = await guest.client.wake({ token: 'nap' }, makeStep())
  assert.deepEqual(awakening, { bootNonce, phase: 'running', closedConnections: 0 })
  await runsOn()
  const { stdout } = await guest.run('date +%s')
  assert.ok(Number(stdout) >= Math.floor(asked / 1000) && Number(stdout) <= Date.now() / 1000, `${asked} ${stdout}`)
  assert.equal((await guest.run('hostname; cat /etc/hosts /etc/machine-id; cat /sys/class/net/eth0/address')).stdout, before)
  assert.match(before, /192\.0\.2\.9 db/)
})

test('connections that lead out end with an error at once; listeners stay, and what stays within the machine', async () => {
  const outer = net.connect(port, '127.0.0.1')
  outer.write('hello\n')
  await pollUntil('the guest to answer', async () => String(outer.read() ?? '') === 'hello\n' || undefined, makeStep(), { everyMs: 20 })
  const inner = await guest.client.exec({ command: ['sh', '-c', 'exec nc 127.0.0.1 80'] }, makeStep())
  inner.stdin.write('one\n')
  await pollUntil('the loopback to answer', async () => String(inner.stdout.read() ?? '') === 'one\n' || undefined, makeStep(), {
    everyMs: 20,
  })

  await guest.client.freeze({ bestEffort: true }, makeStep())
  const closed = new Promise((resolve) =>
    outer
      .once('close', resolve)
      .on('error', () => undefined)
      .resume(),
  )
  assert.equal((await guest.client.wake({ closeConnections: true, token: 'nap 2' }, makeStep())).closedConnections, 1)
  await closed
  await pollUntil(
    'the workload to be told',
    async () => (await fileOf('/dev/shm/ended').catch(() => '')) === '1\n' || undefined,
    makeStep(),
  )
  assert.match(await fileOf('/dev/shm/words'), /connection abort/)

  inner.stdin.end('two\n')
  await pollUntil('the loopback to answer', async () => String(inner.stdout.read() ?? '') === 'two\n' || undefined, makeStep(), {
    everyMs: 20,
  })
  inner.kill()
  await inner.exit

  const again = net.connect(port, '127.0.0.1')
  again.write('still here\n')
  await pollUntil('the listener to answer', async () => String(again.read() ?? '') === 'still here\n' || undefined, makeStep(), {
    everyMs: 20,
  })
  // The same wake once more, from a daemon that did not hear the answer: what was opened since is not touched.
  assert.equal((await guest.client.wake({ closeConnections: true, token: 'nap 2' }, makeStep())).closedConnections, 0)
  again.write('untouched\n')
  await pollUntil('it to answer', async () => String(again.read() ?? '') === 'untouched\n' || undefined, makeStep(), { everyMs: 20 })
  again.destroy()
})

test('a guest that wakes as another has its own names, address, nonce, before its workload runs', async () => {
  const { bootNonce } = guest.client
  const network = { ...NETWORK, mac: '02:00:00:0a:0b:0d', ipv4: { ...NETWORK.ipv4, address: '10.0.2.77' } }
  const identity = { hostname: 'child', machineId: 'f'.repeat(32), network }
  await guest.client.freeze({ bestEffort: true }, makeStep())
  const woken = await guest.client.wake({ identity, closeConnections: true, announce: true }, makeStep())
  assert.notEqual(woken.bootNonce, bootNonce)
  const { stdout } = await guest.run(
    'hostname; cat /etc/hostname /etc/machine-id; grep child /etc/hosts; cat /sys/class/net/eth0/address; grep db /etc/hosts; ip -4 -o addr show eth0; ip route',
  )
  const lines = stdout.split('\n')
  assert.deepEqual(lines.slice(0, 6), ['child', 'child', 'f'.repeat(32), '10.0.2.77\tchild', network.mac, '192.0.2.9 db'])
  assert.equal(stdout.match(/inet /g)?.length, 1)
  assert.match(stdout, /inet 10\.0\.2\.77\/24/)
  assert.match(stdout, /default via 10\.0\.2\.2/)
  await runsOn()

  // As that other it stays the same, whoever asks, and what is not said stays.
  assert.equal((await guest.client.wake({ identity }, makeStep())).bootNonce, woken.bootNonce)
  await guest.client.wake({ identity: { network: NETWORK } }, makeStep())
  assert.equal((await guest.run('grep child /etc/hosts; hostname')).stdout, '10.0.2.15\tchild\nchild\n')
})

test('a guest that comes to another network says so there', async () => {
  const sent = async () => Number((await guest.run('cat /sys/class/net/eth0/statistics/tx_packets')).stdout)
  // What the tests before have left to send is sent first: then a wake alone sends nothing.
  const quiet = async () => {
    const first = await sent()
    await guest.client.wake({}, makeStep())
    return (await sent()) === first ? first : undefined
  }
  const first = await pollUntil('the card to be quiet', quiet, makeStep(), { everyMs: 20 })
  await guest.client.wake({ announce: true }, makeStep())
  assert.ok((await sent()) > first)
})

test('a program that was run over a nap ends: its caller is told why, it gets SIGHUP, and what ignores that is killed', async () => {
  // Its shell would say that a sleep was hung up, to a pipe that no one reads any more, and die of that.
  const polite = await guest.client.exec(
    {
      command: ['sh', '-c', 'trap "echo hung-up > /dev/shm/polite; exit" HUP; echo ready; exec 2> /dev/null; while :; do sleep 0.05; done'],
    },
    makeStep(),
  )
  const stubborn = await guest.client.exec({ command: ['sh', '-c', 'trap "" HUP; echo ready; sleep 5005; true'] }, makeStep())
  await Promise.all([once(polite.stdout, 'data'), once(stubborn.stdout, 'data')])
  const begun = Promise.withResolvers<void>()
  const unfinished = async function* () {
    yield Buffer.alloc(1000)
    begun.resolve()
    yield await new Promise<Buffer>(() => undefined)
  }
  const draft = guest.client.copyTo({ path: '/dev/shm/copied' }, unfinished(), makeStep())
  draft.catch(() => undefined)
  await begun.promise
  await guest.client.freeze({ bestEffort: true }, makeStep())
  await guest.client.close(new AppError('invalid_state', 'The instance went to sleep'))
  await assert.rejects(polite.exit, /The instance went to sleep/)
  await assert.rejects(stubborn.exit, /The instance went to sleep/)
  await assert.rejects(draft)
  await reconnect()
  await guest.client.wake({}, makeStep())
  await pollUntil('the hang-up', async () => (await fileOf('/dev/shm/polite').catch(() => '')) === 'hung-up\n' || undefined, makeStep())
  const left = async () =>
    (await guest.run('ps | grep "sleep 5005" | grep -vc grep; ls /dev/shm | grep copied')).stdout === '0\n' ? true : undefined
  await pollUntil('the rest to be gone', left, makeStep(), { everyMs: 200 })
})

test('a guest that is only parked is told so', async () => {
  await using parked = await house.parked()
  await assert.rejects(parked.client.wake({}, makeStep()), { code: 'invalid_state' })
})
