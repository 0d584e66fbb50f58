/**
 * What keeps a VM's processes from starving the host: real cgroups of this host, as far as it has any, with shell scripts for VMMs that
 * have been taken over, and real guests that must not notice.
 */
import assert from 'node:assert/strict'
import { mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { after, before, describe, type TestContext, test } from 'node:test'
import { Cgroups } from '../../packages/daemon/src/host/cgroups.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { Shim } from '../../packages/daemon/src/hypervisors/shim.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { cgroupsOf, endProcessesNaming } from '../harness/processes.ts'
import { artefacts, makeStep } from '../harness/qemu-driver.ts'
import { Scratch, scratchDir } from '../harness/scratch.ts'
import { assertHostInOrder, atRest, processesOf, type ShownInstance } from './house-in-order.ts'

const MB = 2 ** 20
const isRoot = process.geteuid?.() === 0

/** A shim in a cgroup with tight limits, whose VMM is `script`. Undefined, with the reason told, where the host limits nothing of the kind. */
async function limited(
  t: TestContext,
  script: string,
  needs: 'pids' | 'memory',
): Promise<{ shim: Shim; cgroups: Cgroups; dirs: string[] } | undefined> {
  const dir = await scratchDir(t)
  const cgroups = Cgroups.prepare(`dormouse-test-${process.pid}`)
  t.after(() => cgroups[Symbol.asyncDispose]())
  if (!cgroups.answer.controllers.includes(needs)) {
    t.skip(`this host limits no ${needs}: ${cgroups.answer.reason}`)
    return undefined
  }
  const dirs = await cgroups.make('wild', { weight: 1, cpus: 1, memoryBytes: 64 * MB, pids: 40 })
  t.after(() => cgroups.remove('wild'))
  const runDir = join(dir, 'run')
  await mkdir(runDir, { mode: 0o700 })
  const log = { file: join(dir, 'log'), maxBytes: MB }
  const shim = await Shim.launch(
    {
      shimPath: artefacts.shimPath,
      runDir,
      cgroups: dirs,
      ...(isRoot ? { user: { uid: 654_322, gid: 654_322 } } : {}),
      logs: (['app', 'vmm', 'journal'] as const).map((name) => ({ name, ...log })),
      isolateNetwork: true,
      vmm: { argv: ['bash', '-c', script], descriptors: [] },
    },
    makeStep(20_000),
  )
  t.after(() => shim[Symbol.dispose]())
  return { shim, cgroups, dirs }
}

const read = (dirs: readonly string[], file: string): Promise<string> => Promise.any(dirs.map((dir) => readFile(join(dir, file), 'utf8')))

test('a fork bomb in a VMM ends at its limit, and all of it goes with the VM', async (t) => {
  const wild = await limited(t, 'bomb() { bomb | bomb & }; bomb 2>/dev/null; exec sleep 1000', 'pids')
  if (wild === undefined) return
  const { shim, cgroups, dirs } = wild
  await pollUntil('the bomb to reach its limit', async () => !/^max 0$/m.test(await read(dirs, 'pids.events')), makeStep(20_000))
  const members = await cgroups.members('wild')
  assert.ok(members.length <= 40, `${members.length} processes`)
  assert.ok(members.includes(shim.identity.pid))
  // What it left is not its shim's to end, and is in its cgroup all the same.
  await shim.kill()
  await cgroups.remove('wild')
  assert.deepEqual(cgroups.list(), [])
})

test('memory that a VMM has no right to is the end of it and not of the host, and its shim says so', async (t) => {
  const wild = await limited(t, 'exec tail /dev/zero', 'memory')
  if (wild === undefined) return
  const exit = await wild.shim.ended
  assert.ok(exit.kind === 'signaled' && exit.signal === 'SIGKILL', JSON.stringify(exit))
})

test('where the daemon itself may have fewer processors than a VM, the VM has its other limits all the same', async (t) => {
  const cpu = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n').find((line) => / - cgroup \S+ (?:\S+,)?cpu(?:,|$)/.test(line))
  const point = cpu?.split(' ')[4]
  if (!isRoot || point === undefined || cpu?.split(' ')[3] !== '/') return t.skip('no hierarchy of version 1 to be seen as a whole')
  const own = join(point, `dormouse-few-${process.pid}`)
  await mkdir(own)
  t.after(() => rmdir(own))
  await writeFile(join(own, 'cpu.cfs_quota_us'), '100000')
  const proc = await scratchDir(t)
  await writeFile(join(proc, 'mountinfo'), `${cpu}\n`)
  await writeFile(join(proc, 'cgroup'), `1:cpu:/${basename(own)}\n`)
  await using cgroups = Cgroups.prepare('dormouse-test', proc)
  const [made = ''] = await cgroups.make('vm', { weight: 4, cpus: 5, memoryBytes: 64 * MB, pids: 40 })
  t.after(() => cgroups.remove('vm'))
  assert.equal((await readFile(join(made, 'cpu.shares'), 'utf8')).trim(), '4096')
  await cgroups.remove('vm')
})

describe('VMs in cgroups', () => {
  let scratch: Scratch
  let dir: string
  let daemon: DaemonProcess
  let cgroups: { version: string; controllers: string[]; reason?: string }
  const begin = (): Promise<DaemonProcess> => startDaemon({ dir, driver: 'qemu-microvm', env: { DORMOUSE_POOL_SIZE: '1' } })

  before(async () => {
    scratch = await Scratch.make()
    dir = join(scratch.path, 'd')
    daemon = await begin()
    const image = await makeBusyboxImage(scratch.path, { cmd: ['/bin/sleep', '1000000'] })
    await importImage(daemon, image.path, 'box')
    cgroups = (await daemon.client.get<{ host: { cgroups: typeof cgroups } }>('/capabilities')).host.cgroups
  })
  after(async () => {
    await daemon?.stop()
    await endProcessesNaming(dir)
    await scratch[Symbol.asyncDispose]()
  })

  const isAbsent = (t: TestContext): boolean => {
    if (cgroups.version === 'none') t.skip(`this host limits nothing: ${cgroups.reason}`)
    return cgroups.version === 'none'
  }
  const run = async (name: string): Promise<ShownInstance> => {
    const shape = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '1GB' }
    await daemon.client.post('/instances?wait=running', { name, ...shape })
    return daemon.client.get<ShownInstance>(`/instances/${name}`)
  }
  const waiting = async (): Promise<number> => {
    const { runtimes } = await daemon.client.get<{ runtimes: { name: string; waiting?: number }[] }>('/capabilities')
    return runtimes.find(({ name }) => name === 'qemu-microvm')?.waiting ?? 0
  }
  /** Not a thread of the kernel, of which KVM adds one to the cgroups of whoever makes a VM (kvm-nx-lpage-recovery): it has no command line. */
  const isProcess = async (pid: number): Promise<boolean> => (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')) !== ''
  /** The cgroups of the daemon's VMs, but those that wait or are being made, each with how many processes are in it. */
  const found = async (): Promise<Record<string, number>> => {
    const own = cgroupsOf(dir)
    const names = own.list()
    const places = ['run/pool', 'run/golden'].map((place) => readdir(join(dir, place)).catch(() => []))
    const others = (await Promise.all(places)).flat()
    const countIn = async (name: string): Promise<number> =>
      (await Promise.all((await own.members(name)).map(isProcess))).filter((is) => is).length
    const entries = names.filter((name) => !others.includes(name)).map(async (name) => [name, await countIn(name)] as const)
    return Object.fromEntries(await Promise.all(entries))
  }

  test('shim, VMM and helper are in one, those of a VM that waited too; it goes with the VM', { timeout: 240_000 }, async (t) => {
    if (isAbsent(t)) return
    const first = await run('first')
    await pollUntil('a VM to wait', async () => (await waiting()) === 1, makeStep(120_000))
    const second = await run('second')
    assert.match(
      (await daemon.log())
        .split('\n')
        .filter((line) => line.includes('"VM started"'))
        .at(-1) ?? '',
      /"origin":"pool"/,
    )
    const name = ({ id }: ShownInstance): string => id.slice(0, 12)
    assert.deepEqual(await found(), { [name(first)]: 3, [name(second)]: 3 })
    await daemon.client.post('/instances/first/standby', {})
    await pollUntil('its cgroup to go', async () => !(name(first) in (await found())), makeStep(10_000))
    await daemon.client.post('/instances/first/restore', {})
    assert.deepEqual(await found(), { [name(first)]: 3, [name(second)]: 3 })
    // One ends while no daemon lives, one goes on.
    await daemon.kill()
    const { shims } = await processesOf(dir)
    process.kill(shims.find(({ place }) => place.endsWith(name(first)))?.pid ?? 0, 'SIGKILL')
    daemon = await begin()
    const instances = await atRest(daemon.client)
    assert.deepEqual(instances.map(({ name, state }) => `${name} ${state}`).sort(), ['first Stopped', 'second Running'])
    assert.deepEqual(await found(), { [name(second)]: 3 })
    await assertHostInOrder(dir, instances)
    await daemon.client.delete('/instances/first')
    await daemon.client.delete('/instances/second')
    assert.deepEqual(await found(), {})
  })

  test('a guest that uses all that it has goes on, asleep and awake', { timeout: 240_000 }, async () => {
    await run('busy')
    const sh = async (script: string): Promise<string> => {
      const { exitCode, stdout, stderr } = await execOverApi(daemon.socket, 'busy', { command: ['/bin/sh', '-c', script] })
      assert.equal(exitCode, 0, stderr)
      return stdout
    }
    await sh('dd if=/dev/urandom of=/dev/shm/kept bs=1M count=100 2>/dev/null; sha1sum < /dev/shm/kept > /root/sum')
    await sh('dd if=/dev/zero of=/root/file bs=1M count=600 2>/dev/null; sync; cat /root/file > /dev/null')
    for (let nap = 0; nap < 2; nap++) {
      await daemon.client.post('/instances/busy/standby', {})
      await daemon.client.post('/instances/busy/restore', {})
      await sh('[ "$(sha1sum < /dev/shm/kept)" = "$(cat /root/sum)" ]')
    }
    await daemon.client.delete('/instances/busy')
  })
})
