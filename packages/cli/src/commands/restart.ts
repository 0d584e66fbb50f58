import { formatDuration } from '@dormouse/api/units.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { forEachName } from '../each.ts'
import { becomeRunning } from '../instance-life.ts'
import { print, printJsonLine } from '../output/print.ts'
import { parseDurationOption } from '../parse/values.ts'

export function define(command: Command): void {
  command
    .argument('<name...>', 'name, id or the beginning of an id')
    .option('-t, --timeout <duration>', 'how long the workload may take to end by itself, such as 10s')
    .option('--no-wait', 'do not wait until they run again')
    .option('--json', 'for programs: one object a line')
    .action((names: string[]) => restart(names, command.optsWithGlobals()))
}

async function restart(names: readonly string[], options: HostOption & { timeout?: string; wait: boolean; json?: true }): Promise<void> {
  const timeout = options.timeout === undefined ? undefined : formatDuration(parseDurationOption(options.timeout))
  const daemon = connect(options)
  await forEachName(names, options, async (id) => {
    await daemon.call('stopInstance', { params: { id }, body: timeout === undefined ? {} : { timeout } })
    const started = await daemon.call('startInstance', { params: { id }, body: {} })
    const instance = options.wait ? await becomeRunning(daemon, started) : started
    if (options.json) printJsonLine(instance)
    else print(id)
  })
}
