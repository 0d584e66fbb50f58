/** What the kernel tells of connections to guests, with real ones: a guest, a client and this host between them, each in a network namespace. */
import assert from 'node:assert/strict'
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createConnection, type Socket } from 'node:net'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import type { IgnoredConnections, Inbound } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { parseSubnet4, parseSubnet6 } from '../../packages/daemon/src/lib/subnet.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { Conntrack } from '../../packages/daemon/src/network/conntrack.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'
import { inOwnNetwork } from '../harness/own-network.ts'

/** Names lie in a directory that all namespaces of mounts may share. */
const [GUEST_SPACE, CLIENT_SPACE] = [`dm-guest-${process.pid}`, `dm-client-${process.pid}`]
const GUEST = { host: 5, ipv4: '10.98.0.5', ipv6: 'fd98::5' } as const
const CLIENT = { ipv4: '198.51.100.2', ipv6: '2001:db8:1::2' } as const
const NOTHING: IgnoredConnections = { sources: [], ports: [] }

const run = (program: string, ...argv: string[]): string => execFileSync(program, argv, { encoding: 'utf8' })

/** A far end that does as it is told, a line at a time, in a namespace of its own. */
const FAR_END = `
  const { createServer, createConnection } = require('node:net')
  const sockets = new Map()
  const say = (line) => process.stdout.write(line + '\\n')
  require('node:readline').createInterface({ input: process.stdin }).on('line', (line) => {
    const [verb, name, host, port] = line.split(' ')
    if (verb === 'serve') createServer({ allowHalfOpen: true }, (socket) => {
      socket.on('error', () => undefined)
      socket.on('end', () => socket.end())
      socket.resume()
    }).listen(Number(name), '::', () => say('serves'))
    if (verb === 'open') {
      const socket = createConnection({ host, port: Number(port) }, () => say('open'))
      socket.on('error', (error) => say(error.code))
      socket.resume()
      sockets.set(name, socket)
    }
    if (verb === 'close') sockets.get(name).end(() => say('closed'))
    // One after the other, each gone as soon as it is there.
    if (verb === 'flood') {
      let left = Number(name)
      const next = () => {
        if (left-- === 0) return say('flooded')
        const socket = createConnection({ host, port: Number(port) }, () => {
          socket.resetAndDestroy()
          setImmediate(next)
        })
        socket.on('error', (error) => say(error.code))
      }
      next()
    }
    if (verb === 'reset') { sockets.get(name).resetAndDestroy(); say('reset') }
  })`

class FarEnd implements Disposable {
  readonly #child: ChildProcess
  readonly #lines: string[] = []
  #wake: () => void = () => undefined

  constructor(space: string) {
    this.#child = spawn('ip', ['netns', 'exec', space, process.execPath, '-e', FAR_END], { stdio: ['pipe', 'pipe', 'inherit'] })
    this.#child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.#lines.push(...text.split('\n').filter((line) => line !== ''))
      this.#wake()
    })
  }

  async tell(...words: (string | number)[]): Promise<string> {
    this.#child.stdin?.write(`${words.join(' ')}\n`)
    while (this.#lines.length === 0) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    return this.#lines.shift() ?? ''
  }

  [Symbol.dispose](): void {
    this.#child.kill('SIGKILL')
  }
}

interface Lab extends Disposable {
  readonly guest: FarEnd
  readonly client: FarEnd
}

