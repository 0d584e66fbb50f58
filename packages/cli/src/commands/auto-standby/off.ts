import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { forEachName } from '../../each.ts'
import { print, printJsonLine } from '../../output/print.ts'

export function define(command: Command): void {
  command
    .argument('<instance...>', 'name, id or the beginning of an id')
    .option('--json', 'for programs: one instance a line')
    .action((names: string[]) => turnOff(names, command.optsWithGlobals()))
}

async function turnOff(names: readonly string[], options: HostOption & { json?: true }): Promise<void> {
  const daemon = connect(options)
  await forEachName(names, options, async (name) => {
    const instance = await daemon.call('updateInstance', { params: { id: name }, body: { auto_standby: { enabled: false } } })
    if (options.json) printJsonLine(instance)
    else print(instance.name)
  })
}
