import type { Volume } from '@dormouse/api/volumes.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { ago } from '../../output/format.ts'
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
    .option('-t, --tag <key=value>', 'only those with this tag; may be repeated', collect)
    .option('-q, --quiet', 'ids alone')
    .option('--json', 'for programs')
    .action(() => list(command.optsWithGlobals()))
}

async function list(options: Options): Promise<void> {
  const tags = parseTags(options.tag ?? [])
  const daemon = connect(options)
  const volumes = await daemon.call('listVolumes', { query: tags === undefined ? {} : { tags } })
  if (options.json) return printJson(volumes)
  if (options.quiet) {
    for (const { id } of volumes) print(id)
    return
  }
  const names = new Map((await daemon.call('listInstances', {})).map(({ id, name }) => [id, name]))
  printTable(columns(names, Date.now()), volumes)
}

const columns = (names: ReadonlyMap<string, string>, now: number): Column<Volume>[] => [
  { title: 'NAME', value: ({ name }) => name, shrinksTo: 20 },
  { title: 'ID', value: ({ id }) => id },
  { title: 'SIZE', value: ({ size_gb }) => `${size_gb}GB`, align: 'right' },
  {
    title: 'ATTACHED TO',
    value: ({ attachments = [] }) =>
      attachments
        .map(({ instance_id, mount_path, readonly }) => `${names.get(instance_id) ?? instance_id}:${mount_path}${readonly ? ':ro' : ''}`)
        .join(', '),
    shrinksTo: 12,
  },
  { title: 'CREATED', value: ({ created_at }) => ago(created_at, now) },
]
