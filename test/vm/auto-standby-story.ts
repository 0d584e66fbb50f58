/** Instances that sleep by themselves, with real VMs and real connections: the same story on either kind of network. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { StepGate } from './step-gate.ts'

interface World extends AsyncDisposable {
  readonly dir: string
}

interface Shown {
  readonly id: string
  readonly state: string
  readonly network: { readonly ip: string; readonly ports: readonly { readonly host_port: number }[] }
}

interface Status {
  readonly status: string
  readonly reason: string
  readonly active_inbound_connections: number
  readonly tracking_mode: string
  readonly last_inbound_activity_at: string | null
  readonly idle_since: string | null
  readonly next_standby_at: string | null
  readonly hold_until: string | null
}

const IMAGE = 'test/echoes:latest'
const IDLE_MS = 2000
const soon = (ms = 60_000): { signal: AbortSignal } => ({ signal: AbortSignal.timeout(ms) })

/** `addressOf` is where a client finds its port 7, besides the one that is published. */
export function tellStory(
  begin: () => Promise<World>,
  {
    env,
    tracking,
    addressOf,
  }: { env: Readonly<Record<string, string>>; tracking: string; addressOf: (shown: Shown) => { host: string; port: number } },
): void {
  let world: World
  let daemon: DaemonProcess
  let gate: StepGate
  let web: Shown

  const live = (): Promise<DaemonProcess> =>
    startDaemon({ dir: join(world.dir, 'd'), driver: 'qemu-microvm', env: { ...env, DORMOUSE_STOP_AT: 'standby:capture' } })

  before(async () => {
    world = await begin()
    gate = new StepGate(join(world.dir, 'd/daemon.log'))
    daemon = await live()
    const { path } = await makeBusyboxImage(join(world.dir, 'image'), { cmd: ['/bin/sh', '-c', 'exec nc -ll -p 7 -e cat'] })
    await importImage(daemon, path, IMAGE)
    web = await daemon.client.post<Shown>('/instances?wait=running', {
      ...{ name: 'web', image: IMAGE, size: '128MB', vcpus: 1, overlay_size: '64MB', auto_standby: policy('1h') },
      network: { ports: [{ host_port: 0, guest_port: 7, host_ip: '127.0.0.1' }] },
    })
  })
  after(async () => {
    await gate?.[Symbol.asyncDispose]()
    await daemon?.[Symbol.asyncDispose]()
    await world?.[Symbol.asyncDispose]()
  })

  const policy = (idle_timeout = `${IDLE_MS}ms`) => ({ enabled: true, idle_timeout })
  const setPolicy = (idle?: string): Promise<Shown> => daemon.client.patch<Shown>('/instances/web', { auto_standby: policy(idle) })
  const status = (): Promise<Status> => daemon.client.get<Status>('/instances/web/auto-standby/status')
  const state = async (): Promise<string> => (await daemon.client.get<Shown>('/instances/web')).state
  const restore = (): Promise<Shown> => daemon.client.post<Shown>('/instances/web/restore')
  async function sleeps(): Promise<void> {
    const { state } = await daemon.client.get<Shown>('/instances/web/wait?state=Standby&timeout=90s')
    assert.equal(state, 'Standby')
  }
  const published = () => ({ host: '127.0.0.1', port: web.network.ports[0]?.host_port ?? assert.fail() })

  /** One that has said a word and heard it. */
  async function converse(to: { host: string; port: number }): Promise<Socket> {
    const socket = connect(to)
    await once(socket, 'connect', soon())
    await echo(socket)
    return socket
  }
  async function echo(socket: Socket): Promise<void> {
    socket.write('word\n')
    assert.equal(String((await once(socket, 'data', soon()))[0]), 'word\n')
  }
  async function close(socket: Socket): Promise<void> {
    const closed = once(socket, 'close', soon())
    socket.end()
    await closed
  }
  const boot = async (): Promise<string> =>
    (await execOverApi(daemon.socket, 'web', { command: ['cat', '/proc/sys/kernel/random/boot_id'] })).stdout

  test('it is awake as long as someone is connected, and sleeps once no one is', { timeout: 180_000 }, async () => {
    const first = await boot()
    // The server may not be there yet.
    await pollUntil(
      'an answer',
      () =>
        converse(published())
          .then(close)
          .then(
            () => true,
            () => false,
          ),
      soon(),
    )
    const clients = [await converse(published()), await converse(addressOf(web))]
    assert.deepEqual([(await status()).status, (await status()).active_inbound_connections], ['active', 2])
    assert.equal((await status()).tracking_mode, tracking)
    const from = Date.now()
    await setPolicy()
    await pollUntil(
      'some idle times to pass',
      async () => {
        const now = await status()
        return Date.parse(now.last_inbound_activity_at ?? '') > from + 2 * IDLE_MS
      },
      soon(),
      { upToMs: 500 },
    )
    assert.equal(await state(), 'Running')
    for (const client of clients) {
      await echo(client)
      await close(client)
    }
    await sleeps()
    assert.equal((await status()).reason, 'instance_not_running')
    await restore()
    await setPolicy('1h')
    assert.equal(await boot(), first)
    await close(await converse(published()))
  })

  test('a command that runs is not cut off, however long it is', { timeout: 180_000 }, async () => {
    await setPolicy()
    const { exitCode, stdout } = await execOverApi(daemon.socket, 'web', { command: ['/bin/sh', '-c', 'sleep 5; echo done'] })
    assert.deepEqual([exitCode, stdout], [0, 'done\n'])
    await sleeps()
    await restore()
    await setPolicy('1h')
  })

  test('who connects while its memory is being written has it go on, and is served', { timeout: 180_000 }, async () => {
    const first = await boot()
    const reached = gate.until('standby:capture', 120_000)
    await setPolicy()
    await reached
    const client = connect(published())
    client.write('late\n')
    const answer = once(client, 'data', soon())
    await untilItCounts(client)
    gate.pass()
    assert.equal(String((await answer)[0]), 'late\n')
    assert.equal(await state(), 'Running')
    await setPolicy('1h')
    assert.equal(await boot(), first)
    await close(client)
  })

  /** The daemon stands still: what a client has done by then can be told by no one but the kernel. */
  async function untilItCounts(client: Socket): Promise<void> {
    const port = published().port.toString(16).padStart(4, '0').toUpperCase()
    const { readFile } = await import('node:fs/promises')
    // proc(5), net/tcp: 01 is ESTABLISHED, 02 is SYN_SENT, which is as far as one comes whose guest stands still.
    await pollUntil(
      'the client to call',
      async () => new RegExp(`: \\S+ 0100007F:${port} 0[12] `).test(await readFile('/proc/net/tcp', 'latin1')),
      soon(),
    )
    assert.equal(client.destroyed, false)
  }

  test('a hold keeps it awake, and one that sleeps cannot be held', { timeout: 180_000 }, async () => {
    const held = await daemon.client.post<Status>('/instances/web/auto-standby/hold')
    assert.ok(Date.parse(held.hold_until ?? '') > Date.now() + 3_000_000)
    await setPolicy()
    const counting = await status()
    assert.equal(counting.status, 'idle_countdown')
    assert.ok(Math.abs(Date.parse(counting.next_standby_at ?? '') - Date.parse(held.hold_until ?? '')) < 1000)
    await daemon.client.post<Status>('/instances/web/auto-standby/hold')
    await sleeps()
    const refused = await daemon.client.call<{ code: string }>('POST', '/instances/web/auto-standby/hold')
    assert.deepEqual([refused.status, refused.body.code], [409, 'instance_in_standby'])
    await restore()
    await setPolicy('1h')
  })

  test('a daemon that is killed and begins anew knows who is connected', { timeout: 180_000 }, async () => {
    const client = await converse(published())
    assert.equal((await status()).active_inbound_connections, 1)
    await daemon.kill()
    daemon = await live()
    assert.deepEqual([(await status()).status, (await status()).active_inbound_connections], ['active', 1])
    await echo(client)
    await setPolicy()
    await close(client)
    await sleeps()
  })
}
