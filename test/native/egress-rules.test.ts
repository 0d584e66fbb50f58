/** What the kernel lets a guest open by TCP whose way out is its proxy: a guest, a host beyond, and this host with its bridge between them. */
import assert from 'node:assert/strict'
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { createInterface, type Interface } from 'node:readline'
import { after, test } from 'node:test'
import { parseSubnet4, parseSubnet6 } from '../../packages/daemon/src/lib/subnet.ts'
import { type BridgeRules, type GuestRules, PROXY_PORT, rulesetOf } from '../../packages/daemon/src/network/ruleset.ts'
import { inOwnNetwork } from '../harness/own-network.ts'

const BRIDGE = 'dmtest0'
const OUTSIDE = { ipv4: '198.51.100.2', ipv6: '2001:db8:1::2' } as const
const run = (program: string, ...argv: string[]): string => execFileSync(program, argv, { encoding: 'utf8' })

/** Opens and serves connections as it is told, in a namespace of its own: one line, one answer. */
const FAR_END = `
  const { createServer, createConnection } = require('node:net')
  const say = (line) => process.stdout.write(line + '\\n')
  require('node:readline').createInterface({ input: process.stdin }).on('line', (line) => {
    const [verb, host, port] = line.split(' ')
    if (verb === 'serve') createServer((socket) => socket.on('error', () => undefined).end()).listen(Number(port), host, () => say('serves'))
    if (verb === 'open') {
      const socket = createConnection({ host, port: Number(port) }, () => { say('open'); socket.destroy() })
      socket.on('error', (error) => say(error.code))
    }
  })`

class FarEnd implements Disposable {
  readonly #child: ChildProcess
  readonly #lines: AsyncIterator<string>

