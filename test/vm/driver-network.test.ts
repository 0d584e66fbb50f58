/** The user-space network of a guest: what it reaches, what it must not, and how its ports come and go. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import dgram from 'node:dgram'
import { once } from 'node:events'
import { chmod, mkdir, readFile } from 'node:fs/promises'
import net from 'node:net'
import { networkInterfaces } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import type { PortForward } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { assertPace, paceOf, rateHere } from '../harness/pace.ts'
import { makeStep, type QemuUnderTest, qemuUnderTest } from '../harness/qemu-driver.ts'
import { makeRootfs, type RunningGuest, runGuest } from '../harness/running-guest.ts'
import { PATIENCE_S, timeFactor } from '../harness/slow-host.ts'

let driver: QemuUnderTest
let guest: RunningGuest
let rootfs: string
before(async () => {
  driver = await qemuUnderTest('qemu', agentManners)
  await mkdir(join(driver.dir, 'image'))
  rootfs = await makeRootfs(join(driver.dir, 'image'))
  guest = await runGuest(driver, rootfs)
  // A server in the guest: says "guest" to whoever connects, for ever.
  await guest.sh('(while :; do echo guest | nc -l -p 80; done) >/dev/null 2>&1 &')
})
after(async () => {
  await guest?.[Symbol.asyncDispose]()
  await driver?.[Symbol.asyncDispose]()
})

/** An address of this host that is not its loopback. */
const hostAddress = (): string | undefined =>
  Object.values(networkInterfaces())
    .flat()
    .find((address) => address?.family === 'IPv4' && !address.internal && !address.address.startsWith('169.254.'))?.address

async function hello(host: string): Promise<AsyncDisposable & { port: number; calls: () => number }> {
  let calls = 0
  const server = net.createServer((socket) => {
    calls++
    socket.on('error', () => undefined)
    socket.end('hello from the host\n')
  })
  server.listen(0, host)
  await once(server, 'listening')
  return { port: (server.address() as net.AddressInfo).port, calls: () => calls, [Symbol.asyncDispose]: async () => void server.close() }
}

const freePort = async (): Promise<number> => {
  await using server = await hello('127.0.0.1')
  return server.port
}

const tcp = (hostPort: number, guestPort = 80, hostIp = '127.0.0.1'): PortForward => ({ protocol: 'tcp', hostIp, hostPort, guestPort })

const helpersOf = ({ vm }: RunningGuest): string[] =>
  execFileSync('pgrep', ['-P', `${vm.handle.shim.pid}`, 'dormouse-net'], { encoding: 'utf8' })
    .trim()
    .split('\n')
const helperPid = (): number => Number(helpersOf(guest)[0])