function makeLab(): Lab {
  for (const [space, device, own, far] of [
    [GUEST_SPACE, 'toguest', ['10.98.0.1/24', 'fd98::1/64'], [`${GUEST.ipv4}/24`, `${GUEST.ipv6}/64`]],
    [CLIENT_SPACE, 'toclient', ['198.51.100.1/24', '2001:db8:1::1/64'], [`${CLIENT.ipv4}/24`, `${CLIENT.ipv6}/64`]],
  ] as const) {
    run('ip', 'netns', 'add', space)
    run('ip', 'link', 'add', device, 'type', 'veth', 'peer', 'name', 'up0', 'netns', space)
    for (const address of own) run('ip', 'addr', 'add', address, 'dev', device, ...(address.includes(':') ? ['nodad'] : []))
    run('ip', 'link', 'set', device, 'up')
    for (const address of far) run('ip', '-n', space, 'addr', 'add', address, 'dev', 'up0', ...(address.includes(':') ? ['nodad'] : []))
    for (const name of ['lo', 'up0']) run('ip', '-n', space, 'link', 'set', name, 'up')
    for (const address of own) {
      const [gateway = ''] = address.split('/')
      run('ip', '-n', space, ...(address.includes(':') ? ['-6'] : []), 'route', 'add', 'default', 'via', gateway)
    }
  }
  run('sysctl', '-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1', 'net.ipv4.conf.all.route_localnet=1')
  // A published port, as the bridge has it, and the tracking that its rules bring along.
  execFileSync('nft', ['-f', '-'], {
    input: `table inet lab {
      chain to_ports { type nat hook prerouting priority -100; tcp dport 8080 dnat ip to ${GUEST.ipv4}:80; }
      chain own_to_ports { type nat hook output priority -100; ip daddr 127.0.0.1 tcp dport 8080 dnat ip to ${GUEST.ipv4}:80; }
      chain outwards { type nat hook postrouting priority 100; ip saddr 127.0.0.0/8 masquerade; }
      chain through { type filter hook forward priority 0; ct state new accept; }
    }`,
  })
  const [guest, client] = [new FarEnd(GUEST_SPACE), new FarEnd(CLIENT_SPACE)]
  return {
    guest,
    client,
    [Symbol.dispose]() {
      guest[Symbol.dispose]()
      client[Symbol.dispose]()
      run('nft', 'delete', 'table', 'inet', 'lab')
      for (const space of [GUEST_SPACE, CLIENT_SPACE]) run('ip', 'netns', 'delete', space)
    },
  }
}

const follow = (): Conntrack =>
  new Conntrack({
    shimPath: join(REPOSITORY, 'build/shim/dormouse-shim'),
    subnet4: parseSubnet4('10.98.0.0/24') ?? assert.fail(),
    subnet6: parseSubnet6('fd98::/64') ?? assert.fail(),
    log: silentLogger,
  })

const step = () => ({ signal: AbortSignal.timeout(60_000), log: silentLogger })