  constructor(space: string) {
    this.#child = spawn('ip', ['netns', 'exec', space, process.execPath, '-e', FAR_END], { stdio: ['pipe', 'pipe', 'inherit'] })
    const lines: Interface = createInterface({ input: this.#child.stdout ?? assert.fail() })
    this.#lines = lines[Symbol.asyncIterator]()
  }

  async tell(verb: 'open' | 'serve', host: string, port: number): Promise<string> {
    this.#child.stdin?.write(`${verb} ${host} ${port}\n`)
    return (await this.#lines.next()).value
  }

  [Symbol.dispose](): void {
    this.#child.kill('SIGKILL')
  }
}

const rules = (more: Partial<BridgeRules> = {}): BridgeRules => ({
  ...{ table: BRIDGE, bridge: BRIDGE, tapPrefix: 'dmt-', gateway4: '10.99.0.1', gateway6: 'fd99::1', uplink: undefined },
  subnet4: parseSubnet4('10.99.0.0/24') ?? assert.fail(),
  subnet6: parseSubnet6('fd99::/64') ?? assert.fail(),
  ...{ resolver: OUTSIDE.ipv4, opensHost: false, ...more },
})
const guestOf = (host: number, egress?: GuestRules['egress']): GuestRules => ({
  ...{ tap: `dmt-${host}`, mac: `02:00:00:00:00:0${host}`, ipv4: `10.99.0.${host}`, ipv6: `fd99::${host}` },
  ports: [{ protocol: 'tcp', hostIp: '0.0.0.0', hostPort: 9000 + host, guestPort: 90 }],
  ...(egress && { egress }),
})
const apply = (made: BridgeRules, ...guests: GuestRules[]): unknown => execFileSync('nft', ['-f', '-'], { input: rulesetOf(made, guests) })

const spaceOf = (name: string): string => `dm-${name}-${process.pid}`

/** A namespace at the other end of `device`, with its addresses and a way out by `gateways`. */
function join(name: string, device: string, mac: string, addresses: readonly string[], gateways: readonly string[]): FarEnd {
  const space = spaceOf(name)
  run('ip', 'netns', 'add', space)
  after(() => run('ip', 'netns', 'delete', space))
  run('ip', 'link', 'add', device, 'type', 'veth', 'peer', 'name', 'eth0', 'address', mac, 'netns', space)
  for (const address of addresses)
    run('ip', '-n', space, 'addr', 'add', address, 'dev', 'eth0', ...(address.includes(':') ? ['nodad'] : []))
  for (const link of ['lo', 'eth0']) run('ip', '-n', space, 'link', 'set', link, 'up')
  run('ip', 'link', 'set', device, 'up')
  for (const gateway of gateways)
    run('ip', '-n', space, ...(gateway.includes(':') ? ['-6'] : []), 'route', 'add', 'default', 'via', gateway)
  const end = new FarEnd(space)
  after(() => end[Symbol.dispose]())
  return end
}

if (inOwnNetwork(import.meta.filename)) {
  run('ip', 'link', 'add', BRIDGE, 'type', 'bridge')
  run('ip', 'link', 'set', BRIDGE, 'up')
  for (const address of ['10.99.0.1/24', 'fd99::1/64'])
    run('ip', 'addr', 'add', address, 'dev', BRIDGE, ...(address.includes(':') ? ['nodad'] : []))
  run('sysctl', '-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1')
  const [guest = assert.fail(), other = assert.fail()] = [2, 3].map((host) => {
    const { tap, mac, ipv4, ipv6 } = guestOf(host)
    const end = join(`guest${host}`, tap, mac, [`${ipv4}/24`, `${ipv6}/64`], ['10.99.0.1', 'fd99::1'])
    run('ip', 'link', 'set', tap, 'master', BRIDGE)
    return end
  })
  const outside = join(
    'outside',
    'out',
    '02:00:00:00:00:99',
    [`${OUTSIDE.ipv4}/24`, `${OUTSIDE.ipv6}/64`],
    ['198.51.100.1', '2001:db8:1::1'],
  )
  for (const address of ['198.51.100.1/24', '2001:db8:1::1/64'])
    run('ip', 'addr', 'add', address, 'dev', 'out', ...(address.includes(':') ? ['nodad'] : []))

  const peers: (string | undefined)[] = []
  const proxy = createServer((socket: Socket) => {
    peers.push(socket.remoteAddress)
    socket.on('error', () => undefined).end()
  })
  after(() => proxy.close())
  let proxyPort = 0
  /** Who opens a connection hears of it before we do who take it. */
  async function opensByProxy(end: FarEnd): Promise<void> {
    const taken = once(proxy, 'connection')
    assert.equal(await end.tell('open', '10.99.0.1', PROXY_PORT), 'open')
    await taken
  }
  const mediated = (mode: 'all' | 'http_https_only') => guestOf(2, { mode, proxyPort })

  test('the lab is as it should be: without mediation everything is reached', async () => {
    proxy.listen(0, '10.99.0.1')
    await once(proxy, 'listening')
    proxyPort = (proxy.address() as AddressInfo).port
    for (const port of [53, 80, 443, 8443]) assert.equal(await outside.tell('serve', '::', port), 'serves')
    for (const end of [guest, other]) assert.equal(await end.tell('serve', '::', 90), 'serves')
    apply(rules(), guestOf(2), guestOf(3))
    for (const host of [OUTSIDE.ipv4, OUTSIDE.ipv6])
      for (const port of [443, 8443]) assert.equal(await guest.tell('open', host, port), 'open')
  })

  test('in the mode `all` nothing is opened but by the proxy; names and answers are as ever, and so is who is not mediated', async () => {
    apply(rules(), mediated('all'), guestOf(3))
    for (const host of [OUTSIDE.ipv4, OUTSIDE.ipv6]) {
      for (const port of [53, 80, 443, 8443]) assert.equal(await guest.tell('open', host, port), 'ECONNREFUSED', `${host} ${port}`)
      assert.equal(await other.tell('open', host, 443), 'open')
    }
    assert.equal(await guest.tell('open', '10.99.0.1', 53), 'open')
    assert.equal(await outside.tell('open', '198.51.100.1', 9002), 'open')
    peers.length = 0
    await opensByProxy(guest)
    assert.deepEqual(peers, ['10.99.0.2'])
  })

  test('in the mode `http_https_only` what is closed are web servers', async () => {
    apply(rules(), mediated('http_https_only'), guestOf(3))
    for (const host of [OUTSIDE.ipv4, OUTSIDE.ipv6]) {
      for (const port of [80, 443]) assert.equal(await guest.tell('open', host, port), 'ECONNREFUSED', `${host} ${port}`)
      assert.equal(await guest.tell('open', host, 8443), 'open')
    }
    await opensByProxy(guest)
  })

  test('no guest reaches the proxy of another, also where guests reach the host', async () => {
    peers.length = 0
    for (const opensHost of [false, true]) {
      apply(rules({ opensHost }), mediated('all'), guestOf(3))
      assert.equal(await other.tell('open', '10.99.0.1', proxyPort), 'ECONNREFUSED')
      // Nor its own but by the door that is its own.
      assert.equal(await guest.tell('open', '10.99.0.1', proxyPort), 'ECONNREFUSED')
    }
    // Where guests reach the host, one that is mediated does not by itself.
    assert.equal(await guest.tell('open', '198.51.100.1', 1), 'ECONNREFUSED')
    const open = createServer((socket) => socket.on('error', () => undefined).end()).listen(0, '198.51.100.1')
    after(() => open.close())
    await once(open, 'listening')
    const { port } = open.address() as AddressInfo
    assert.equal(await other.tell('open', '198.51.100.1', port), 'open')
    assert.equal(await guest.tell('open', '198.51.100.1', port), 'ECONNREFUSED')
    assert.deepEqual(peers, [])
  })
}
