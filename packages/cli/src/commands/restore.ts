import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { forEachName } from '../each.ts'
import { print, printJsonLine } from '../output/print.ts'

export function define(command: Command): void {
  command
    .argument('<name...>', 'name, id or the beginning of an id')
    .option('--json', 'for programs: one object a line')
    .action((names: string[]) => restore(names, command.optsWithGlobals()))
}

async function restore(names: readonly string[], options: HostOption & { json?: true }): Promise<void> {
  const daemon = connect(options)
  await forEachName(names, options, async (id) => {
    const instance = await daemon.call('restoreInstance', { params: { id }, query: {}, body: {} })
    if (options.json) printJsonLine(instance)
    else print(id)
  })
}
