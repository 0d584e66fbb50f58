/** The proxy of an instance as a process under its shim: what it is told, what it keeps from whom, and how it ends. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { type IncomingMessage, request } from 'node:http'
import { createServer } from 'node:https'
import { type AddressInfo, connect, createServer as createTcp, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { after, type TestContext, test } from 'node:test'
import { connect as connectTls } from 'node:tls'
import { Issuer, makeAuthority } from '../../packages/daemon/src/egress/certificates.ts'
import { EgressProxy, GUEST_SOCKET } from '../../packages/daemon/src/egress/egress-proxy.ts'
import type { ProxyOrder } from '../../packages/daemon/src/egress/proxy-order.ts'
import { NETWORK_SOCKET, NetworkHelper } from '../../packages/daemon/src/hypervisors/network-helper.ts'
import { Shim } from '../../packages/daemon/src/hypervisors/shim.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'
import { inOwnNetwork } from '../harness/own-network.ts'

const SECRET = 's3cret-of-the-host'
const NAME = 'api.example.test'
const OWN = '192.0.2.1'
const shimPath = join(REPOSITORY, 'build/shim/dormouse-shim')
const step = () => ({ signal: AbortSignal.timeout(60_000), log: silentLogger })

const outside = makeAuthority('outside', undefined, Date.now())
const authority = makeAuthority('web', [NAME], Date.now())
const order = (value: string, more: Partial<ProxyOrder> = {}): ProxyOrder => ({
  mediation: {
    authority,
    credentials: { KEY: { source: 'REAL', inject: [{ header: 'authorization', format: `Bearer \${value}`, hosts: [NAME] }] } },
    values: { REAL: value },
  },
  closedSubnets: [],
  opensHost: true,
  trusted: [outside.certificate],
  ...more,
})

function placeOf(t: TestContext): { runDir: string; logFile: string } {
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  mkdirSync(join(dir, 'run'))
  return { runDir: join(dir, 'run'), logFile: join(dir, 'log') }
}

async function proxyOf(t: TestContext) {
  const { runDir, logFile } = placeOf(t)
  const proxy = await EgressProxy.start({ shimPath, runDir, log: { file: logFile, maxBytes: 1 << 20 } }, step())
  t.after(() => proxy.kill())
  return { proxy, runDir, logFile }
}

/** A host of the outside that answers what it was given to authorize with. */
async function hostOf(t: TestContext): Promise<number> {
  const issuer = new Issuer(outside)
  const server = createServer({ key: issuer.key, cert: issuer.issue(NAME, Date.now()) }, ({ headers }, response) => {
    response.end(`${headers.authorization}`)
  })
  server.listen(0, OWN)
  await once(server, 'listening')
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  return (server.address() as AddressInfo).port
}

/** What the guest is told when it asks `host` by way of its proxy: a refusal of the proxy's, or the host's answer. */
async function ask(runDir: string, host: string): Promise<string> {
  const socketPath = join(runDir, GUEST_SOCKET)
  const asking = request({ socketPath, method: 'CONNECT', path: host, agent: false })
  asking.end()
  const [response, socket] = (await once(asking, 'connect')) as [IncomingMessage, Socket, Buffer]
  socket.on('error', () => undefined)
  if (response.statusCode !== 200) {
    socket.destroy()
    return `${response.statusCode}`
  }
  const tls = connectTls({ socket, servername: NAME, ca: authority.certificate })
  await once(tls, 'secureConnect')
  const inner = request({ createConnection: () => tls, headers: { host } })
  inner.end()
  const [answer] = (await once(inner, 'response')) as [IncomingMessage]
  const text = Buffer.concat(await Array.fromAsync(answer as AsyncIterable<Buffer>)).toString()
  tls.destroy()
  return text
}

