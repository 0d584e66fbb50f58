import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { forEachName } from '../../each.ts'
import { print, printJsonLine } from '../../output/print.ts'

export function define(command: Command): void {
  command
    .argument('<device...>', 'name or id')
    .option('--json', 'for programs: one object a line')
    .action((names: string[]) => remove(names, command.optsWithGlobals()))
}

async function remove(names: readonly string[], options: HostOption & { json?: true }): Promise<void> {
  const daemon = connect(options)
  await forEachName(names, options, async (id) => {
    await daemon.call('deleteDevice', { params: { id } })
    if (options.json) printJsonLine({ device: id })
    else print(id)
  })
}
