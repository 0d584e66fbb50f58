import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { print, printJson } from '../../output/print.ts'
import { parseCompression } from '../../parse/compression.ts'
import { collect, parseTags } from '../../parse/values.ts'

interface Options extends HostOption {
  readonly name?: string
  readonly tag?: string[]
  readonly compress?: string
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<instance>', 'name, id or the beginning of an id')
    .option('-n, --name <name>', 'of the snapshot; an instance has each name once')
    .option('-t, --tag <key=value>', 'a tag of your own; may be repeated', collect)
    .option('--compress <algorithm[:level]>', 'compress its memory afterwards: zstd, zstd:3, lz4; off: do not')
    .option('--json', 'for programs: the snapshot')
    .addHelpText(
      'after',
      '\nOf an instance that is stopped it holds the disk, of any other memory and disk. An instance that runs goes on.',
    )
    .action((instance: string) => create(instance, command.optsWithGlobals()))
}

async function create(name: string, options: Options): Promise<void> {
  const tags = parseTags(options.tag ?? [])
  const compression = options.compress === undefined ? undefined : parseCompression(options.compress)
  const daemon = connect(options)
  const { id, state } = await daemon.call('getInstance', { params: { id: name } })
  const snapshot = await daemon.call('createSnapshot', {
    params: { id },
    body: {
      kind: state === 'Stopped' ? 'Stopped' : 'Standby',
      ...(options.name !== undefined && { name: options.name }),
      ...(tags !== undefined && { tags }),
      ...(compression !== undefined && { compression }),
    },
  })
  if (options.json) printJson(snapshot)
  else print(snapshot.id)
}