if (inOwnNetwork(import.meta.filename)) {
  execFileSync('ip', ['address', 'add', `${OWN}/32`, 'dev', 'lo'])
  // Of this namespace of mounts alone.
  const names = mkdtempSync(join(tmpdir(), 'dm-'))
  writeFileSync(join(names, 'hosts'), `127.0.0.1 localhost\n${OWN} ${NAME}\n`, { mode: 0o644 })
  execFileSync('mount', ['--bind', join(names, 'hosts'), '/etc/hosts'])
  after(() => {
    execFileSync('umount', ['/etc/hosts'])
    rmSync(names, { recursive: true, force: true })
  })

  test('it does as it is told, at once when it is told anew, also for a daemon that has found it again', async (t) => {
    const port = await hostOf(t)
    const { proxy, runDir } = await proxyOf(t)
    // A guest that comes before its proxy knows what to do waits.
    const early = ask(runDir, `${NAME}:${port}`)
    await proxy.configure(order(SECRET), step())
    assert.equal(await early, `Bearer ${SECRET}`)
    proxy[Symbol.dispose]()
    const found = await EgressProxy.adopt(runDir, proxy.handle, step())
    assert.ok(found)
    assert.equal(await ask(runDir, `${NAME}:${port}`), `Bearer ${SECRET}`)
    await found.configure(order('rotated'), step())
    assert.equal(await ask(runDir, `${NAME}:${port}`), 'Bearer rotated')
    await found.kill()
    assert.equal(await EgressProxy.adopt(runDir, proxy.handle, step()), undefined)
  })

  test('one that comes after another is found where that one was', async (t) => {
    const { proxy, runDir, logFile } = await proxyOf(t)
    const place = statSync(join(runDir, dirname(GUEST_SOCKET))).ino
    await proxy.kill()
    const next = await EgressProxy.start({ shimPath, runDir, log: { file: logFile, maxBytes: 1 << 20 } }, step())
    t.after(() => next.kill())
    assert.equal(statSync(join(runDir, dirname(GUEST_SOCKET))).ino, place)
    await next.configure(order(SECRET), step())
    assert.equal(await ask(runDir, '127.0.0.1:1'), '403')
  })

  test('a VM that waits is led out by a proxy when it is known whose it is', async (t) => {
    const { runDir } = await proxyOf(t)
    const own = placeOf(t)
    const shim = await Shim.launch(
      {
        shimPath,
        runDir: own.runDir,
        ...(process.getuid?.() === 0 && { user: { uid: 650_000, gid: 650_000 } }),
        logs: [{ name: 'vmm', file: own.logFile, maxBytes: 1 << 20 }],
        waits: true,
        isolateNetwork: true,
        vmm: { argv: ['sleep', '1000'], descriptors: [{ number: 3, kind: 'pair', name: 'nic' }] },
        helper: {
          argv: [join(REPOSITORY, 'build/shim/dormouse-net'), '--rates', '0 1000000'],
          descriptors: [
            { number: 3, kind: 'pair', name: 'nic' },
            { number: 4, kind: 'listen', name: NETWORK_SOCKET },
            { number: 5, kind: 'blank' },
          ],
        },
      },
      step(),
    )
    t.after(() => shim.kill())
    const helpers = (): string[] =>
      execFileSync('pgrep', ['-P', `${shim.identity.pid}`, 'dormouse-net'], { encoding: 'utf8' })
        .trim()
        .split('\n')
    const before = helpers()
    const socket = join(runDir, GUEST_SOCKET)
    await assert.rejects(shim.giveProxy({ mode: 'all', socket: '/nowhere/at/all.sock' }, step()), /cannot be opened/)
    await shim.giveProxy({ mode: 'all', socket }, step())
    const [pid = '', ...others] = helpers()
    assert.ok(others.length === 0 && !before.includes(pid))
    const words = readFileSync(`/proc/${pid}/cmdline`, 'latin1').split('\0').slice(1, -1)
    assert.deepEqual(words, ['--egress', 'all', 'guest.sock', '--rates', '0 1000000'])
    assert.equal(readlinkSync(`/proc/${pid}/cwd`), dirname(socket))
    // It is sound: it answers, and publishes.
    const helper = new NetworkHelper(own.runDir)
    await helper.setPorts([{ protocol: 'tcp', hostIp: '127.0.0.1', hostPort: 8080, guestPort: 80 }], step())
    assert.deepEqual(await helper.traffic(), { toGuestBytes: 0, fromGuestBytes: 0 })
    await assert.rejects(shim.giveProxy({ mode: 'all', socket }, step()), /it has a proxy already/)
  })

  test('it goes no further than its guest may', async (t) => {
    const port = await hostOf(t)
    const { proxy, runDir } = await proxyOf(t)
    await proxy.configure(order(SECRET, { opensHost: false }), step())
    // The name is mediated, so that it is the host behind it which cannot be had.
    assert.match(await ask(runDir, `${NAME}:${port}`), /is closed to instances/)
    for (const host of [`${OWN}:${port}`, '127.0.0.1:1', '[::1]:1', '169.254.169.254:80', 'localhost:1']) {
      assert.equal(await ask(runDir, host), '403', host)
    }
    await proxy.configure(order(SECRET, { closedSubnets: ['192.0.2.0/24', 'fd00::/64'] }), step())
    assert.match(await ask(runDir, `${NAME}:${port}`), /is closed to instances/)
    await proxy.configure(order(SECRET), step())
    assert.equal(await ask(runDir, `${NAME}:${port}`), `Bearer ${SECRET}`)
  })

  test('where others reach its socket, no one but its guest is let in', async (t) => {
    const { runDir, logFile } = placeOf(t)
    // As the daemon hands it over: a socket that listens, by its descriptor.
    const listening = createTcp().listen(0, OWN)
    await once(listening, 'listening')
    const { fd } = (listening as unknown as { _handle: { fd: number } })._handle
    const { port } = listening.address() as AddressInfo
    const proxy = await EgressProxy.start({ shimPath, runDir, log: { file: logFile, maxBytes: 1 << 20 }, guestFd: fd }, step())
    t.after(() => proxy.kill())
    listening.close()
    const come = async (localAddress: string): Promise<string> => {
      const socket = connect({ host: OWN, port, localAddress })
      socket.on('error', () => undefined)
      socket.write('CONNECT 127.0.0.1:1 HTTP/1.1\r\nhost: x\r\n\r\n')
      return Buffer.concat(await Array.fromAsync(socket as AsyncIterable<Buffer>).catch(() => [])).toString()
    }
    await proxy.configure(order(SECRET, { guestAddress: '127.0.0.5' }), step())
    assert.match(await come('127.0.0.5'), /^HTTP\/1\.1 403 /)
    for (const address of ['127.0.0.6', OWN]) assert.equal(await come(address), '', address)
  })

  test('what it was told is nowhere to be read: no argument, environment, file or log, whatever it is told', async (t) => {
    const { proxy, runDir, logFile } = await proxyOf(t)
    await proxy.configure(order(SECRET), step())
    const control = connect(join(runDir, 'control.sock'))
    control.end(`{"mediation": ${SECRET}}\n`)
    const said = Buffer.concat(await Array.fromAsync(control as AsyncIterable<Buffer>)).toString()
    assert.equal(said, 'error SyntaxError\n')
    const { pid } = proxy.handle.proxy
    const told = ['cmdline', 'environ'].map((file) => readFileSync(`/proc/${pid}/${file}`, 'latin1'))
    const files = readdirSync(runDir).filter((name) => statSync(join(runDir, name)).isFile())
    const kept = [logFile, ...files.map((name) => join(runDir, name))].map((file) => readFileSync(file, 'latin1'))
    assert.ok(![...told, ...kept].some((text) => text.includes(SECRET) || text.includes('PRIVATE KEY')))
    assert.match(readFileSync(`/proc/${pid}/limits`, 'latin1'), /Max core file size +0 +0 /)
    const modes = ['.', 'control.sock', dirname(GUEST_SOCKET), GUEST_SOCKET].map((name) => statSync(join(runDir, name)).mode & 0o777)
    // Who is handed the guest's directory reaches its socket; no path leads there.
    assert.deepEqual(modes, [0o700, 0o600, 0o711, 0o666])
    // It opens no inspector.
    process.kill(pid, 'SIGUSR1')
    const ended = await Promise.race([proxy.ended, proxy.configure(order(SECRET), step()).then(() => 'runs')])
    assert.equal(typeof ended === 'string' ? ended : ended.kind, 'runs')
    assert.doesNotMatch(readFileSync(logFile, 'latin1'), /Debugger/)
  })
}
