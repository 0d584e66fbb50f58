import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { forEachName } from '../../each.ts'
import { print, printJsonLine, remark } from '../../output/print.ts'

export function define(command: Command): void {
  command
    .argument('<instance...>', 'name, id or the beginning of an id')
    .option('--json', 'for programs: how it then stands, one object a line')
    .addHelpText('after', '\nUntil the time that it names it is safe to connect. What sleeps already is restored, not held.')
    .action((names: string[]) => hold(names, command.optsWithGlobals()))
}

async function hold(names: readonly string[], options: HostOption & { json?: true }): Promise<void> {
  const daemon = connect(options)
  await forEachName(names, options, async (name) => {
    const status = await daemon.call('holdAutoStandby', { params: { id: name } })
    if (options.json) return printJsonLine(status)
    print(name)
    remark(status.hold_until ? `Held awake until ${status.hold_until}` : 'It never sleeps by itself: there is nothing to hold')
  })
}
