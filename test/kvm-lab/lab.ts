/**
 * `make test-kvm`: stories with real VMs on real KVM, on any machine.
 *
 *   node test/kvm-lab/lab.ts [FILE…]     test files; without any, those of `STORIES`
 *   node test/kvm-lab/lab.ts --bench [PROMISE…]   figures of create, standby, restore and fork of each driver, beside its VMM by hand; as often as
 *                                                 BENCH_RUNS says
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
import { createInterface } from 'node:readline'
import type { Outcome } from '../../bench/promise.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'
import { stayInLab } from './machine.ts'
import { makeParts } from './parts.ts'
import { RESULT } from './results.ts'
import { BENCH, FACTS, type Facts } from './run-facts.ts'
import { type Figure, RUNS, type Run } from './runs.ts'
import { STORIES } from './stories.ts'
import { tryKvm } from './try-kvm.ts'

/** The slowest of them takes its time where a processor that emulates another emulates a third. */
const LIMIT_MS = 6 * 3_600_000
/** A host that takes longer is no better than the lab. */
const HOST_LIMIT_MS = 30_000
/** How slow it is there is only found out by that. */
const PATIENT_NODE = ['node', '--import=./test/kvm-lab/longer-limits.ts']
const TOLD = ['TEST_TIME_FACTOR=40', ...(process.env.BENCH_RUNS === undefined ? [] : [`BENCH_RUNS=${process.env.BENCH_RUNS}`])]
const LAB = join(REPOSITORY, 'build/kvm-lab')

const args = process.argv.slice(2)
const command =
  args[0] === '--'
    ? args.slice(1)
    : [
        'env',
        ...TOLD,
        ...PATIENT_NODE,
        'test/kvm-lab/run.ts',
        ...(args.length > 0 ? args : STORIES.map((name) => `test/vm/${name}.test.ts`)),
      ]

mkdirSync(LAB, { recursive: true })
const report = join(LAB, 'report.log')
writeFileSync(report, '')
process.exitCode = (await hasKvm()) ? await runHere() : await runInLab()

async function hasKvm(): Promise<boolean> {
  const { works, reason } = await tryKvm(HOST_LIMIT_MS)
  say(works ? 'KVM works on this host: its guests run here' : `${reason}: its guests run in a machine that is emulated`)
  return works
}

async function runHere(): Promise<number> {
  const [program = '', ...rest] = command
  const child = spawn(program, rest, { stdio: ['ignore', 'pipe', 'inherit'], cwd: REPOSITORY })
  const ended = once(child, 'exit')
  const heard = listener('this host')
  for await (const line of createInterface({ input: child.stdout })) heard(line)
  const [code] = (await ended) as [number | null]
  return code ?? 1
}

async function runInLab(): Promise<number> {
  const step = { signal: AbortSignal.timeout(LIMIT_MS), log: silentLogger }
  const parts = await makeParts(step, say)
  const from = performance.now()
  const code = await stayInLab(
    {
      parts,
      command,
      memoryMib: Math.max(4096, Math.min(10_240, Math.floor(freemem() / 2 ** 20 / 2))),
      consoleFile: join(LAB, 'console.log'),
      errorFile: join(LAB, 'qemu.log'),
      onLine: listener('an emulated machine'),
    },
    step,
  )
  say(`${Math.round((performance.now() - from) / 1000)} s in the lab; what it said is in build/kvm-lab/report.log, its console beside it`)
  return code
}

/** Says on what people read, and keeps results. */
function listener(where: string): (line: string) => void {
  let facts: unknown
  return (line) => {
    appendFileSync(report, `${line}\n`)
    if (line.startsWith(FACTS)) facts = JSON.parse(line.slice(FACTS.length))
    const got = { at: new Date().toISOString(), where, facts: facts as Facts }
    if (line.startsWith(RESULT)) keepRun({ ...got, ...JSON.parse(line.slice(RESULT.length)) })
    if (line.startsWith(BENCH)) {
      for (const outcome of JSON.parse(line.slice(BENCH.length)) as Outcome[]) {
        const { samples: _, ...rest } = outcome
        keepFigure({ ...got, outcome: rest })
      }
    }
    if (![FACTS, RESULT, BENCH].some((mark) => line.startsWith(mark))) console.log(line)
  }
}

// Functions, since they are called before a constant here would be one.
function keepRun(run: Run): void {
  keep(run.story, run)
}

function keepFigure(figure: Figure): void {
  keep(`figure-${figure.outcome.id}`, figure)
}

function keep(name: string, what: Run | Figure): void {
  mkdirSync(RUNS, { recursive: true })
  writeFileSync(join(RUNS, `${name}.json`), `${JSON.stringify(what, undefined, 2)}\n`)
}

function say(words: string): void {
  console.error(`lab: ${words}`)
}