if (inOwnNetwork(import.meta.filename)) {
  const lab = makeLab()
  after(() => lab[Symbol.dispose]())
  const ask = (conntrack: Conntrack, ignored = NOTHING, host: number = GUEST.host): Promise<Inbound> =>
    conntrack.inbound(host, ignored, step())
  const followerPid = (): number => Number(run('pgrep', '-P', String(process.pid), '-f', 'dormouse-shim conntrack').trim())
  /** The kernel tells it a moment later. */
  const becomes = (conntrack: Conntrack, active: number, ignored = NOTHING): Promise<boolean> =>
    pollUntil(`${active} connections`, async () => (await ask(conntrack, ignored)).active === active, step())

  test('connections to a guest are counted, by both families and by a published port; those that it opens itself are not', async () => {
    await using conntrack = follow()
    assert.deepEqual(await ask(conntrack), { active: 0 })
    assert.equal(await lab.guest.tell('serve', 80), 'serves')
    assert.equal(await lab.client.tell('serve', 90), 'serves')
    assert.equal(await lab.client.tell('open', 'a', GUEST.ipv4, 80), 'open')
    assert.equal(await lab.client.tell('open', 'b', GUEST.ipv6, 80), 'open')
    assert.equal(await lab.client.tell('open', 'c', '198.51.100.1', 8080), 'open')
    await becomes(conntrack, 3)
    assert.equal(await lab.guest.tell('open', 'out', CLIENT.ipv4, 90), 'open')
    const own: Socket = createConnection({ host: '127.0.0.1', port: 8080 })
    await once(own, 'connect')
    await becomes(conntrack, 4)
    assert.equal((await ask(conntrack, NOTHING, 6)).active, 0)
    assert.equal((await ask(conntrack, { sources: [], ports: [80] })).active, 0)
    assert.equal((await ask(conntrack, { sources: ['198.51.100.0/24'], ports: [81] })).active, 2)
    assert.equal((await ask(conntrack, { sources: ['198.51.100.0/24', '2001:db8:1::/48', '127.0.0.0/8'], ports: [] })).active, 0)
    assert.equal((await ask(conntrack)).quietMs, 0)
    own.destroy()
    await becomes(conntrack, 3)
    assert.equal(await lab.client.tell('reset', 'a'), 'reset')
    await becomes(conntrack, 2)
    for (const name of ['b', 'c']) assert.equal(await lab.client.tell('close', name), 'closed')
    await becomes(conntrack, 0)
    const { quietMs = -1 } = await ask(conntrack)
    assert.ok(quietMs >= 0)
  })

  test('one that comes and goes between two questions is remembered, unless it is one that does not count', async () => {
    await using conntrack = follow()
    const ignored = { sources: [], ports: [22] }
    assert.deepEqual(await ask(conntrack, ignored), { active: 0 })
    assert.equal(await lab.guest.tell('serve', 22), 'serves')
    assert.equal(await lab.client.tell('open', 'a', GUEST.ipv4, 22), 'open')
    assert.equal(await lab.client.tell('reset', 'a'), 'reset')
    // The one behind it has been told of: so has this one.
    assert.equal(await lab.client.tell('open', 'b', GUEST.ipv4, 22), 'open')
    await becomes(conntrack, 0, ignored)
    assert.deepEqual(await ask(conntrack, ignored), { active: 0 })
    assert.equal(await lab.client.tell('open', 'c', GUEST.ipv4, 80), 'open')
    assert.equal(await lab.client.tell('reset', 'c'), 'reset')
    await becomes(conntrack, 0, ignored)
    assert.notEqual((await ask(conntrack, ignored)).quietMs, undefined)
    assert.equal(await lab.client.tell('reset', 'b'), 'reset')
    await becomes(conntrack, 0)
  })

  test('who begins to follow finds what is open, and hears of its end although no event tells it', async () => {
    assert.equal(await lab.client.tell('open', 'a', GUEST.ipv4, 80), 'open')
    await using conntrack = follow()
    assert.equal((await ask(conntrack)).active, 1)
    assert.equal(await lab.client.tell('close', 'a'), 'closed')
    await becomes(conntrack, 0)
  })

  test('a program that is killed is started again by the next question, which does not take what was lost for nothing', async () => {
    await using conntrack = follow()
    assert.deepEqual(await ask(conntrack), { active: 0 })
    process.kill(followerPid(), 'SIGKILL')
    await pollUntil(
      'an answer',
      () =>
        ask(conntrack).then(
          () => true,
          () => false,
        ),
      step(),
    )
    // What it had seen is lost: as if someone had been there until then.
    assert.notEqual((await ask(conntrack)).quietMs, undefined)
  })

  test('more events than can be kept are lost, and what they told is looked up', async () => {
    await using conntrack = follow()
    assert.deepEqual(await ask(conntrack), { active: 0 })
    assert.equal(await lab.client.tell('open', 'early', GUEST.ipv4, 80), 'open')
    await becomes(conntrack, 1)
    const pid = followerPid()
    process.kill(pid, 'SIGSTOP')
    // The ends of the first and the beginning of the last are told of among the lost ones, or behind them.
    assert.equal(await lab.client.tell('flood', 8000, GUEST.ipv6, 80), 'flooded')
    assert.equal(await lab.client.tell('close', 'early'), 'closed')
    assert.equal(await lab.client.tell('open', 'late', GUEST.ipv4, 80), 'open')
    process.kill(pid, 'SIGCONT')
    await becomes(conntrack, 1)
    assert.equal(await lab.client.tell('reset', 'late'), 'reset')
    await becomes(conntrack, 0)
  })

  test('a question that is no question is refused, and the next is answered', async () => {
    await using conntrack = follow()
    await assert.rejects(ask(conntrack, { sources: ['nonsense'], ports: [] }), { code: 'internal_error' })
    await assert.rejects(ask(conntrack, NOTHING, 256), { code: 'internal_error' })
    const many = {
      sources: Array.from({ length: 256 }, (_, at) => `2001:db8:${at.toString(16)}:ffff:ffff:ffff:ffff:ffff/128`),
      ports: Array.from({ length: 256 }, (_, at) => 65_000 + at),
    }
    assert.equal((await ask(conntrack, many)).active, 0)
  })
}
