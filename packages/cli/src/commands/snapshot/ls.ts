import type { Snapshot } from '@dormouse/api/snapshots.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { ago, humanBytes } from '../../output/format.ts'
import { print, printJson, printTable } from '../../output/print.ts'
import type { Column } from '../../output/table.ts'
import { collect, parseTags } from '../../parse/values.ts'

interface Options extends HostOption {
  readonly tag?: string[]
  readonly quiet?: true
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('[instance]', 'only those of this instance, by name, id or the beginning of an id')
    .option('-t, --tag <key=value>', 'only those with this tag; may be repeated', collect)
    .option('-q, --quiet', 'ids alone')
    .option('--json', 'for programs')
    .action((instance: string | undefined) => list(instance, command.optsWithGlobals()))
}

async function list(instance: string | undefined, options: Options): Promise<void> {
  const tags = parseTags(options.tag ?? [])
  const daemon = connect(options)
  const source = instance === undefined ? undefined : await daemon.call('getInstance', { params: { id: instance } })
  const snapshots = await daemon.call('listSnapshots', {
    query: { ...(source !== undefined && { source_instance_id: source.id }), ...(tags !== undefined && { tags }) },
  })
  if (options.json) return printJson(snapshots)
  if (options.quiet) for (const { id } of snapshots) print(id)
  else printTable(columns(Date.now()), snapshots)
}

const columns = (now: number): Column<Snapshot>[] => [
  { title: 'ID', value: ({ id }) => id },
  { title: 'NAME', value: ({ name }) => name ?? '', shrinksTo: 12 },
  { title: 'INSTANCE', value: ({ source_instance_name }) => source_instance_name, shrinksTo: 12 },
  { title: 'KIND', value: ({ kind }) => kind },
  { title: 'SIZE', value: ({ size_bytes }) => humanBytes(size_bytes), align: 'right' },
  { title: 'CREATED', value: ({ created_at }) => ago(created_at, now) },
]
