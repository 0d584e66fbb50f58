import type { InstanceStats } from '@dormouse/api/instances.ts'
import type { Command } from 'commander'
import { connect, type Daemon, type HostOption } from '../daemon.ts'
import { humanBytes, percent } from '../output/format.ts'
import { print, printJson, printJsonLine } from '../output/print.ts'
import { styleOf } from '../output/style.ts'
import { type Column, renderTable } from '../output/table.ts'
import { parseDurationOption } from '../parse/values.ts'

interface Options extends HostOption {
  readonly stream: boolean
  readonly interval: string
  readonly all?: true
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('[name...]', 'name, id or the beginning of an id; all that run when left out')
    .option('-a, --all', 'those that do not run, too')
    .option('--no-stream', 'once, then end')
    .option('--interval <duration>', 'how often', '2s')
    .option('--json', 'for programs: with --no-stream an array, else one array a line')
    .action((names: string[]) => stats(names, command.optsWithGlobals()))
}

/** What one instance uses, and how much of a processor since the sample before. */
export interface Sample extends InstanceStats {
  readonly cpu_ratio?: number
}

// Short enough not to be felt, long enough for clock ticks of 10 ms to say something.
const FIRST_GAP_MS = 500

async function stats(names: readonly string[], options: Options): Promise<void> {
  const intervalMs = Math.max(100, parseDurationOption(options.interval))
  const daemon = connect(options)
  let before = await take(daemon, names, options)
  await sleep(options.stream ? Math.min(intervalMs, FIRST_GAP_MS) : FIRST_GAP_MS)
  for (;;) {
    const now = await take(daemon, names, options)
    const samples = compare(before, now)
    if (options.json) (options.stream ? printJsonLine : printJson)(samples)
    else show(samples, options.stream)
    if (!options.stream) return
    before = now
    await sleep(intervalMs)
  }
}

interface Taken {
  readonly atMs: number
  readonly stats: readonly InstanceStats[]
}

async function take(daemon: Daemon, names: readonly string[], options: Options): Promise<Taken> {
  const atMs = performance.now()
  if (names.length > 0) return { atMs, stats: await Promise.all(names.map((id) => daemon.call('getInstanceStats', { params: { id } }))) }
  const instances = await daemon.call('listInstances')
  const shown = options.all ? instances : instances.filter(({ state }) => state !== 'Stopped' && state !== 'Standby')
  // One may be gone between the list and the question.
  const found = await Promise.all(shown.map(({ id }) => daemon.call('getInstanceStats', { params: { id } }).catch(notFound)))
  return { atMs, stats: found.filter((each) => each !== undefined) }
}

const notFound = (error: unknown): undefined => {
  if (!(error instanceof Error && 'code' in error && error.code === 'not_found')) throw error
}

export function compare(before: Taken, now: Taken): Sample[] {
  const earlier = new Map(before.stats.map((each) => [each.instance_id, each]))
  const seconds = (now.atMs - before.atMs) / 1000
  return now.stats.map((each) => {
    const last = earlier.get(each.instance_id)
    // Less than before: another process, started in between.
    if (last === undefined || each.cpu_seconds < last.cpu_seconds || seconds <= 0) return each
    return { ...each, cpu_ratio: (each.cpu_seconds - last.cpu_seconds) / seconds }
  })
}

const COLUMNS: readonly Column<Sample>[] = [
  { title: 'NAME', value: ({ instance_name }) => instance_name, shrinksTo: 12 },
  { title: 'CPU', value: ({ cpu_ratio }) => (cpu_ratio === undefined ? '-' : percent(cpu_ratio)), align: 'right' },
  { title: 'VCPUS', value: ({ allocated_vcpus }) => String(allocated_vcpus), align: 'right' },
  {
    title: 'MEMORY',
    value: (sample) => `${humanBytes(sample.memory_rss_bytes)} / ${humanBytes(sample.allocated_memory_bytes)}`,
    align: 'right',
  },
  { title: 'NET IN', value: ({ network_rx_bytes }) => humanBytes(network_rx_bytes), align: 'right' },
  { title: 'NET OUT', value: ({ network_tx_bytes }) => humanBytes(network_tx_bytes), align: 'right' },
]

function show(samples: readonly Sample[], isLive: boolean): void {
  const { isTTY, columns } = process.stdout
  const table = renderTable(COLUMNS, samples, { width: isTTY ? columns : undefined, style: styleOf(process.stdout) })
  // On a terminal the table stays in its place; a pipe gets one after the other.
  print(isLive && isTTY ? `\u001b[H\u001b[2J${table}` : table)
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))
