/** Lives of instances with real VMs, through the API, seen from the host and from inside the guest. */
import assert from 'node:assert/strict'
import { readdir, readFile, stat } from 'node:fs/promises'
import { get, type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import type { Capabilities } from '@dormouse/api/capabilities.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { type CommandError, runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, REPOSITORY, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { endProcessesNaming, processesNaming } from '../harness/processes.ts'
import { Scratch } from '../harness/scratch.ts'
import { slowHostSettings, timeFactor } from '../harness/slow-host.ts'
import { assertHostInOrder, atRest, disksOf, listeningPorts, type ShownInstance } from './house-in-order.ts'

let scratch: Scratch
let dir: string
let daemon: DaemonProcess
const LOG_MAX = 2 ** 20
const begin = (): Promise<DaemonProcess> => startDaemon({ dir, driver: 'qemu', env: { DORMOUSE_LOG_MAX_SIZE: String(LOG_MAX) } })

before(async () => {
  scratch = await Scratch.make()
  dir = join(scratch.path, 'd')
  daemon = await begin()
  const image = await makeBusyboxImage(scratch.path, { cmd: ['/bin/sleep', '1000000'] })
  await importImage(daemon, image.path, 'box')
})
after(async () => {
  await daemon?.stop()
  await endProcessesNaming(dir)
  await scratch[Symbol.asyncDispose]()
})

const MAIN = join(REPOSITORY, 'packages/daemon/src/main.ts')
const SHAPE = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '256MB' }

async function run(name: string, more: object = {}): Promise<ShownInstance> {
  await daemon.client.post('/instances?wait=running', { name, ...SHAPE, ...more })
  const instance = await daemon.client.get<ShownInstance>(`/instances/${name}`)
  assert.equal(instance.state, 'Running', JSON.stringify(instance))
  return instance
}

const until = (name: string, state: string) =>
  daemon.client.get<{ state: string; timed_out: boolean; reason?: string }>(`/instances/${name}/wait?state=${state}&timeout=60s`)
const sh = async (name: string, script: string): Promise<string> => {
  const { exitCode, stdout, stderr } = await execOverApi(daemon.socket, name, { command: ['/bin/sh', '-c', script] })
  assert.equal(exitCode, 0, stderr)
  return stdout.trim()
}
const vmmsOf = async ({ id }: ShownInstance): Promise<number[]> =>
  (await processesNaming(id)).filter(({ argv }) => argv[0]?.includes('qemu-system')).map(({ pid }) => pid)
async function shimOf({ id, name }: ShownInstance): Promise<number> {
  const found = await processesNaming(join(dir, 'run/vm', id.slice(0, 12)))
  return found.find(({ argv }) => argv[0]?.includes('dormouse-shim'))?.pid ?? assert.fail(`no shim runs for ${name}`)
}
async function memoryMib(pid: number, field: 'VmRSS' | 'VmHWM'): Promise<number> {
  const kib = new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(await readFile(`/proc/${pid}/status`, 'latin1'))?.[1]
  return Math.round(Number(kib) / 1024)
}
const remove = (name: string) => daemon.client.delete(`/instances/${name}`)

test('what a guest wrote is there after a stop and a start, and its machine is a new one', { timeout: 120_000 }, async () => {
  await run('keeps')
  const bootId = await sh('keeps', 'echo kept > /root/file; cat /proc/sys/kernel/random/boot_id')
  const stopped = await daemon.client.post<ShownInstance>('/instances/keeps/stop')
  assert.equal(stopped.state, 'Stopped')
  assert.equal(stopped.exit_code, 143)
  await daemon.client.post('/instances/keeps/start', {})
  await until('keeps', 'Running')
  assert.equal(await sh('keeps', 'cat /root/file'), 'kept')
  assert.notEqual(await sh('keeps', 'cat /proc/sys/kernel/random/boot_id'), bootId)
  await remove('keeps')
  await assertHostInOrder(dir, await atRest(daemon.client))
})

