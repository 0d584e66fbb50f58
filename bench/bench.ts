/**
 * `make bench`: every promise of docs/promises.md beside its anchor, all from this run and this machine. Prints a table and
 * writes bench/out/promises.json. Names of promises as arguments measure those alone.
 *
 * A promise that is missed is a figure like any other: it is told, and does not fail the bench.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Installed, installedIn } from '../test/harness/installed.ts'
import { Scratch } from '../test/harness/scratch.ts'
import { DRIVERS, NotHere } from './drivers.ts'
import { measureApiThroughput } from './measures/api-throughput.ts'
import { measureBoots } from './measures/boots.ts'
import { measureCompression } from './measures/compression.ts'
import { measureDensity } from './measures/density.ts'
import { measureDiskThroughput } from './measures/disk-throughput.ts'
import { measureExecStream } from './measures/exec-stream.ts'
import { measureForks } from './measures/forks.ts'
import { measureImageConversion } from './measures/image-conversion.ts'
import { measureList } from './measures/list.ts'
import { measureNetwork } from './measures/network.ts'
import { measureOverheads } from './measures/overheads.ts'
import { measureProgramStarts } from './measures/program-starts.ts'
import { measureRestoreFlat } from './measures/restore-flat.ts'
import { measureSleep } from './measures/sleep.ts'
import { measureSseFanout } from './measures/sse-fanout.ts'
import { measureWakes } from './measures/wakes.ts'
import { measureWideFork } from './measures/wide-fork.ts'
import { type Measurement, type Outcome, outcomeOf } from './promise.ts'

export interface Bench {
  /** Gone after the bench. */
  readonly dir: string
  /** What is measured is what people have: the bundles of `make install`. */
  readonly installed: Installed
  readonly runs: number
  /** Says on standard error what is being done. */
  readonly tell: (what: string) => void
}

interface Measure {
  readonly ids: readonly string[]
  readonly run: (bench: Bench) => Promise<readonly Measurement[]>
}

/** `ways`: how else its VMM can be told to wake. */
const sleepIds = (suffix: string, ...ways: readonly string[]): string[] => [
  ...['standby', 'standby_third', 'standby_bytes', 'standby_bytes_third'].map((id) => `${id}${suffix}`),
  ...['', ...ways].map((way) => `restore${suffix}${way}`),
]

const forkIds = (suffix: string, ...ways: readonly string[]): string[] => [
  ...['', ...ways].map((way) => `fork_ready${suffix}${way}`),
  `snapshot_create${suffix}`,
]

const MEASURES: readonly Measure[] = [
  { ids: ['daemon_start', 'cli_start'], run: measureProgramStarts },
  { ids: ['list_1000'], run: measureList },
  { ids: ['api_throughput', 'api_throughput_list', 'api_p99'], run: measureApiThroughput },
  { ids: ['sse_fanout', 'sse_fanout_memory'], run: measureSseFanout },
  { ids: ['exec_stream', 'exec_stream_memory'], run: measureExecStream },
  { ids: ['image_convert'], run: measureImageConversion },
  { ids: ['api_overhead', 'stat_round_trip', 'create_overhead'], run: measureOverheads },
  {
    ids: ['create_to_running', 'create_to_running_cold_pool', 'exec_round_trip', 'daemon_rss'],
    run: (bench) => measureBoots(bench, DRIVERS.qemu),
  },
  { ids: ['compress', 'compress_size', 'restore_compressed'], run: measureCompression },
  {
    ids: ['create_to_running_microvm', 'create_to_running_microvm_cold_pool'],
    run: (bench) => measureBoots(bench, DRIVERS['qemu-microvm']),
  },
  {
    ids: [...['standby', 'standby_third', 'standby_bytes', 'standby_bytes_third', 'standby_libvirt'], ...['restore', 'restore_libvirt']],
    run: (bench) => measureSleep(bench, DRIVERS.qemu),
  },
  { ids: ['restore_cont', 'restore_ready'], run: measureWakes },
  { ids: ['restore_flat'], run: measureRestoreFlat },
  { ids: ['fork_pause', 'fork_ready', 'snapshot_create'], run: (bench) => measureForks(bench, DRIVERS.qemu) },
  { ids: ['net_setup', 'net_throughput', 'net_throughput_up'], run: measureNetwork },
  { ids: ['fork_20', 'fork_20_memory'], run: measureWideFork },
  { ids: ['disk_throughput', 'disk_throughput_read'], run: measureDiskThroughput },
  { ids: ['density_running', 'density_sleeping'], run: measureDensity },
  { ids: ['create_to_running_cloud_hypervisor'], run: (bench) => measureBoots(bench, DRIVERS['cloud-hypervisor']) },
  { ids: sleepIds('_cloud_hypervisor', '_ondemand'), run: (bench) => measureSleep(bench, DRIVERS['cloud-hypervisor']) },
  { ids: forkIds('_cloud_hypervisor', '_ondemand'), run: (bench) => measureForks(bench, DRIVERS['cloud-hypervisor']) },
  { ids: ['create_to_running_firecracker'], run: (bench) => measureBoots(bench, DRIVERS.firecracker) },
  { ids: sleepIds('_firecracker'), run: (bench) => measureSleep(bench, DRIVERS.firecracker) },
  { ids: forkIds('_firecracker'), run: (bench) => measureForks(bench, DRIVERS.firecracker) },
]

const wanted = process.argv.slice(2)
const runs = Number(process.env.BENCH_RUNS ?? 9)
const outcomes: Outcome[] = []
const notHere = new Set<string>()
const mark = process.env.BENCH_MARK
{
  await using scratch = await Scratch.make()
  const installed = await installedIn(join(scratch.path, 'installed'))
  const tell = (what: string): void => console.error(`bench: ${what}`)
  for (const { ids, run } of MEASURES) {
    if (wanted.length > 0 && !ids.some((id) => wanted.includes(id))) continue
    tell(ids.join(', '))
    try {
      const measured = (await run({ dir: scratch.path, installed, runs, tell })).filter(({ id }) => ids.includes(id)).map(outcomeOf)
      outcomes.push(...measured)
      // Whatever becomes of the rest, for a program that reads along.
      if (mark !== undefined) console.log(`${mark}${JSON.stringify(measured)}`)
    } catch (error) {
      if (!(error instanceof NotHere)) throw error
      tell(`not measured: ${error.message}`)
      notHere.add(error.message)
    }
  }
}
const file = join(import.meta.dirname, 'out/promises.json')
await mkdir(join(import.meta.dirname, 'out'), { recursive: true })
await writeFile(file, `${JSON.stringify(outcomes, undefined, 2)}\n`)
print(outcomes)
for (const reason of notHere) console.log(`not measured: ${reason}`)

function print(outcomes: readonly Outcome[]): void {
  const cells = outcomes.map(({ id, ours, anchor, unit, ratio, target, met, runs }) => [
    id,
    `${ours} ${unit}`,
    anchor === null ? '' : `${anchor} ${unit}`,
    ratio === null ? '' : `${ratio} ×`,
    target,
    met ? 'met' : 'MISSED',
    `${runs} runs`,
  ])
  const table = [['promise', 'ours', 'anchor', 'ratio', 'target', '', ''], ...cells]
  const widths = table[0]?.map((_, column) => Math.max(...table.map((row) => row[column]?.length ?? 0))) ?? []
  for (const row of table)
    console.log(
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
}
