/**
 * Instances whose way out is a proxy, in both kinds of network: a guest that has a mock asks a host of the outside, which is told the real
 * value. One process in the guest asks all the time, over sleep, forks and other daemons.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { Issuer, makeAuthority } from '../../packages/daemon/src/egress/certificates.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { findShims } from '../../packages/daemon/src/hypervisors/find-shims.ts'
import { type Lab, makeLab, OUTSIDE } from '../harness/bridged-lab.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { childrenOf } from '../harness/memory-holder.ts'
import { inOwnNetwork } from '../harness/own-network.ts'
import { programClosure } from '../harness/program-closure.ts'

interface Shown {
  readonly id: string
  readonly name: string
  readonly env: Readonly<Record<string, string>>
  readonly network: { readonly ports: readonly { readonly host_port: number }[] }
}

const NAME = 'api.example.test'
const IMAGE = 'test/egress:latest'
const PORT = 7000

/** `/ask`: what the host says, asked by way of the proxy; `/open?host=&port=`: how a connection of its own ends. */
const GUEST = `
const { createServer } = require('node:http'), { Agent, get } = require('node:https'), { createConnection } = require('node:net')
const headers = { authorization: 'Bearer ' + process.env.KEY }
// As any program that knows no more than its environment.
const ask = () => new Promise((resolve, reject) => {
  const agent = new Agent({ proxyEnv: process.env })
  get('https://${NAME}/', { agent, headers }, async (answer) => resolve(Buffer.concat(await answer.toArray()).toString())).on('error', reject)
})
const open = (host, port) => new Promise((resolve, reject) => {
  const socket = createConnection({ host, port }, () => { resolve('open'); socket.destroy() }).on('error', reject)
})
createServer(async ({ url }, response) => {
  const { pathname, searchParams } = new URL(url, 'http://guest')
  const done = pathname === '/ask' ? ask() : open(searchParams.get('host'), Number(searchParams.get('port')))
  response.setHeader('connection', 'close').end(await done.catch((error) => error.code ?? String(error)))
}).listen(${PORT}, '0.0.0.0')
`
/** Says what it was given to authorize with. */
const HOST_OF_NAME = `
const { createServer } = require('node:https'), { readFileSync } = require('node:fs')
const [key, cert] = process.argv.slice(1).map((file) => readFileSync(file))
createServer({ key, cert }, ({ headers }, response) => response.end(String(headers.authorization))).listen(443, '::', () => console.log('ready'))
`