test('a VM does not notice that its daemon was restarted, nor that one was killed', { timeout: 120_000 }, async () => {
  const instance = await run('stays', {
    cmd: ['/bin/sh', '-c', 'n=0; while :; do n=$((n+1)); echo $n > /tmp/next; mv /tmp/next /tmp/n; sleep 0.1; done'],
  })
  const [vmm] = await vmmsOf(instance)
  const count = async () => Number(await sh('stays', 'until [ -e /tmp/n ]; do sleep 0.1; done; cat /tmp/n'))
  const before = await count()
  for (const end of ['stop', 'kill'] as const) {
    await daemon[end]()
    daemon = await begin()
    assert.equal((await daemon.client.get<ShownInstance>('/instances/stays')).state, 'Running')
    assert.deepEqual(await vmmsOf(instance), [vmm])
  }
  assert.ok((await count()) > before)
  await assertHostInOrder(dir, await atRest(daemon.client))
  await remove('stays')
})

test('how a guest ended while no daemon lived is known afterwards', { timeout: 120_000 }, async () => {
  const instance = await run('ends', { cmd: ['/bin/sh', '-c', 'while [ ! -e /tmp/go ]; do sleep 0.1; done; sleep 1; exit 7'] })
  await execOverApi(daemon.socket, 'ends', { command: ['/bin/touch', '/tmp/go'] })
  await daemon.kill()
  await pollUntil('the VM to end', async () => (await vmmsOf(instance)).length === 0, { signal: AbortSignal.timeout(30_000) })
  daemon = await begin()
  const instances = await atRest(daemon.client)
  const ended = instances.find(({ id }) => id === instance.id)
  assert.deepEqual([ended?.state, ended?.exit_code], ['Stopped', 7])
  await assertHostInOrder(dir, instances)
  await remove('ends')
})

test('a VMM, or its shim, that is killed leaves a Stopped instance that says so and can be started', { timeout: 120_000 }, async () => {
  const instance = await run('hurt')
  const [vmm = 0] = await vmmsOf(instance)
  process.kill(vmm, 'SIGKILL')
  await until('hurt', 'Stopped')
  const hurt = await daemon.client.get<ShownInstance>('/instances/hurt')
  assert.equal(hurt.exit_code, null)
  assert.match(hurt.exit_message ?? '', /the VM was killed by SIGKILL/)

  await daemon.client.post('/instances/hurt/start?wait=running', {})
  process.kill(await shimOf(instance), 'SIGKILL')
  await until('hurt', 'Stopped')
  assert.match((await daemon.client.get<ShownInstance>('/instances/hurt')).exit_message ?? '', /no one saw it end/)
  await assertHostInOrder(dir, await atRest(daemon.client))
  await remove('hurt')
})

test('a published port reaches the guest, moves while it runs, and closes with it', { timeout: 120_000 }, async () => {
  const answer = 'while :; do echo -n from-guest | nc -l -p 80; done'
  const { network } = await run('serves', {
    cmd: ['/bin/sh', '-c', answer],
    network: { ports: [{ host_port: 0, guest_port: 80, host_ip: '127.0.0.1' }] },
  })
  const port = network.ports?.[0]?.host_port ?? 0
  assert.equal(await hear(port), 'from-guest')
  const moved = await daemon.client.patch<ShownInstance>('/instances/serves', {
    network: { ports: [{ host_port: 0, guest_port: 80, host_ip: '127.0.0.1' }] },
  })
  const next = moved.network.ports?.[0]?.host_port ?? 0
  assert.notEqual(next, port)
  assert.equal(listeningPorts().has(port), false)
  assert.equal(await hear(next), 'from-guest')
  const taken = await daemon.client.call<{ code: string }>('POST', '/instances', {
    name: 'second',
    ...SHAPE,
    network: { ports: [{ host_port: next, guest_port: 80, host_ip: '127.0.0.1' }] },
  })
  assert.deepEqual([taken.status, taken.body.code], [409, 'port_in_use'])
  await daemon.client.post('/instances/serves/stop', { force: true })
  assert.equal(listeningPorts().has(next), false)
  await remove('serves')
})

test('a disk grows while its instance is Stopped, and the guest finds it larger', { timeout: 120_000 }, async () => {
  await run('grows')
  await sh('grows', 'echo kept > /root/file')
  const size = async () => Number(await sh('grows', "df -k / | awk 'END { print $2 }'"))
  const before = await size()
  await daemon.client.post('/instances/grows/stop')
  await daemon.client.patch('/instances/grows', { overlay_size: '512MB' })
  await daemon.client.post('/instances/grows/start?wait=running', {})
  assert.ok((await size()) > 1.7 * before)
  assert.equal(await sh('grows', 'cat /root/file'), 'kept')
  await remove('grows')
})

