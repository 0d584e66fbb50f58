import type { GarbageKind, PruneResponse } from '@dormouse/api/garbage.ts'
import { formatDuration } from '@dormouse/api/units.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { EXIT, usageFailure } from '../failure.ts'
import { humanBytes } from '../output/format.ts'
import { print, printJson, printTable, warn } from '../output/print.ts'
import { collect, parseChoice, parseDurationOption } from '../parse/values.ts'
import { confirm } from '../terminal.ts'

interface Options extends HostOption {
  readonly all?: true
  readonly kind?: string[]
  readonly olderThan?: string
  readonly dryRun?: true
  readonly force?: true
  readonly json?: true
}

const KINDS: Readonly<Record<GarbageKind, string>> = {
  images: 'Images',
  layers: 'Image layers',
  golden_boots: 'Golden boots',
  memory_bases: 'Memory bases',
  drafts: 'Drafts',
  logs: 'Old logs',
}

export function define(command: Command): void {
  command
    .option('-a, --all', 'also what can be had again: pulled images that no instance stands on, golden boots, logs of the boot before')
    .option('--kind <kind>', `only this: ${Object.keys(KINDS).join(', ')}; may be repeated`, collect)
    .option('--older-than <duration>', 'only what was not used for so long, such as 7d')
    .option('--dry-run', 'say what would go')
    .option('-f, --force', 'do not ask')
    .option('--json', 'for programs; does not ask')
    .addHelpText(
      'after',
      '\nImages that were pushed here or imported are kept: with --all --kind images they go, too.\nNothing that an instance, a sleeper, a snapshot or a volume needs is ever removed. What takes how much: dormouse df',
    )
    .action(() => prune(command.optsWithGlobals()))
}

async function prune(options: Options): Promise<void> {
  const kinds = options.kind?.map((kind) => parseChoice(kind, Object.keys(KINDS) as GarbageKind[], 'kind'))
  const olderThan = options.olderThan === undefined ? undefined : formatDuration(parseDurationOption(options.olderThan))
  if (!options.force && !options.json && !options.dryRun) {
    if (!process.stdin.isTTY) throw usageFailure('There is no one to ask', 'Say so with: dormouse prune --force')
    const what = options.all ? 'what no instance stands on, images with it' : 'what no one can miss'
    if (!(await confirm(`Delete ${what}?`))) return
  }
  const pruned = await connect(options).call('prune', {
    body: {
      ...(kinds !== undefined && { kinds }),
      ...(options.all && { all: true }),
      ...(olderThan !== undefined && { older_than: olderThan }),
      ...(options.dryRun && { dry_run: true }),
    },
  })
  if (options.json) printJson(pruned)
  else show(pruned)
  if (pruned.kinds.some(({ error }) => error !== undefined)) process.exitCode = EXIT.failed
}

function show({ kinds, freed_bytes, dry_run }: PruneResponse): void {
  // Files are called by digests and ids: a person knows the names of images.
  for (const { kind, names } of kinds) if (kind === 'images') for (const name of names) print(name)
  printTable(
    [
      { title: 'KIND', value: ({ kind }) => KINDS[kind] },
      { title: dry_run ? 'WOULD GO' : 'GONE', value: ({ names }) => `${names.length}`, align: 'right' },
      { title: 'SIZE', value: (one) => humanBytes(one.freed_bytes), align: 'right' },
    ],
    kinds,
  )
  for (const { kind, error } of kinds) if (error !== undefined) warn(`${KINDS[kind]}: ${error}`)
  print(`${humanBytes(freed_bytes)} ${dry_run ? 'would be freed' : 'freed'}`)
}