/** What a published port says; the error's code when nobody is there. */
const call = (port: number, host = '127.0.0.1'): Promise<string> =>
  new Promise((resolve) => {
    const socket = net.connect(port, host)
    let said = ''
    socket.on('data', (chunk) => {
      said += chunk
    })
    socket.on('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? 'error'))
    socket.on('close', () => resolve(said.trim()))
    socket.setTimeout(5000 * timeFactor, () => socket.destroy(new Error('silence')))
  })
/** The guest's server needs a moment between two calls. */
const answers = (port: number): Promise<unknown> =>
  pollUntil('the guest to answer', async () => (await call(port)) === 'guest', makeStep(10_000))

test("the host's own addresses are closed to a guest, unless its driver opens them", async (t) => {
  const address = hostAddress()
  if (address === undefined) return t.skip('this host has no address but its loopback')
  await using server = await hello(address)
  await guest.sh(`nc -w 1 ${address} ${server.port} </dev/null`)
  assert.equal(server.calls(), 0)
  await using open = await qemuUnderTest('qemu', agentManners, { allowHostAccess: true })
  await using trusted = await runGuest(open, rootfs)
  assert.equal(await trusted.sh(`nc -w ${PATIENCE_S} ${address} ${server.port} </dev/null`), 'hello from the host')
})

test('a guest has the addresses and the large frames that it was promised, and no others', async () => {
  const link = await guest.sh('ip addr show dev eth0')
  assert.match(link, / mtu 65520 /)
  assert.match(link, /link\/ether 02:00:00:00:00:01 /)
  const addresses = [...link.matchAll(/inet6? (\S+).* scope global/g)].map(([, address]) => address)
  assert.deepEqual(addresses, ['10.0.2.15/24', 'fdd0:6d05:e000::15/64'])
})

test('names are resolved by way of the host', async (t) => {
  const answer = await guest.sh('cat /etc/resolv.conf; nslookup localhost.invalid 10.0.2.3')
  assert.match(answer, /nameserver 10\.0\.2\.3/)
  if (!/NXDOMAIN|can't find|SERVFAIL|REFUSED/i.test(answer)) t.diagnostic(answer)
})

test("the host's loopback is closed to a guest, by whatever address it tries", async () => {
  await using onLoopback = await hello('127.0.0.1')
  await using everywhere = await hello('0.0.0.0')
  await using six = await hello('::')
  await guest.sh('ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.0/8 via 10.0.2.2')
  for (const address of ['10.0.2.2', '127.0.0.1', '127.1.2.3']) {
    for (const { port } of [onLoopback, everywhere]) await guest.sh(`nc -w 1 ${address} ${port} </dev/null`)
  }
  for (const address of ['fdd0:6d05:e000::2', '::ffff:127.0.0.1']) await guest.sh(`nc -w 1 ${address} ${six.port} </dev/null`)
  assert.deepEqual([onLoopback.calls(), everywhere.calls(), six.calls()], [0, 0, 0])
  await guest.sh('ip route del 127.0.0.0/8 via 10.0.2.2; ip addr add 127.0.0.1/8 dev lo')
})

test('link-local addresses, where clouds keep credentials, are closed to a guest', async () => {
  assert.doesNotMatch(await guest.sh('nc -w 1 169.254.169.254 80 </dev/null; echo $?'), /^0$/m)
})

test('ports are published and withdrawn while the VM runs, and the rest does not notice', async () => {
  const [first, second] = [await freePort(), await freePort()]
  await guest.vm.setPorts([tcp(first)], makeStep())
  await answers(first)
  await guest.vm.setPorts([tcp(first)], makeStep())
  await guest.vm.setPorts([tcp(first), tcp(second)], makeStep())
  await answers(first)
  await answers(second)
  await guest.vm.setPorts([tcp(second)], makeStep())
  assert.equal(await call(first), 'ECONNREFUSED')
  await answers(second)
  await guest.vm.setPorts([], makeStep())
  assert.equal(await call(second), 'ECONNREFUSED')
})

test('a client on the host reaches a port that is published on its IPv6 loopback', async (t) => {
  if (!Object.values(networkInterfaces()).some((addresses) => addresses?.some(({ address }) => address === '::1')))
    return t.skip('this host has no IPv6 loopback')
  const port = await freePort()
  await guest.vm.setPorts([tcp(port, 80, '::1')], makeStep())
  await pollUntil('the guest to answer', async () => (await call(port, '::1')) === 'guest', makeStep(10_000))
  await guest.vm.setPorts([], makeStep())
})

test('a taken port changes nothing', async () => {
  const mine = await freePort()
  const wanted = await freePort()
  await using other = await hello('127.0.0.1')
  await guest.vm.setPorts([tcp(mine)], makeStep())
  await assert.rejects(guest.vm.setPorts([tcp(wanted), tcp(other.port)], makeStep()), { code: 'port_in_use' })
  await answers(mine)
  assert.equal(await call(wanted), 'ECONNREFUSED')
  await guest.vm.setPorts([], makeStep())
})

test('datagrams reach a published port and come back, over IPv4 and IPv6', async (t) => {
  await guest.sh('udp-echo 7 >/dev/null 2>&1 &')
  const hasSix = Object.values(networkInterfaces()).some((addresses) => addresses?.some(({ address }) => address === '::1'))
  if (!hasSix) t.diagnostic('this host has no IPv6 loopback')
  for (const hostIp of ['127.0.0.1', ...(hasSix ? ['::1'] : [])]) {
    const port = await freePort()
    await guest.vm.setPorts([{ protocol: 'udp', hostIp, hostPort: port, guestPort: 7 }], makeStep())
    const socket = dgram.createSocket(hostIp === '::1' ? 'udp6' : 'udp4')
    const answer = once(socket, 'message', { signal: AbortSignal.timeout(10_000) })
    const asking = setInterval(() => socket.send('ping', port, hostIp), 100)
    try {
      assert.equal(String((await answer)[0]), 'ping', hostIp)
    } finally {
      clearInterval(asking)
      socket.close()
      await guest.vm.setPorts([], makeStep())
    }
  }
})

test('a start with a taken port is refused before anything has been started', async () => {
  await using taken = await hello('127.0.0.1')
  const spec = await driver.makeSpec({ nic: { mac: '02:00:00:00:00:02', backend: 'user', ports: [tcp(taken.port)] } })
  await assert.rejects(driver.hypervisor.start(spec, makeStep()), { code: 'port_in_use' })
  assert.deepEqual(await driver.leftovers(spec), [])
})

test('what passes is counted from the guest’s side', async () => {
  const before = await guest.vm.usage()
  // No one listens there, but it has left the guest.
  await guest.sh('for i in 1 2 3; do ping -c 1 -w 2 -s 30000 10.0.2.2; done')
  const later = await guest.vm.usage()
  assert.ok(before && later)
  assert.ok(later.networkTxBytes - before.networkTxBytes >= 64 * 1024)
})

test('a guest is as fast as it may be, both ways, within a tenth', async () => {
  const [down, up] = [await freePort(), await freePort()]
  await guest.vm.setPorts([tcp(down, 81), tcp(up, 82)], makeStep())
  await guest.sh('(sleep 1000 | nc -l -p 81 >/dev/null) >/dev/null 2>&1 & (nc -l -p 82 </dev/zero) >/dev/null 2>&1 &')
  const listening = async (): Promise<boolean> => (await guest.sh("netstat -ltn | grep -c ':8[12] '")) === '2'
  await pollUntil('the guest to listen', listening, makeStep(10_000))
  const [rate, slower] = [rateHere(1_000_000), rateHere(400_000)]
  await guest.vm.setBandwidth({ downloadBps: rate, uploadBps: slower }, makeStep())
  {
    const socket = net.connect(down, '127.0.0.1')
    const block = Buffer.alloc(1 << 16)
    const push = (): void => {
      while (socket.write(block));
    }
    socket.on('error', () => undefined)
    socket.on('drain', push)
    socket.once('connect', push)
    const received = async (): Promise<number> => Number(await guest.sh('cat /sys/class/net/eth0/statistics/rx_bytes'))
    await assertPace('to the guest', rate, received)
    socket.destroy()
  }
  {
    const socket = net.connect(up, '127.0.0.1')
    socket.on('error', () => undefined)
    socket.resume()
    await assertPace('from the guest', slower, async () => socket.bytesRead)
    await guest.vm.setBandwidth({}, makeStep())
    const free = await paceOf(async () => socket.bytesRead)
    assert.ok(free > 1.5 * slower, `${Math.round(free)} bytes a second from a guest without a limit`)
    socket.destroy()
  }
  await guest.vm.setPorts([], makeStep())
})

test('a network helper that dies comes back with the ports it had', async () => {
  const port = await freePort()
  await guest.vm.setPorts([tcp(port)], makeStep())
  process.kill(helperPid(), 'SIGKILL')
  await answers(port)
  await guest.vm.setPorts([], makeStep())
})

test('a network helper has given up system calls, and one that dies of making such a call comes back like any other', async () => {
  const port = await freePort()
  await guest.vm.setPorts([tcp(port)], makeStep())
  const pid = helperPid()
  const status = await readFile(`/proc/${pid}/status`, 'utf8')
  assert.match(status, /^NoNewPrivs:\t1$/m)
  assert.match(status, /^Seccomp:\t2$/m)
  process.kill(pid, 'SIGSYS')
  await answers(port)
  assert.match(await readFile(guest.spec.logs.vmm, 'utf8'), /the network helper ended \(SYS 31\), starting another/)
  await guest.vm.setPorts([], makeStep())
})

test('a guest whose way out is a proxy reaches it, is refused what it opens itself, and serves as ever, also after its helper has died', async () => {
  // As with the proxy of an instance, no path leads the VM's user to it.
  const closed = join(driver.dir, 'closed')
  await mkdir(join(closed, 'guest'), { recursive: true })
  await chmod(closed, 0o700)
  await chmod(join(closed, 'guest'), 0o711)
  const socket = join(closed, 'guest/proxy.sock')
  const proxy = net.createServer((connection) => {
    connection.on('error', () => undefined)
    connection.end('hello from the proxy\n')
  })
  proxy.listen(socket)
  await once(proxy, 'listening')
  await using _proxy = { [Symbol.asyncDispose]: async () => void proxy.close() }
  await chmod(socket, 0o666)
  // A server for each life of the helper: the one that answers as it dies waits for the end of its connection for ever.
  const served = [await freePort(), await freePort()]
  const ports = served.map((port, life) => tcp(port, 80 + life))
  await using mediated = await runGuest(driver, rootfs, {
    nic: { mac: '02:00:00:00:00:01', backend: 'user', ports, egress: { socket, mode: 'all' } },
  })
  await mediated.sh('for port in 80 81; do (while :; do echo guest | nc -l -p $port; done) >/dev/null 2>&1 & done')
  const [first] = helpersOf(mediated)
  for (const [life, port] of served.entries()) {
    const isLedOut = async (): Promise<boolean> =>
      (await mediated.sh(`nc -w ${PATIENCE_S} 10.0.2.4 3128 </dev/null`)) === 'hello from the proxy'
    await pollUntil('the proxy to be reached', isLedOut, makeStep(20_000))
    for (const host of ['192.0.2.1 8080', '2001:db8::1 443', '10.0.2.2 80', '10.0.2.4 80']) {
      assert.match(await mediated.sh(`nc -w ${4 * PATIENCE_S} ${host} </dev/null`), /Connection refused/, host)
    }
    await answers(port)
    if (life === 0) process.kill(Number(first), 'SIGKILL')
  }
  assert.notDeepEqual(helpersOf(mediated), [first])
})

test('a port below 1024 can be published, though the helper is no one special', async (t) => {
  if (process.geteuid?.() !== 0) return t.skip('only a daemon that is root can lend this right')
  const port = 1023
  await guest.vm.setPorts([tcp(port, 80, '127.0.0.77')], makeStep())
  await pollUntil('the guest to answer', async () => (await call(port, '127.0.0.77')) === 'guest', makeStep(10_000))
  await guest.vm.setPorts([], makeStep())
})
