import type { Image } from '@dormouse/api/images.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { ago, humanBytes, shortDigest } from '../../output/format.ts'
import { print, printJson, printTable } from '../../output/print.ts'
import { paintState, styleOf } from '../../output/style.ts'
import type { Column } from '../../output/table.ts'
import { collect, parseTags } from '../../parse/values.ts'

interface Options extends HostOption {
  readonly tag?: string[]
  readonly quiet?: true
  readonly trunc: boolean
  readonly json?: true
}

export function define(command: Command): void {
  command
    .option('-t, --tag <key=value>', 'only those with this tag; may be repeated', collect)
    .option('-q, --quiet', 'names alone')
    .option('--no-trunc', 'whole digests')
    .option('--json', 'for programs')
    .action(() => list(command.optsWithGlobals()))
}

async function list(options: Options): Promise<void> {
  const tags = parseTags(options.tag ?? [])
  const images = await connect(options).call('listImages', { query: tags === undefined ? {} : { tags } })
  if (options.json) return printJson(images)
  if (options.quiet) for (const { name } of images) print(name)
  else printTable(columns(options, Date.now()), images)
}

function columns(options: Options, now: number): Column<Image>[] {
  const style = styleOf(process.stdout)
  return [
    { title: 'NAME', value: ({ name }) => name, shrinksTo: 20 },
    { title: 'DIGEST', value: ({ digest }) => (options.trunc ? shortDigest(digest) : digest) },
    { title: 'PLATFORM', value: ({ platform }) => platform ?? '' },
    { title: 'STATUS', value: ({ status }) => status, paint: (text, { status }) => paintState(style, status) + text.slice(status.length) },
    { title: 'SIZE', value: ({ size_bytes }) => (typeof size_bytes === 'number' ? humanBytes(size_bytes) : '-'), align: 'right' },
    { title: 'CREATED', value: ({ created_at }) => ago(created_at, now) },
    { title: '', value: ({ error }) => error ?? '', shrinksTo: 10 },
  ]
}
