import { formatDuration } from '@dormouse/api/units.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { forEachName } from '../each.ts'
import { print, printJsonLine } from '../output/print.ts'
import { parseDurationOption } from '../parse/values.ts'

export function define(command: Command): void {
  command
    .argument('<name...>', 'name, id or the beginning of an id')
    .option('-t, --timeout <duration>', 'how long the workload may take to end by itself, such as 10s')
    .option('-f, --force', 'kill at once')
    .option('--json', 'for programs: one object a line')
    .action((names: string[]) => stop(names, command.optsWithGlobals()))
}

async function stop(names: readonly string[], options: HostOption & { timeout?: string; force?: true; json?: true }): Promise<void> {
  const timeout = options.timeout === undefined ? undefined : formatDuration(parseDurationOption(options.timeout))
  const daemon = connect(options)
  await forEachName(names, options, async (id) => {
    const instance = await daemon.call('stopInstance', {
      params: { id },
      body: { ...(timeout !== undefined && { timeout }), ...(options.force && { force: true }) },
    })
    if (options.json) printJsonLine(instance)
    else print(id)
  })
}
