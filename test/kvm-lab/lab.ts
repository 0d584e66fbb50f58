/**
 * `make test-kvm`: stories with real VMs on real KVM, on any machine.
 *
 *   node test/kvm-lab/lab.ts [FILE…]     test files; without any, those of `STORIES`
 *   node test/kvm-lab/lab.ts -- COMMAND  a command of the project instead, such as: bin/dormouse doctor
 *
 * Where guests boot with this host's own /dev/kvm they run right here. Elsewhere they run in a machine that is emulated, in which KVM works:
 * a Debian of its own with this checkout in it. Ends with the runner's count and its exit code.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, mkdirSync, writeFileSync } from 'node:fs'
import { freemem } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { makeStep, qemuUnderTest } from '../harness/qemu-driver.ts'
import { stayInLab } from './machine.ts'
import { makeParts } from './parts.ts'

/** What KVM has a part in: how guests boot with it, sleep, wake and multiply, and their networks. */
const STORIES = [
  'driver-kvm-probe',
  'driver-golden',
  'driver-qemu',
  'driver-qemu-microvm',
  'guest-agent',
  'guest-waking',
  'lifecycle-qemu',
  'sleep-qemu',
  'fork-qemu',
  'snapshots-qemu',
  'cgroups',
  'isolation',
  'network-bridged',
]
/** The slowest of them takes its time where a processor that emulates another emulates a third. */
const LIMIT_MS = 6 * 3_600_000
const TEST_LIMIT_MS = 1_800_000
const LAB = join(REPOSITORY, 'build/kvm-lab')
/** Of daemons there: a boot takes up to fourteen seconds on a machine that has nothing else to do. */
const SETTINGS = { DORMOUSE_KVM_PROBE_LIMIT: '3m', DORMOUSE_BOOT_LIMIT: '10m' }

const args = process.argv.slice(2)
const command =
  args[0] === '--'
    ? args.slice(1)
    : [
        ...['node', '--test', '--test-reporter=spec', '--test-concurrency=1', `--test-timeout=${TEST_LIMIT_MS}`],
        ...(args.length > 0 ? args : STORIES.map((name) => `test/vm/${name}.test.ts`)),
      ]

process.exitCode = (await hasKvm()) ? await runHere() : await runInLab()

async function hasKvm(): Promise<boolean> {
  await using driver = await qemuUnderTest('qemu', agentManners)
  const { acceleration, reason } = await driver.hypervisor.probe(makeStep())
  say(acceleration === 'kvm' ? 'KVM works on this host: its guests run here' : `${reason}: its guests run in a machine that is emulated`)
  return acceleration === 'kvm'
}

async function runHere(): Promise<number> {
  const [program = '', ...rest] = command
  const child = spawn(program, rest, { stdio: ['ignore', 'inherit', 'inherit'], cwd: REPOSITORY })
  const [code] = (await once(child, 'exit')) as [number | null]
  return code ?? 1
}

async function runInLab(): Promise<number> {
  const step = { signal: AbortSignal.timeout(LIMIT_MS), log: silentLogger }
  const parts = await makeParts(step, say)
  mkdirSync(LAB, { recursive: true })
  const report = join(LAB, 'report.log')
  writeFileSync(report, '')
  const from = performance.now()
  const code = await stayInLab(
    {
      parts,
      command,
      settings: SETTINGS,
      memoryMib: Math.max(4096, Math.min(10_240, Math.floor(freemem() / 2 ** 20 / 2))),
      consoleFile: join(LAB, 'console.log'),
      errorFile: join(LAB, 'qemu.log'),
      onLine: (line) => {
        console.log(line)
        appendFileSync(report, `${line}\n`)
      },
    },
    step,
  )
  say(`${Math.round((performance.now() - from) / 1000)} s in the lab; what it said is in build/kvm-lab/report.log, its console beside it`)
  return code
}

function say(words: string): void {
  console.error(`lab: ${words}`)
}