if (inOwnNetwork(import.meta.filename)) {
  let lab: Lab
  let daemon: DaemonProcess

  before(async () => {
    lab = await makeLab()
    const outside = makeAuthority('outside', undefined, Date.now())
    const issuer = new Issuer(outside)
    const file = (name: string, content: string): string => {
      writeFileSync(join(lab.dir, name), content)
      return join(lab.dir, name)
    }
    await lab.serve(process.execPath, '-e', HOST_OF_NAME, file('key', issuer.key), file('certificate', issuer.issue(NAME, Date.now())))
    // Of this namespace of mounts alone.
    execFileSync('mount', ['--bind', file('hosts', `127.0.0.1 localhost\n${OUTSIDE.ipv4} ${NAME}\n`), '/etc/hosts'])
    file('authorities', outside.certificate)
    daemon = await begin('user')
    const { path } = await makeBusyboxImage(join(lab.dir, 'image'), {
      programs: await programClosure(process.execPath, '/bin/node'),
      files: { '/guest.js': GUEST },
      cmd: ['/bin/node', '/guest.js'],
    })
    await importImage(daemon, path, IMAGE)
  })
  after(async () => {
    await daemon?.[Symbol.asyncDispose]()
    execFileSync('umount', ['/etc/hosts'])
    await lab?.[Symbol.asyncDispose]()
  })

  /** In place of the one that there was. */
  async function begin(kind: 'user' | 'bridged'): Promise<DaemonProcess> {
    await daemon?.kill()
    return startDaemon({
      dir: join(lab.dir, 'd'),
      env: { DORMOUSE_NETWORK: kind, DORMOUSE_EGRESS_CA_FILE: join(lab.dir, 'authorities') },
    })
  }

  async function create(name: string, mode: 'all' | 'http_https_only'): Promise<Shown> {
    const made = await daemon.client.post<Shown>('/instances?wait=running', {
      ...{ name, image: IMAGE, size: '512MB', vcpus: 1, overlay_size: '64MB', env: { REAL_KEY: 'first' } },
      network: { egress: { enabled: true, enforcement: { mode } }, ports: [{ host_port: 0, guest_port: PORT }] },
      credentials: {
        KEY: { source: { env: 'REAL_KEY' }, inject: [{ as: { header: 'Authorization', format: `Bearer \${value}` }, hosts: [NAME] }] },
      },
    })
    // Its program takes its time to begin.
    await until(made, '/ask', 'Bearer first')
    return made
  }
  const fork = (name: string, as: string): Promise<Shown> =>
    daemon.client.post<Shown>(`/instances/${name}/fork?wait=running`, {
      ...{ name: as, from_running: true, network: { ports: [{ host_port: 0, guest_port: PORT }] } },
    })
  const rotate = (name: string, value: string): Promise<unknown> => daemon.client.patch(`/instances/${name}`, { env: { REAL_KEY: value } })

  const ask = ({ network }: Shown, path = '/ask'): Promise<string> =>
    fetch(`http://127.0.0.1:${network.ports[0]?.host_port}${path}`, { signal: AbortSignal.timeout(60_000) }).then((answer) => answer.text())
  const open = (guest: Shown, host: string, port: number): Promise<string> =>
    ask(guest, `/open?host=${encodeURIComponent(host)}&port=${port}`)
  async function until(guest: Shown, path: string, wanted: string): Promise<void> {
    let last = ''
    const holds = async (): Promise<boolean> => {
      last = await ask(guest, path).catch((error: Error) => String(error.cause ?? error))
      return last === wanted
    }
    await pollUntil(
      `${guest.name} to be told ${wanted}`,
      holds,
      { signal: AbortSignal.timeout(120_000) },
      { everyMs: 100, upToMs: 500 },
    ).catch((cause: unknown) => {
      throw new Error(`It is told ${last}`, { cause })
    })
  }
  /** The process itself, by what is kept of it. */
  const proxyOf = ({ id }: Shown): number =>
    (JSON.parse(readFileSync(join(daemon.paths.proxyRunDir(id), 'handle'), 'utf8')) as { proxy: { pid: number } }).proxy.pid
  const owner = (pid: number): number => Number(/^Uid:\t(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1])

  test('without a bridge: a guest has a mock, the host is told the value, and nothing else goes out', async () => {
    const a = await create('a', 'all')
    assert.deepEqual(a.env, { KEY: 'mock-KEY' })
    const { stdout } = await execOverApi(daemon.socket, 'a', { command: ['/bin/sh', '-c', 'echo "$KEY:$REAL_KEY"; env | grep -c first'] })
    assert.equal(stdout, 'mock-KEY:\n0\n')
    for (const host of [OUTSIDE.ipv4, OUTSIDE.ipv6]) {
      for (const port of [443, 9000]) assert.equal(await open(a, host, port), 'ECONNREFUSED', `${host} ${port}`)
    }
    // Neither root, nor the VM's user.
    const [shim] = await findShims(daemon.paths.vmRunDir(a.id))
    const children = await childrenOf(shim?.pid ?? assert.fail())
    const machine = children.find((pid) => readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('qemu'))
    const users = [owner(proxyOf(a)), owner(machine ?? assert.fail())]
    assert.ok(users.every((uid) => uid > 0) && users[0] !== users[1], `${users}`)

    const { host } = await daemon.client.get<{ host: { cgroups: { version: string } } }>('/capabilities')
    if (host.cgroups.version !== 'none')
      assert.match(readFileSync(`/proc/${proxyOf(a)}/cgroup`, 'utf8'), new RegExp(`/egress-${a.id}$`, 'm'))

    await rotate('a', 'second')
    assert.equal(await ask(a), 'Bearer second')
    await daemon.client.post('/instances/a/standby', {})
    const isGone = (): boolean => !existsSync(daemon.paths.proxyRunDir(a.id))
    await pollUntil('the proxy of a sleeper to be gone', isGone, { signal: AbortSignal.timeout(60_000) })
    await daemon.client.post('/instances/a/restore')
    await until(a, '/ask', 'Bearer second')
    const b = await fork('a', 'b')
    await until(b, '/ask', 'Bearer second')
    await rotate('b', 'of the fork')
    assert.deepEqual([await ask(a), await ask(b)], ['Bearer second', 'Bearer of the fork'])
  })

  test('a proxy outlives the daemon; one that died meanwhile is started again, and knows what is on record', async () => {
    const [a, b] = await Promise.all(['a', 'b'].map((name) => daemon.client.get<Shown>(`/instances/${name}`)))
    assert.ok(a && b)
    const [kept, gone] = [proxyOf(a), proxyOf(b)]
    await daemon.kill()
    assert.equal(await ask(a), 'Bearer second')
    process.kill(gone, 'SIGKILL')
    daemon = await begin('user')
    assert.equal(proxyOf(a), kept)
    await until(b, '/ask', 'Bearer of the fork')
    await rotate('a', 'third')
    assert.equal(await ask(a), 'Bearer third')
    await daemon.client.delete('/instances/a')
    await daemon.client.delete('/instances/b')
    assert.deepEqual(readdirSync(daemon.paths.proxiesDir), [])
    await daemon.stop()
  })

  test('on a bridge the same, where web servers alone are closed', async () => {
    daemon = await begin('bridged')
    const c = await create('c', 'http_https_only')
    for (const host of [OUTSIDE.ipv4, OUTSIDE.ipv6]) {
      assert.equal(await open(c, host, 443), 'ECONNREFUSED', host)
      assert.equal(await open(c, host, 9000), 'open', host)
    }
    await daemon.client.post('/instances/c/standby', {})
    await rotate('c', 'second')
    await daemon.client.post('/instances/c/restore')
    await until(c, '/ask', 'Bearer second')
    const d = await fork('c', 'd')
    await until(d, '/ask', 'Bearer second')
    await rotate('d', 'of the fork')
    assert.deepEqual([await ask(c), await ask(d)], ['Bearer second', 'Bearer of the fork'])
    await daemon.kill()
    assert.equal(await ask(c), 'Bearer second')
    daemon = await begin('bridged')
    // Its guest is led to another port.
    process.kill(proxyOf(d), 'SIGKILL')
    await until(d, '/ask', 'Bearer of the fork')
    await rotate('c', 'third')
    assert.equal(await ask(c), 'Bearer third')
  })
}