test('a command that is not there ends with 127 and words; the stop signal is the image’s own; who ignores it is killed in time', {
  timeout: 120_000,
}, async () => {
  await daemon.client.post('/instances', { name: 'lacks', ...SHAPE, cmd: ['/no/such/program'] })
  const told = await until('lacks', 'Running')
  assert.equal(told.state, 'Stopped')
  assert.match(told.reason ?? '', /127.*not found/)

  const { path } = await makeBusyboxImage(join(scratch.path, 'polite'), { cmd: ['/bin/sleep', '1000000'], stopSignal: 'SIGUSR1' })
  await importImage(daemon, path, 'polite')
  const polite = "trap 'exit 7' USR1; trap 'exit 8' TERM; touch /tmp/ready; while :; do sleep 0.1; done"
  await run('polite', { image: 'polite', cmd: ['/bin/sh', '-c', polite] })
  await sh('polite', 'until [ -e /tmp/ready ]; do sleep 0.1; done')
  assert.equal((await daemon.client.post<ShownInstance>('/instances/polite/stop')).exit_code, 7)

  await run('ignores', { cmd: ['/bin/sh', '-c', "trap '' TERM; touch /tmp/deaf; while :; do sleep 1; done"] })
  await sh('ignores', 'until [ -e /tmp/deaf ]; do sleep 0.1; done')
  const from = performance.now()
  const stopped = await daemon.client.post<ShownInstance>('/instances/ignores/stop', { timeout: '1s' })
  assert.deepEqual([stopped.state, stopped.exit_code], ['Stopped', 137])
  assert.ok(performance.now() - from < 15_000 * timeFactor)
  await remove('lacks')
  await remove('polite')
  await remove('ignores')
})

test('a guest that floods its output fills neither disk nor memory, and is answered all the while', { timeout: 120_000 }, async (t) => {
  const instance = await run('floods', { cmd: ['/bin/sh', '-c', 'yes this is a line that comes again and again'] })
  const logs = join(dir, 'data/instances', instance.id, 'logs')
  const bytes = async (file: string) => (await stat(join(logs, file)).catch(() => ({ size: 0 }))).size
  const shim = await shimOf(instance)
  const before = { daemon: await memoryMib(daemon.pid, 'VmRSS'), shim: await memoryMib(shim, 'VmRSS') }
  // Someone who follows and does not read what comes.
  const { promise: answer, resolve } = Promise.withResolvers<IncomingMessage>()
  get({ socketPath: daemon.socket, path: '/instances/floods/logs?follow=true' }, resolve)
  const stalled = await answer
  const inode = async (file: string) => (await stat(join(logs, file)).catch(() => ({ ino: 0 }))).ino
  for (let rotations = 0, last = 0; rotations < 10; rotations++) {
    const isAnother = async () => ![0, last].includes(await inode('app.log.1'))
    await pollUntil('the log to be rotated', isAnother, { signal: AbortSignal.timeout(60_000) }, { everyMs: 5 })
    last = await inode('app.log.1')
  }
  assert.equal(await sh('floods', 'echo still here'), 'still here')
  for (const file of await readdir(logs)) assert.ok((await bytes(file)) <= LOG_MAX + 128 * 1024, `${file} has ${await bytes(file)} bytes`)
  const after = { daemon: await memoryMib(daemon.pid, 'VmRSS'), shim: await memoryMib(shim, 'VmHWM') }
  t.diagnostic(`MiB before ${JSON.stringify(before)}, after ${JSON.stringify(after)}`)
  assert.ok(after.daemon < before.daemon + 50, `the daemon grew from ${before.daemon} to ${after.daemon} MiB`)
  assert.ok(after.shim < 16, `the shim held ${after.shim} MiB`)
  stalled.destroy()
  await remove('floods')
})

