/**
 * What is tried of cgroups within a guest, whose kernel has version 2 alone: run there by Node, bundled into one file. Fails with the
 * first thing that is not so.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { Cgroups } from '../../packages/daemon/src/host/cgroups.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { Shim } from '../../packages/daemon/src/hypervisors/shim.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'

const MB = 2 ** 20
const TOP = '/sys/fs/cgroup'
const LIMITS = { weight: 2, cpus: 3, memoryBytes: 64 * MB, pids: 40 }
const step = () => ({ signal: AbortSignal.timeout(60_000), log: silentLogger })
const read = (dir: string, file: string): string => readFileSync(join(dir, file), 'utf8').trim()

let runs = 0
/** A shim in the cgroup `wild`, whose VMM is `script`. */
async function wild(dirs: readonly string[], script: string): Promise<Shim> {
  const runDir = `/tmp/run-${runs++}`
  mkdirSync(runDir, { mode: 0o700 })
  const log = { file: `${runDir}.log`, maxBytes: MB }
  return Shim.launch(
    {
      ...{ shimPath: '/bin/dormouse-shim', runDir, cgroups: dirs, user: { uid: 654_322, gid: 654_322 }, isolateNetwork: true },
      logs: (['app', 'vmm', 'journal'] as const).map((name) => ({ name, ...log })),
      vmm: { argv: ['/bin/sh', '-c', script], descriptors: [] },
    },
    step(),
  )
}

async function limitsAreKept(cgroups: Cgroups, parent: string): Promise<void> {
  assert.deepEqual(cgroups.answer, { version: 'v2', controllers: ['cpu', 'memory', 'pids'] })
  const dirs = await cgroups.make('wild', LIMITS)
  const dir = join(parent, 'dormouse-test/wild')
  assert.deepEqual(dirs, [dir])
  const set = ['cpu.weight', 'cpu.max', 'memory.max', 'pids.max'].map((file) => read(dir, file))
  assert.deepEqual(set, ['200', '300000 100000', `${64 * MB}`, '40'])

  const bomb = await wild(dirs, 'bomb() { bomb | bomb & }; bomb 2>/dev/null; exec sleep 1000')
  await pollUntil('the bomb to reach its limit', async () => !/^max 0$/m.test(read(dir, 'pids.events')), step())
  const members = await cgroups.members('wild')
  assert.ok(members.length <= 40 && members.includes(bomb.identity.pid), `${members.length} processes`)
  await bomb.kill()
  bomb[Symbol.dispose]()
  await cgroups.remove('wild')
  assert.deepEqual(cgroups.list(), [])

  using hog = await wild(await cgroups.make('wild', LIMITS), 'exec tail /dev/zero')
  const exit = await hog.ended
  assert.ok(exit.kind === 'signaled' && exit.signal === 'SIGKILL', JSON.stringify(exit))
  assert.match(read(dir, 'memory.events'), /^oom_kill [1-9]/m)

  // What runs already comes in, limits change under it, and it goes with its cgroup.
  const sleeper = spawn('/bin/sleep', ['1000'])
  const ended = once(sleeper, 'exit')
  await cgroups.make('other', LIMITS)
  await cgroups.move('other', [sleeper.pid ?? 0])
  assert.deepEqual(await cgroups.members('other'), [sleeper.pid])
  await cgroups.make('other', { ...LIMITS, memoryBytes: 128 * MB })
  assert.equal(read(join(parent, 'dormouse-test/other'), 'memory.max'), `${128 * MB}`)
  await cgroups.remove('other')
  await ended
  await cgroups.sweep()
  assert.deepEqual(cgroups.list(), [])
}

// A shim does not keep whoever waits for it from ending.
const alive = setInterval(() => undefined, 1000)

// A cgroup with processes of its own hands nothing down: VMs are at the top then.
{
  await using cgroups = Cgroups.prepare('dormouse-test')
  await limitsAreKept(cgroups, TOP)
  assert.equal(read(join(TOP, 'dormouse-test'), 'cpu.weight'), '100')
}
assert.ok(!existsSync(join(TOP, 'dormouse-test')))

// As a service manager that delegates leaves it: the daemon is in a leaf, and VMs are beside it.
const before = readFileSync('/proc/self/cgroup', 'utf8').trim().slice('0::'.length)
const unit = join(TOP, 'unit')
mkdirSync(join(unit, 'daemon'), { recursive: true })
writeFileSync(join(unit, 'daemon/cgroup.procs'), `${process.pid}`)
{
  await using cgroups = Cgroups.prepare('dormouse-test')
  await limitsAreKept(cgroups, unit)
  assert.equal(read(join(unit, 'dormouse-test'), 'cpu.weight'), `${100 * availableParallelism()}`)
}
assert.ok(!existsSync(join(unit, 'dormouse-test')))
writeFileSync(join(TOP, before, 'cgroup.procs'), `${process.pid}`)
for (const dir of [join(unit, 'daemon'), unit]) rmdirSync(dir)
clearInterval(alive)
console.log('all is so')
