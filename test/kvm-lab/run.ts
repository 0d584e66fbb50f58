/**
 * Runs stories where KVM works, in the lab or on a host of its own, with limits as long as that machine is slow:
 *
 *   node test/kvm-lab/run.ts FILE…
 *   node test/kvm-lab/run.ts --bench [PROMISE…]
 *
 * Ends with the runner's count and exit code. Lines that begin with `lab: ` are for lab.ts.
 */
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { availableParallelism, cpus, totalmem } from 'node:os'
import { join } from 'node:path'
import { startDaemon } from '../harness/daemon-process.ts'
import { Scratch } from '../harness/scratch.ts'
import { BENCH, FACTS, type Facts } from './run-facts.ts'
import { tryKvm } from './try-kvm.ts'

/** What a boot takes on a machine that limits were written for. */
const USUAL_BOOT_MS = 1500
const LONGEST_BOOT_MS = 600_000
const SLOWEST = 40
/** A machine that is slow is so by what else its host does, and that changes while stories run: it was measured but once. */
const SLOWER_YET = 2
/** Of a file; its tests have limits of their own. */
const FILE_LIMIT_MS = 4 * 3_600_000
/** What an instance's life is made of, of each driver; each has the driver's own VMM by hand beside it in the same run. */
const PROMISES = ['', '_cloud_hypervisor', '_firecracker'].flatMap((driver) =>
  ['create_to_running', 'standby', 'restore', 'fork_ready'].map((promise) => `${promise}${driver}`),
)
const REPOSITORY = join(import.meta.dirname, '../..')

const args = process.argv.slice(2)
const isBench = args[0] === '--bench'
// The bench has a daemon that is installed.
if (!isBench) await compileDaemon()
const facts = await findOut()
console.log(`${FACTS}${JSON.stringify(facts)}`)
const limits = {
  TEST_TIME_FACTOR: `${facts.factor}`,
  NODE_OPTIONS: `--import=${join(import.meta.dirname, 'longer-limits.ts')}`,
}
const daemons = {
  ...limits,
  DORMOUSE_KVM_PROBE_LIMIT: `${20 * facts.factor}s`,
  DORMOUSE_BOOT_LIMIT: `${60 * facts.factor}s`,
}
const runner = [
  ...['--test', '--test-concurrency=1', `--test-timeout=${FILE_LIMIT_MS}`],
  ...['--test-reporter=spec', '--test-reporter-destination=stdout'],
  ...[`--test-reporter=${join(import.meta.dirname, 'results.ts')}`, '--test-reporter-destination=stdout'],
]
const child = spawn('node', isBench ? ['bench/bench.ts', ...(args.length > 1 ? args.slice(1) : PROMISES)] : [...runner, ...args], {
  stdio: ['ignore', 'inherit', 'inherit'],
  cwd: REPOSITORY,
  env: { BENCH_RUNS: '3', BENCH_MARK: BENCH, ...process.env, ...limits, TEST_DAEMON_SETTINGS: JSON.stringify(daemons) },
})
const [code] = (await once(child, 'exit')) as [number | null]
process.exitCode = code ?? 1

/**
 * A daemon from source strips the types of some hundred files and compiles them, and Node keeps what it compiled when a process ends in order.
 * Those of stories are mostly killed, so that each would begin anew, for minutes; one that is stopped does it for all of them.
 */
async function compileDaemon(): Promise<void> {
  await using scratch = await Scratch.make()
  await using daemon = await startDaemon({ dir: join(scratch.path, 'd'), driver: 'fake' })
  console.log(`lab: a daemon was compiled and started in ${(daemon.startMs / 1000).toFixed(1)} s`)
  await daemon.stop()
}

async function findOut(): Promise<Facts> {
  const { works, reason, ms: bootMs } = await tryKvm(LONGEST_BOOT_MS)
  if (!works) throw new Error(`There is no KVM to try: ${reason}`)
  const [cpu] = cpus()
  return {
    machine: `${availableParallelism()} × ${cpu?.model.trim()}, ${Math.round(totalmem() / 2 ** 20)} MiB`,
    kernel: readFileSync('/proc/sys/kernel/osrelease', 'latin1').trim(),
    distribution: /^PRETTY_NAME="?([^"\n]*)/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1] ?? 'unknown',
    node: process.version,
    qemu: firstLine('qemu-system-x86_64'),
    others: ['cloud-hypervisor', 'firecracker'].map((program) => `${program}: ${firstLine(program)}`),
    guestKernel: readFileSync(join(REPOSITORY, 'build/kernel/version'), 'utf8').trim(),
    bootMs,
    factor: bootMs <= USUAL_BOOT_MS ? 1 : Math.min(SLOWEST, Math.ceil((SLOWER_YET * bootMs) / USUAL_BOOT_MS)),
  }
}

function firstLine(program: string): string {
  try {
    return execFileSync(program, ['--version'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).split('\n', 1)[0] ?? ''
  } catch {
    return 'not there'
  }
}