test('what a VMM says is the instance’s log vmm', { timeout: 120_000 }, async () => {
  const instance = await run('says')
  const [vmm = 0] = await vmmsOf(instance)
  process.kill(vmm, 'SIGTERM')
  await until('says', 'Stopped')
  const { status, body } = await daemon.client.call('GET', '/instances/says/logs?source=vmm')
  assert.equal(status, 200)
  assert.match(String(body), /^data: ".*qemu-system-x86_64: terminating on signal 15 /m)
  await remove('says')
})

test('which acceleration VMs have, and why, is the same to the API, the log and the doctor', { timeout: 120_000 }, async () => {
  const { runtimes } = await daemon.client.get<Capabilities>('/capabilities')
  const logged = (await daemon.log())
    .split('\n')
    .filter((line) => line.includes('"msg":"QEMU is ready"'))
    .map((line) => JSON.parse(line))
  const said = await runCommand([process.execPath, MAIN, 'doctor', '--json'], {
    step: { signal: AbortSignal.timeout(60_000) },
    env: {
      ...slowHostSettings,
      PATH: process.env.PATH ?? '',
      DORMOUSE_DATA_DIR: join(dir, 'data'),
      DORMOUSE_RUN_DIR: join(dir, 'run'),
    },
  })
  const findings: { what: string; says: string; mend?: string }[] = JSON.parse(said.stdout)
  assert.ok(logged.length > 0)
  for (const name of ['qemu', 'qemu-microvm']) {
    const { available, acceleration, reason, version } = runtimes.find((one) => one.name === name) ?? assert.fail(`no ${name}`)
    assert.ok(available && version !== undefined)
    assert.ok(acceleration === 'kvm' || (acceleration === 'tcg' && /KVM|kvm/.test(reason ?? '')), `${acceleration}: ${reason}`)
    for (const line of logged) assert.deepEqual([line.acceleration, line.reason], [acceleration, reason])
    const finding = findings.find(({ what }) => what === name)
    assert.equal(finding?.says, `available ${version}, ${acceleration}${reason === undefined ? '' : `: ${reason}`}`)
    assert.equal(finding?.mend !== undefined, acceleration === 'tcg')
  }
})

test('each VM runs as a user of its own, which owns its disk and nothing else', { timeout: 120_000 }, async (t) => {
  if (process.getuid?.() !== 0) return t.skip('only root can give each VM a user of its own')
  const owners: number[] = []
  for (const name of ['one', 'two']) {
    const instance = await run(name)
    const [vmm] = await vmmsOf(instance)
    const { uid } = await stat(`/proc/${vmm}`)
    const [disk = ''] = disksOf(dir).get(instance.id) ?? []
    assert.equal((await stat(join(dir, 'data/disks', disk))).uid, uid)
    owners.push(uid)
  }
  assert.ok(owners.every((uid) => uid >= 2_097_152_000))
  assert.notEqual(owners[0], owners[1])
  await remove('one')
  await remove('two')
})

test('a second daemon on the same directory is told whose it is', { timeout: 60_000 }, async () => {
  const env = {
    PATH: process.env.PATH ?? '',
    DORMOUSE_DATA_DIR: join(dir, 'data'),
    DORMOUSE_RUN_DIR: join(dir, 'run'),
    DORMOUSE_LISTEN: 'off',
  }
  const second = runCommand([process.execPath, MAIN, 'serve'], { step: { signal: AbortSignal.timeout(30_000) }, env })
  await assert.rejects(second, (error: CommandError) => {
    assert.equal(error.exitCode, 1)
    assert.match(error.stderr, new RegExp(`Another daemon has this data directory: process ${daemon.pid}`))
    return true
  })
  assert.deepEqual((await daemon.client.call('GET', '/health')).status, 200)
})

/** What a TCP port says before it closes. The guest's listener comes round again after each caller. */
async function hear(port: number): Promise<string> {
  return pollUntil(
    `port ${port} to answer`,
    () =>
      new Promise<string>((resolve) => {
        let said = ''
        const socket = connect(port, '127.0.0.1')
        socket.setTimeout(2000 * timeFactor, () => socket.destroy())
        socket.on('data', (data) => {
          said += data
        })
        socket.on('error', () => undefined)
        socket.on('close', () => resolve(said))
      }),
    { signal: AbortSignal.timeout(30_000) },
    { everyMs: 50 },
  )
}
