/** Instances on a bridge, by way of the API: a host, two guests and a neighbour, in network namespaces of the test's own. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import dgram from 'node:dgram'
import { once } from 'node:events'
import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { HOST, ip, type Lab, makeLab, nft, OUTSIDE } from '../harness/bridged-lab.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { inOwnNetwork } from '../harness/own-network.ts'
import { assertPace, paceOf, rateHere } from '../harness/pace.ts'
import { PATIENCE_S, timeFactor } from '../harness/slow-host.ts'

interface Shown {
  readonly id: string
  readonly name: string
  readonly state: string
  readonly operation?: string
  readonly network: { readonly ip: string; readonly mac: string; readonly ports: readonly { readonly host_port: number }[] }
}

const BRIDGE = 'dormouse0'
const GATEWAY = { ipv4: '10.100.0.1', ipv6: 'fdd0:6d05:e001::1' }
const IMAGE = 'test/bridged:latest'
const soon = (ms = 20_000): { signal: AbortSignal } => ({ signal: AbortSignal.timeout(ms) })

if (inOwnNetwork(import.meta.filename)) {
  let lab: Lab
  let daemon: DaemonProcess
  let a: Shown
  let b: Shown

  before(async () => {
    lab = await makeLab()
    for (const program of ['udp-echo', 'advertise'])
      execFileSync('gcc', ['-O1', '-static', '-o', join(lab.dir, program), join(import.meta.dirname, `../harness/${program}.c`)])
    daemon = await startDaemon({ dir: join(lab.dir, 'd'), env: { DORMOUSE_NETWORK: 'bridged' } })
    const { path } = await makeBusyboxImage(join(lab.dir, 'image'), {
      files: { '/www/index.html': 'a page from a guest\n' },
      programs: { '/bin/udp-echo': join(lab.dir, 'udp-echo'), '/bin/advertise': join(lab.dir, 'advertise') },
      // A server that is there from the start, with one for datagrams beside it.
      cmd: ['/bin/sh', '-c', 'udp-echo 7 & exec httpd -f -p 80 -h /www'],
    })
    await importImage(daemon, path, IMAGE)
    a = await create('a')
    b = await create('b')
  })
  after(async () => {
    await daemon?.[Symbol.asyncDispose]()
    await lab?.[Symbol.asyncDispose]()
  })

  const create = (name: string, network: object = {}): Promise<Shown> =>
    daemon.client.post<Shown>('/instances?wait=running', { name, image: IMAGE, size: '256MB', vcpus: 1, overlay_size: '64MB', network })
  const get = (name: string): Promise<Shown> => daemon.client.get<Shown>(`/instances/${name}`)

  async function sh(name: string, script: string): Promise<string> {
    const { stdout, stderr } = await execOverApi(daemon.socket, name, { command: ['/bin/sh', '-c', script] })
    return `${stdout}${stderr}`.trim()
  }
  /** What a page says, or why there is none. */
  const page = async (url: string, ms = 3000): Promise<string> =>
    fetch(url, { signal: AbortSignal.timeout(ms) }).then(
      async (answer) => (await answer.text()).trim(),
      (error: Error) => String((error.cause as NodeJS.ErrnoException | undefined)?.code ?? error.name),
    )
  const PAGE = 'a page from a guest'
  const pageOutside = (host: string, port: number): Promise<string> =>
    lab.outside('/bin/sh', '-c', `printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w ${PATIENCE_S} ${host} ${port} | tail -n 1`)
  const devices = (): string[] => readdirSync('/sys/class/net').filter((name) => /^[du][0-9a-f]{2}-/.test(name))
  const tapOf = ({ id }: Shown): string =>
    devices().find((name) => name.startsWith('d') && name.endsWith(id.slice(0, 11))) ?? `no TAP of ${id}`

  async function echoed(host: string, port: number): Promise<string> {
    const socket = dgram.createSocket(host.includes(':') ? 'udp6' : 'udp4')
    const asking = setInterval(() => socket.send('ping', port, host), 200)
    try {
      const [answer] = await once(socket, 'message', { signal: AbortSignal.timeout(5000) })
      return String(answer)
    } catch {
      return 'silence'
    } finally {
      clearInterval(asking)
      socket.close()
    }
  }

  test('each guest has an address of the subnet, and the API says which network that is', async () => {
    assert.deepEqual([a.network.ip, b.network.ip], ['10.100.0.2', '10.100.0.3'])
    assert.notEqual(a.network.mac, b.network.mac)
    const link = await sh('a', 'ip addr show dev eth0')
    assert.match(link, new RegExp(`link/ether ${a.network.mac} `))
    const addresses = [...link.matchAll(/inet6? (\S+).* scope global/g)].map(([, address]) => address)
    assert.deepEqual(addresses, ['10.100.0.2/16', 'fdd0:6d05:e001::2/64'])
    const { network } = await daemon.client.get<{ network: object }>('/capabilities')
    assert.deepEqual(network, { model: 'bridge', guest_to_guest: false, gateway: GATEWAY.ipv4, subnet: '10.100.0.0/16' })
  })

  test('guests reach the outside from the host’s address, over IPv4 and IPv6', async () => {
    assert.equal(await sh('a', `nc -w ${PATIENCE_S} ${OUTSIDE.ipv4} 9000 </dev/null`), `called by ${HOST.ipv4}`)
    assert.equal(await sh('b', `nc -w ${PATIENCE_S} ${OUTSIDE.ipv6} 9000 </dev/null`), `called by ${HOST.ipv6}`)
    assert.match(
      await sh('a', `ping -c 1 -w ${PATIENCE_S} ${GATEWAY.ipv4}; ping -6 -c 1 -w ${PATIENCE_S} ${GATEWAY.ipv6}`),
      /1 packets received[\s\S]*1 packets received/,
    )
  })

  test('names are resolved by way of the gateway', async () => {
    assert.match(await sh('a', 'cat /etc/resolv.conf'), new RegExp(`nameserver ${GATEWAY.ipv4}`))
    assert.match(await sh('a', 'nslookup some.where.test'), new RegExp(OUTSIDE.answer))
  })

  test('the host reaches a guest; a guest does not reach the other, by any address', async () => {
    assert.equal(await page(`http://${a.network.ip}/`), PAGE)
    const linkLocal = /inet6 (fe80::\S+)\//.exec(await sh('b', 'ip addr show dev eth0'))?.[1]
    for (const address of [b.network.ip, 'fdd0:6d05:e001::3', `${linkLocal}%eth0`]) {
      assert.doesNotMatch(
        await sh(
          'a',
          `wget -T 2 -q -O - http://${address.includes(':') ? `[${address}]` : address}/ || nc -w 2 ${address} 80 </dev/null && echo reached`,
        ),
        /page|reached/,
        address,
      )
    }
    // Told the way by hand, through the gateway.
    await sh('a', `ip route add ${b.network.ip} via ${GATEWAY.ipv4}`)
    assert.doesNotMatch(await sh('a', `nc -w 2 ${b.network.ip} 80 </dev/null && echo reached`), /reached/)
    await sh('a', `ip route del ${b.network.ip}`)
  })

  test('what a guest sends from an address or a card that is not its own is dropped', async () => {
    const callsBefore = (await lab.counts()).calls
    // An address that no one has, and the other guest's.
    for (const address of ['10.100.0.77', b.network.ip]) {
      await sh(
        'a',
        `ip addr add ${address}/32 dev lo; nc -s ${address} -w 2 ${OUTSIDE.ipv4} 9000 </dev/null; arping -c 2 -w 2 -U -s ${address} -I eth0 ${address}; ip addr del ${address}/32 dev lo`,
      )
    }
    await sh(
      'a',
      `ip addr add fdd0:6d05:e001::77/128 dev lo; nc -s fdd0:6d05:e001::77 -w 2 ${OUTSIDE.ipv6} 9000 </dev/null; ip addr del fdd0:6d05:e001::77/128 dev lo`,
    )
    const { mac } = a.network
    await sh(
      'a',
      `ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; ip link set eth0 up; ip route add default via ${GATEWAY.ipv4}; nc -w 2 ${OUTSIDE.ipv4} 9000 </dev/null`,
    )
    assert.equal((await lab.counts()).calls, callsBefore)
    assert.doesNotMatch(
      ip('neigh', 'show', 'dev', BRIDGE),
      new RegExp(`${b.network.ip} lladdr (${mac}|02:00:00:00:00:99)|10\\.100\\.0\\.77 lladdr`),
    )
    await sh(
      'a',
      `ip link set eth0 down; ip link set eth0 address ${mac}; ip link set eth0 up; ip route add default via ${GATEWAY.ipv4}; ip -6 addr add fdd0:6d05:e001::2/64 dev eth0; ip -6 route add default via ${GATEWAY.ipv6}`,
    )
    assert.equal(await sh('a', `nc -w ${PATIENCE_S} ${OUTSIDE.ipv4} 9000 </dev/null`), `called by ${HOST.ipv4}`)
  })

  test('a guest does not speak for the address of another', async () => {
    const other = 'fdd0:6d05:e001::3'
    const heard = (): string => /lladdr (\S+)/.exec(ip('-6', 'neigh', 'show', other, 'dev', BRIDGE))?.[1] ?? 'nothing'
    // What follows it on the same wire has been answered, so it has been seen to.
    const advertise = (): Promise<string> =>
      sh('a', `advertise ${other} ${a.network.mac} && ping -6 -c 1 -w ${PATIENCE_S} ${GATEWAY.ipv6} >/dev/null && echo sent`)
    // An address that the kernel still asks others for is none to send from: the bit for that is 0x40.
    await sh('a', "while grep -q ' [4-7c-f]. *eth0$' /proc/net/if_inet6; do sleep 0.1; done")
    assert.equal(await page(`http://[${other}]/`), PAGE)
    assert.equal(heard(), b.network.mac)
    assert.equal(await advertise(), 'sent')
    assert.equal(heard(), b.network.mac)
    // Without its rules the host believes it: so it was they.
    nft('flush', 'chain', 'bridge', BRIDGE, 'from_guest')
    assert.equal(await advertise(), 'sent')
    assert.equal(heard(), a.network.mac)
    const isMended = async (): Promise<boolean> => nft('list', 'chain', 'bridge', BRIDGE, 'from_guest').includes('nd-neighbor-advert')
    await pollUntil('the rules to be put back', isMended, soon(60_000))
    ip('-6', 'neigh', 'replace', other, 'dev', BRIDGE, 'nud', 'failed')
    assert.equal(await page(`http://[${other}]/`), PAGE)
  })

  test('the host’s own addresses and those where clouds keep credentials are closed to guests', async () => {
    let calls = 0
    const server = net.createServer((socket) => {
      calls++
      socket.end('reached\n')
    })
    ip('addr', 'add', '169.254.169.254/32', 'dev', 'lo')
    ip('addr', 'add', 'fd00:ec2::254/128', 'dev', 'lo')
    server.listen(4444, '::')
    await once(server, 'listening')
    try {
      for (const address of [
        GATEWAY.ipv4,
        HOST.ipv4,
        '127.0.0.1',
        '169.254.169.254',
        GATEWAY.ipv6,
        HOST.ipv6,
        'fd00:ec2::254',
        '::ffff:127.0.0.1',
      ]) {
        await sh(
          'a',
          `ip addr del 127.0.0.1/8 dev lo 2>/dev/null; ip route replace 127.0.0.0/8 via ${GATEWAY.ipv4} 2>/dev/null; nc -w 1 ${address} 4444 </dev/null`,
        )
      }
      assert.equal(calls, 0)
    } finally {
      await sh('a', 'ip route del 127.0.0.0/8; ip addr add 127.0.0.1/8 dev lo')
      server.close()
      ip('addr', 'del', '169.254.169.254/32', 'dev', 'lo')
      ip('addr', 'del', 'fd00:ec2::254/128', 'dev', 'lo')
    }
  })

  test('ports are published to the outside and to the host itself, move while it runs, and close with it', async () => {
    const web = { host_port: 8080, guest_port: 80 }
    const six = { host_port: 8081, guest_port: 80, host_ip: '::' }
    const one = { host_port: 8082, guest_port: 80, host_ip: HOST.ipv4 }
    const echo = { host_port: 8083, guest_port: 7, protocol: 'udp' }
    const echoSix = { host_port: 8083, guest_port: 7, protocol: 'udp', host_ip: '::' }
    await daemon.client.patch(`/instances/${a.id}`, { network: { ports: [web, six, one, echo, echoSix] } })
    assert.equal(await pageOutside(HOST.ipv4, 8080), PAGE)
    assert.equal(await pageOutside(HOST.ipv6, 8081), PAGE)
    for (const host of ['127.0.0.1', HOST.ipv4, GATEWAY.ipv4]) assert.equal(await page(`http://${host}:8080/`), PAGE, host)
    assert.equal(await page(`http://[${HOST.ipv6}]:8081/`), PAGE)
    assert.equal(await page(`http://${HOST.ipv4}:8082/`), PAGE)
    assert.equal(await page('http://127.0.0.1:8082/'), 'ECONNREFUSED')
    for (const host of ['127.0.0.1', HOST.ipv4, HOST.ipv6]) assert.equal(await echoed(host, 8083), 'ping', host)

    // Closed as the host's addresses are.
    assert.doesNotMatch(await sh('b', `nc -w 2 ${HOST.ipv4} 8080 </dev/null && echo reached`), /reached/)
    const taken = await daemon.client.call<{ code: string; message: string }>('PATCH', `/instances/${b.id}`, { network: { ports: [web] } })
    assert.deepEqual([taken.status, taken.body.code], [409, 'port_in_use'])
    assert.match(taken.body.message, /instance a/)
    const other = net.createServer().listen(8090)
    await once(other, 'listening')
    const held = await daemon.client.call<{ code: string }>('PATCH', `/instances/${b.id}`, {
      network: { ports: [{ host_port: 8090, guest_port: 80 }] },
    })
    assert.deepEqual([held.status, held.body.code], [409, 'port_in_use'])
    other.close()

    await daemon.client.patch(`/instances/${a.id}`, { network: { ports: [{ host_port: 0, guest_port: 80 }] } })
    const chosen = (await get('a')).network.ports[0]?.host_port ?? 0
    assert.equal(await page(`http://127.0.0.1:${chosen}/`), PAGE)
    assert.equal(await page('http://127.0.0.1:8080/'), 'ECONNREFUSED')
    await daemon.client.post(`/instances/${a.id}/stop`, {})
    assert.equal(await page(`http://127.0.0.1:${chosen}/`), 'ECONNREFUSED')
    assert.match(tapOf(a), /no TAP/)
    await daemon.client.post(`/instances/${a.id}/start?wait=running`, {})
    assert.equal((await get('a')).network.ip, a.network.ip)
    await pollUntil('the page', async () => (await page(`http://127.0.0.1:${chosen}/`)) === PAGE, soon())
    await daemon.client.patch(`/instances/${a.id}`, { network: { ports: [web] } })
  })

  test('a guest is as fast as it may be, both ways, within a tenth, and stays so over a restore', async () => {
    const [down, up] = [rateHere(1_000_000), rateHere(500_000)]
    await daemon.client.patch(`/instances/${a.id}`, { network: { bandwidth_download: `${down * 8}bps`, bandwidth_upload: `${up * 8}bps` } })
    const received = async (): Promise<number> => Number(await sh('a', 'cat /sys/class/net/eth0/statistics/rx_bytes'))
    const moved = (from: readonly [number, number], to: readonly [number, number]): [number, number] => [to[0] - from[0], to[1] - from[1]]
    const counted = async (): Promise<readonly [number, number]> => {
      const { network_rx_bytes, network_tx_bytes } = await daemon.client.get<{ network_rx_bytes: number; network_tx_bytes: number }>(
        `/instances/${a.id}/stats`,
      )
      return [network_rx_bytes, network_tx_bytes]
    }
    const measure = async (): Promise<void> => {
      const start = await counted()
      await sh('a', `(sleep 1000 | nc ${OUTSIDE.ipv4} 9001 >/dev/null) >/dev/null 2>&1 &`)
      await assertPace('to the guest', down, received)
      await sh('a', 'killall sleep nc')
      const middle = await counted()
      await sh('a', `(nc ${OUTSIDE.ipv4} 9002 </dev/zero) >/dev/null 2>&1 &`)
      await assertPace('from the guest', up, async () => (await lab.counts()).takenBytes)
      await sh('a', 'killall nc')
      const end = await counted()
      const [[taken, answers], [asks, sent]] = [moved(start, middle), moved(middle, end)]
      assert.ok(taken > 3 * down && taken > answers, `${taken} bytes to the guest were counted, and ${answers} from it`)
      assert.ok(sent > 3 * up && sent > asks, `${sent} bytes from the guest were counted, and ${asks} to it`)
    }
    await measure()
    await daemon.client.post(`/instances/${a.id}/standby`, {})
    await daemon.client.post(`/instances/${a.id}/restore`)
    await measure()
    await daemon.client.patch(`/instances/${a.id}`, { network: { bandwidth_download: '0', bandwidth_upload: '0' } })
    assert.equal(devices().filter((name) => name.startsWith('u')).length, 0)
    await sh('a', `(nc ${OUTSIDE.ipv4} 9002 </dev/zero) >/dev/null 2>&1 &`)
    assert.ok((await paceOf(async () => (await lab.counts()).takenBytes)) > 1.5 * up)
    await sh('a', 'killall nc')
  })

  test('a guest that slept has its address and its card, and is reached at once; its port was closed meanwhile', async () => {
    const before = await get('a')
    await daemon.client.post(`/instances/${a.id}/standby`, {})
    // Behind the answer, before anything else is done with it.
    await pollUntil('the port to close', async () => (await page('http://127.0.0.1:8080/', 500)) === 'ECONNREFUSED', soon(5000))
    assert.match(tapOf(a), /no TAP/)
    await daemon.client.post(`/instances/${a.id}/restore`)
    assert.match(execFileSync('bridge', ['fdb', 'show', 'dev', tapOf(a)], { encoding: 'utf8' }), new RegExp(`^${before.network.mac} `, 'm'))
    const from = performance.now()
    assert.equal(await pageOutside(HOST.ipv4, 8080), PAGE)
    assert.ok(performance.now() - from < 1500 * timeFactor, `it took ${performance.now() - from} ms`)
    const now = await get('a')
    assert.deepEqual([now.network.ip, now.network.mac], [before.network.ip, before.network.mac])
    assert.equal(await sh('a', `nc -w ${PATIENCE_S} ${OUTSIDE.ipv4} 9000 </dev/null`), `called by ${HOST.ipv4}`)
  })

  test('a fork has an address and a card of its own, and its source keeps its own', async () => {
    const twin = await daemon.client.post<Shown>(`/instances/${a.id}/fork`, {
      name: 'twin',
      from_running: true,
      network: { ports: [{ host_port: 8084, guest_port: 80 }] },
    })
    assert.notEqual(twin.network.ip, a.network.ip)
    assert.notEqual(twin.network.mac, a.network.mac)
    assert.match(await sh('twin', 'ip addr show dev eth0'), new RegExp(`${twin.network.mac}[\\s\\S]*inet ${twin.network.ip}/16`))
    for (const port of [8080, 8084]) assert.equal(await pageOutside(HOST.ipv4, port), PAGE)
    for (const name of ['a', 'twin'])
      assert.equal(await sh(name, `nc -w ${PATIENCE_S} ${OUTSIDE.ipv4} 9000 </dev/null`), `called by ${HOST.ipv4}`)
    await daemon.client.delete(`/instances/${twin.id}`)
    assert.equal(await page('http://127.0.0.1:8084/'), 'ECONNREFUSED')
  })

  test('rules that were flushed and a bridge that was removed are put back with the next instance', async () => {
    nft('flush', 'ruleset')
    ip('link', 'delete', BRIDGE)
    assert.notEqual(await page('http://127.0.0.1:8080/', 1000), PAGE)
    const c = await create('c')
    assert.equal(await page('http://127.0.0.1:8080/'), PAGE)
    for (const name of ['a', 'b', 'c'])
      assert.equal(await sh(name, `nc -w ${PATIENCE_S} ${OUTSIDE.ipv4} 9000 </dev/null`), `called by ${HOST.ipv4}`, name)
    await daemon.client.delete(`/instances/${c.id}`)
  })

  test('guests keep their network while the daemon is dead, and the next one adopts them', async () => {
    await daemon.kill()
    assert.equal(await page('http://127.0.0.1:8080/'), PAGE)
    const rules = nft('list', 'ruleset')
    daemon = await startDaemon({ dir: join(lab.dir, 'd'), env: { DORMOUSE_NETWORK: 'bridged' } })
    await pollUntil('both to run', async () => (await Promise.all([get('a'), get('b')])).every(({ state }) => state === 'Running'), soon())
    assert.equal(nft('list', 'ruleset'), rules)
    assert.equal(await page('http://127.0.0.1:8080/'), PAGE)
    assert.equal(await sh('b', `nc -w ${PATIENCE_S} ${OUTSIDE.ipv4} 9000 </dev/null`), `called by ${HOST.ipv4}`)
  })

  test('where the host is opened to guests they reach published ports by its addresses, each its own too; not each other', async () => {
    const env = { DORMOUSE_NETWORK: 'bridged' }
    const six = { host_port: 8081, guest_port: 80, host_ip: '::' }
    await daemon.client.patch(`/instances/${a.id}`, { network: { ports: [{ host_port: 8080, guest_port: 80 }, six] } })
    const fetched = (name: string, host: string, port: number, seconds = 3): Promise<string> =>
      sh(name, `printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w ${seconds} ${host} ${port} | tail -n 1`)
    const ways = [
      [HOST.ipv4, 8080],
      [GATEWAY.ipv4, 8080],
      [HOST.ipv6, 8081],
      [GATEWAY.ipv6, 8081],
    ] as const
    for (const name of ['a', 'b']) assert.doesNotMatch(await fetched(name, HOST.ipv4, 8080), /page/)
    await daemon.stop()
    daemon = await startDaemon({ dir: join(lab.dir, 'd'), env: { ...env, DORMOUSE_ALLOW_HOST_ACCESS: 'true' } })
    // What goes back to the bridge must be routed: see docs/networking.md.
    for (const file of ['bridge-nf-call-iptables', 'bridge-nf-call-ip6tables'].map((name) => `/proc/sys/net/bridge/${name}`))
      if (existsSync(file)) writeFileSync(file, '0')
    for (const name of ['a', 'b'])
      for (const [host, port] of ways) assert.equal(await fetched(name, host, port, PATIENCE_S), PAGE, `${name} by ${host}`)
    for (const address of [b.network.ip, 'fdd0:6d05:e001::3']) assert.doesNotMatch(await fetched('a', address, 80), /page/)
    await daemon.stop()
    daemon = await startDaemon({ dir: join(lab.dir, 'd'), env })
    for (const name of ['a', 'b']) assert.doesNotMatch(await fetched(name, HOST.ipv4, 8080), /page/)
    await daemon.client.patch(`/instances/${a.id}`, { network: { ports: [{ host_port: 8080, guest_port: 80 }] } })
  })

  test('what slept on the bridge is refused without one, with the reason, and wakes on the bridge again', async () => {
    const env = { DORMOUSE_NETWORK: 'bridged' }
    await create('sleeper')
    await daemon.client.post('/instances/sleeper/standby', {})
    for (const name of ['a', 'b']) await daemon.client.post(`/instances/${name}/standby`, {})
    await daemon.stop()
    daemon = await startDaemon({ dir: join(lab.dir, 'd') })
    const refused = await daemon.client.call<{ code: string; message: string }>('POST', '/instances/sleeper/restore')
    assert.deepEqual([refused.status, refused.body.code], [409, 'snapshot_unusable'])
    assert.match(refused.body.message, /its network was "tap", the instance's is "user"/)
    await daemon.stop()
    daemon = await startDaemon({ dir: join(lab.dir, 'd'), env })
    for (const name of ['a', 'b', 'sleeper']) await daemon.client.post(`/instances/${name}/restore`)
    assert.deepEqual([(await get('a')).network.ip, (await get('b')).network.ip], [a.network.ip, b.network.ip])
    assert.equal(await sh('sleeper', `nc -w ${PATIENCE_S} ${OUTSIDE.ipv4} 9000 </dev/null`), `called by ${HOST.ipv4}`)
    await daemon.client.delete('/instances/sleeper')
    assert.equal(await page('http://127.0.0.1:8080/'), PAGE)
  })

  test('when the instances are gone nothing of them is left', async () => {
    for (const { id } of [a, b]) await daemon.client.delete(`/instances/${id}`)
    assert.deepEqual(devices(), [])
    assert.doesNotMatch(nft('list', 'ruleset'), /elements = /)
  })
}
