import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { forEachName } from '../each.ts'
import { becomeRunning } from '../instance-life.ts'
import { print, printJsonLine } from '../output/print.ts'

export function define(command: Command): void {
  command
    .argument('<name...>', 'name, id or the beginning of an id')
    .option('--no-wait', 'do not wait until they run')
    .option('--json', 'for programs: one object a line')
    .action((names: string[]) => start(names, command.optsWithGlobals()))
}

async function start(names: readonly string[], options: HostOption & { wait: boolean; json?: true }): Promise<void> {
  const daemon = connect(options)
  await forEachName(names, options, async (id) => {
    const started = await daemon.call('startInstance', { params: { id }, body: {} })
    const instance = options.wait ? await becomeRunning(daemon, started) : started
    if (options.json) printJsonLine(instance)
    else print(id)
  })
}
