import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { print, printJson } from '../../output/print.ts'
import { collect, parseGigabytes, parseTags } from '../../parse/values.ts'

interface Options extends HostOption {
  readonly size: string
  readonly id?: string
  readonly tag?: string[]
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<name>', 'need not be the only one: an id is')
    .option('-s, --size <size>', 'such as 10g; takes space as it fills', '10g')
    .option('--id <id>', 'an id of your own; made up when left out')
    .option('-t, --tag <key=value>', 'a tag of your own; may be repeated', collect)
    .option('--json', 'for programs: the volume')
    .action((name: string) => create(name, command.optsWithGlobals()))
}

async function create(name: string, options: Options): Promise<void> {
  const tags = parseTags(options.tag ?? [])
  const body = {
    name,
    size_gb: parseGigabytes(options.size),
    ...(options.id !== undefined && { id: options.id }),
    ...(tags !== undefined && { tags }),
  }
  const volume = await connect(options).call('createVolume', { body })
  if (options.json) printJson(volume)
  else print(volume.id)
}
