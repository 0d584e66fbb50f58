/**
 * VMs that wait for instances on a bridge, which have waited behind a TAP of no one's: with real guests, in network namespaces of the
 * test's own.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { Shim } from '../../packages/daemon/src/hypervisors/shim.ts'
import { HOST, ip, type Lab, makeLab, OUTSIDE } from '../harness/bridged-lab.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { inOwnNetwork } from '../harness/own-network.ts'
import { artefacts, makeStep } from '../harness/qemu-driver.ts'
import { scratchDir } from '../harness/scratch.ts'
import { PATIENCE_S } from '../harness/slow-host.ts'

interface Line {
  readonly msg?: string
  readonly origin?: string
  readonly instance?: string
}

interface Shown {
  readonly id: string
  readonly network: { readonly ip: string; readonly mac: string }
}

/** What a card sends at once that leaves the cutting to no one: the MTU and a head. */
const LARGEST_UNCUT = 1514

if (inOwnNetwork(import.meta.filename)) {
  const devices = (prefix: string): string[] => readdirSync('/sys/class/net').filter((name) => name.startsWith(prefix))

  test('a card that waits behind one TAP is put behind another, and the first is gone', async (t) => {
    const dir = await scratchDir(t)
    const runDir = join(dir, 'run')
    await mkdir(runDir, { mode: 0o700 })
    const log = { file: join(dir, 'log'), maxBytes: 1 << 20 }
    const launch = (waits: boolean, tap: string): Promise<Shim> =>
      Shim.launch(
        {
          ...{ shimPath: artefacts.shimPath, runDir, waits, isolateNetwork: true },
          logs: (['app', 'vmm', 'journal'] as const).map((name) => ({ name, ...log })),
          vmm: { argv: ['bash', '-c', 'exec sleep 1000'], descriptors: [{ number: 18, kind: 'tap', name: tap }] },
        },
        makeStep(20_000),
      )
    {
      using shim = await launch(true, 'dmwait%d')
      t.after(() => shim.kill())
      assert.deepEqual(devices('dmwait'), ['dmwait0'])
      await assert.rejects(shim.takeTap('mine', makeStep()), /there is no TAP mine/)
      assert.deepEqual(devices('dmwait'), ['dmwait0'])
      ip('tuntap', 'add', 'dev', 'mine', 'mode', 'tap', 'vnet_hdr')
      ip('link', 'set', 'mine', 'up')
      assert.equal(readFileSync('/sys/class/net/mine/carrier', 'utf8'), '0\n')
      await shim.takeTap('mine', makeStep())
      assert.equal(readFileSync('/sys/class/net/mine/carrier', 'utf8'), '1\n')
      assert.deepEqual(devices('dmwait'), [])
      await shim.kill()
      // Whoever is told of the end may have it.
      assert.equal(readFileSync('/sys/class/net/mine/carrier', 'utf8'), '0\n')
    }
    using other = await launch(false, 'mine')
    t.after(() => other.kill())
    await assert.rejects(other.takeTap('mine', makeStep()), /its TAP is for ever/)
    await other.kill()
    ip('link', 'delete', 'mine')
  })

  let lab: Lab
  let daemon: DaemonProcess
  before(async () => {
    lab = await makeLab()
    daemon = await startDaemon({
      dir: join(lab.dir, 'd'),
      env: { DORMOUSE_NETWORK: 'bridged', DORMOUSE_POOL_SIZE: '1', DORMOUSE_LOG_LEVEL: 'debug' },
    })
    const { path } = await makeBusyboxImage(join(lab.dir, 'image'), { cmd: ['/bin/sleep', '1000000'] })
    await importImage(daemon, path, 'box')
  })
  after(async () => {
    await daemon?.[Symbol.asyncDispose]()
    await lab?.[Symbol.asyncDispose]()
  })

  const run = (name: string): Promise<Shown> =>
    daemon.client.post('/instances?wait=running', { name, image: 'box', vcpus: 1, size: '256MB', overlay_size: '64MB' })
  const sh = async (name: string, script: string): Promise<string> => {
    const { stdout, stderr } = await execOverApi(daemon.socket, name, { command: ['/bin/sh', '-c', script] })
    return `${stdout}${stderr}`.trim()
  }
  const lines = async (message: string): Promise<Line[]> =>
    (await daemon.log())
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Line)
      .filter(({ msg }) => msg === message)
  const origin = async (): Promise<string | undefined> => (await lines('VM started')).at(-1)?.origin
  const isWaiting = async (): Promise<boolean> => {
    const { runtimes } = await daemon.client.get<{ runtimes: { waiting?: number }[] }>('/capabilities')
    return runtimes.some(({ waiting = 0 }) => waiting === 1)
  }
  const untilOneWaits = (): Promise<unknown> => pollUntil('a VM to wait', isWaiting, makeStep(120_000), { everyMs: 50 })
  const called = (name: string): Promise<string> =>
    sh(name, `nc -w ${PATIENCE_S} ${OUTSIDE.ipv4} 9000 </dev/null; nc -w ${PATIENCE_S} ${OUTSIDE.ipv6} 9000 </dev/null`)
  const FROM_HOST = `called by ${HOST.ipv4}\ncalled by ${HOST.ipv6}`

  /** What a frame of the guest's card holds on average while at least 32 MiB go one way. */
  const bytesAFrame = async (name: string, way: 'rx' | 'tx', script: string): Promise<number> => {
    const counts = async (): Promise<number[]> =>
      (await sh(name, `cd /sys/class/net/eth0/statistics; cat ${way}_bytes ${way}_packets`)).split('\n').map(Number)
    const before = await counts()
    await sh(name, script)
    const [bytes = 0, frames = 1] = (await counts()).map((count, index) => count - (before[index] ?? 0))
    assert.ok(bytes > 32 << 20, `${name}: only ${bytes} bytes of ${way}`)
    return bytes / frames
  }

  test('one that has waited is on the bridge like any other: its addresses, its rules, its large frames', {
    timeout: 240_000,
  }, async () => {
    await run('first')
    assert.equal(await origin(), 'golden')
    await untilOneWaits()
    assert.equal(devices('dmwait').length, 1)
    const second = await run('second')
    assert.equal(await origin(), 'pool')
    assert.match(await sh('second', 'ip addr show dev eth0'), new RegExp(`${second.network.mac}[\\s\\S]*inet ${second.network.ip}/16`))
    assert.equal(await called('second'), FROM_HOST)
    // Frames that are cut by the host, both ways: what a card can do is the TAP's, and went along. Each way by itself: answers without
    // data are no frames of the other way's.
    for (const name of ['first', 'second']) {
      assert.ok((await bytesAFrame(name, 'tx', `nc ${OUTSIDE.ipv4} 9004 </dev/zero >/dev/null`)) > LARGEST_UNCUT, name)
      assert.ok((await bytesAFrame(name, 'rx', `mkfifo /tmp/never; nc ${OUTSIDE.ipv4} 9005 <>/tmp/never >/dev/null`)) > LARGEST_UNCUT, name)
    }
  })

  test('one that was made ready for a sleeper goes on behind its TAP', { timeout: 240_000 }, async () => {
    await untilOneWaits()
    await sh('second', 'echo kept > /dev/shm/kept')
    await daemon.client.post('/instances/second/standby', {})
    const { id } = await daemon.client.get<Shown>('/instances/second')
    const isReady = async (): Promise<boolean> => (await lines('a VM waits')).some(({ instance }) => instance === id)
    await pollUntil('its VM to be made ready', isReady, makeStep(120_000), { everyMs: 100 })
    await daemon.client.post('/instances/second/restore')
    assert.equal((await lines('VM restored')).at(-1)?.origin, 'pool')
    assert.equal(await called('second'), FROM_HOST)
    assert.equal(await sh('second', 'cat /dev/shm/kept'), 'kept')
  })

  test('with the daemon those that wait go, and their TAPs', { timeout: 120_000 }, async () => {
    // Whoever was started last has another made of its kind.
    await run('third')
    await untilOneWaits()
    assert.equal(devices('dmwait').length, 1)
    await daemon.kill()
    await pollUntil('the TAPs to go', async () => devices('dmwait').length === 0, makeStep(20_000))
    daemon = await startDaemon({ dir: join(lab.dir, 'd'), env: { DORMOUSE_NETWORK: 'bridged' } })
    for (const name of ['first', 'second', 'third']) await daemon.client.delete(`/instances/${name}`)
    assert.deepEqual(
      devices('d').filter((name) => name !== 'dormouse0'),
      [],
    )
  })
}
