import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { Cgroups } from './cgroups.ts'

const LIMITS = { weight: 2, cpus: 3, memoryBytes: 2 ** 30, pids: 264 }

/** A host whose cgroup file systems are plain directories: `mounts` by what is mounted there, and where the daemon stands in each. */
function madeUp(t: TestContext, mounts: readonly [name: string, root: string, type: string, options: string][], own: string): string {
  const dir = mkdtempSync(join(tmpdir(), 'dm-cgroups-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  for (const [name] of mounts) mkdirSync(join(dir, name))
  const lines = mounts.map(
    ([name, root, type, options], n) => `${n + 20} 1 0:${n} ${root} ${join(dir, name)} rw - ${type} none rw,${options}`,
  )
  writeFileSync(join(dir, 'mountinfo'), `19 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n${lines.join('\n')}\n`)
  writeFileSync(join(dir, 'cgroup'), own)
  return dir
}

test('with cgroup v1 a VM has one in each hierarchy, below where the daemon is', async (t) => {
  const mounts = [
    ['cpu', '/', 'cgroup', 'cpu,cpuacct'],
    ['memory', '/docker/x', 'cgroup', 'memory'],
    ['pids', '/', 'cgroup', 'pids'],
    ['unified', '/', 'cgroup2', 'nsdelegate'],
  ] as const
  const dir = madeUp(
    t,
    mounts.map((mount) => [...mount]),
    '3:cpu,cpuacct:/\n2:memory:/docker/x/y\n1:pids:/z\n0::/\n',
  )
  for (const own of ['memory/y', 'pids/z']) mkdirSync(join(dir, own))
  const cgroups = Cgroups.prepare('dormouse-1', dir)
  assert.deepEqual(cgroups.answer, { version: 'v1', controllers: ['cpu', 'memory', 'pids'] })
  // All of them together beside the daemon, and whatever else runs where it does.
  assert.equal(readFileSync(join(dir, 'cpu/dormouse-1/cpu.shares'), 'utf8'), `${1024 * Math.min(100, availableParallelism())}`)
  const made = await cgroups.make('vm', LIMITS)
  assert.deepEqual(
    made,
    ['cpu', 'memory/y', 'pids/z'].map((own) => join(dir, own, 'dormouse-1/vm')),
  )
  const written = Object.fromEntries(made.flatMap((own) => readdirSync(own).map((file) => [file, readFileSync(join(own, file), 'utf8')])))
  assert.deepEqual(written, {
    'cpu.shares': '2048',
    'cpu.cfs_period_us': '100000',
    'cpu.cfs_quota_us': '300000',
    'memory.limit_in_bytes': String(2 ** 30),
    'pids.max': '264',
  })
  assert.deepEqual(cgroups.list(), ['vm'])
  for (const own of ['cpu', 'memory/y', 'pids/z']) rmSync(join(dir, own, 'dormouse-1'), { recursive: true })
  assert.equal((await cgroups.make('another', LIMITS)).length, 3)
  assert.deepEqual(cgroups.list(), ['another'])
})

test('a host without cgroups, or one that may not be written, is told of and nothing is made', async (t) => {
  const none = Cgroups.prepare('dormouse-1', madeUp(t, [], '0::/\n'))
  assert.deepEqual([none.answer.version, none.answer.controllers], ['none', []])
  assert.match(none.answer.reason ?? '', /no cgroup file system is mounted for cpu, memory, pids/)
  assert.deepEqual(await none.make('vm', LIMITS), [])
  await none.move('vm', [1])
  await none.remove('vm')
  // A directory that is not there stands for one that cannot be written.
  const closed = Cgroups.prepare('dormouse-1', madeUp(t, [['memory', '/', 'cgroup', 'memory']], '1:memory:/gone\n'))
  assert.deepEqual([closed.answer.version, closed.answer.controllers], ['none', []])
  assert.match(closed.answer.reason ?? '', /memory: ENOENT|no cgroup file system/)
  assert.equal(Cgroups.prepare('dormouse-1', join(tmpdir(), 'absent')).answer.version, 'none')
})

test('who is in a cgroup and cannot be seen from here is no process to end', async (t) => {
  const dir = madeUp(t, [['pids', '/', 'cgroup', 'pids']], '1:pids:/\n')
  const cgroups = Cgroups.prepare('dormouse-1', dir)
  const [own = ''] = await cgroups.make('vm', LIMITS)
  // 0 to kill() is the process group of whoever calls it.
  writeFileSync(join(own, 'cgroup.procs'), `0\n${process.pid}\n`)
  assert.deepEqual(await cgroups.members('vm'), [process.pid])
})

test('with cgroup v2 what hands nothing down is left as it was', (t) => {
  const dir = madeUp(t, [['unified', '/', 'cgroup2', 'nsdelegate']], '0::/system.slice/a.service\n')
  const own = join(dir, 'unified/system.slice/a.service')
  mkdirSync(own, { recursive: true })
  for (const place of [own, join(dir, 'unified')]) {
    writeFileSync(join(place, 'cgroup.controllers'), 'io\n')
    writeFileSync(join(place, 'cgroup.subtree_control'), '')
  }
  const cgroups = Cgroups.prepare('dormouse-1', dir)
  assert.equal(cgroups.answer.version, 'none')
  assert.deepEqual(
    [own, join(dir, 'unified')].map((place) => readdirSync(place).includes('dormouse-1')),
    [false, false],
  )
})
