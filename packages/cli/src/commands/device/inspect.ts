import type { Device } from '@dormouse/api/devices.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { forEachName } from '../../each.ts'
import { printJson } from '../../output/print.ts'

export function define(command: Command): void {
  command
    .argument('<device...>', 'name or id')
    .option('--json', 'for programs; this is what it prints anyway')
    .addHelpText('after', '\nPrints one object for one device, an array for several.')
    .action((names: string[]) => inspect(names, command.optsWithGlobals()))
}

async function inspect(names: readonly string[], options: HostOption & { json?: true }): Promise<void> {
  const daemon = connect(options)
  const found: Device[] = []
  await forEachName(names, options, async (id) => void found.push(await daemon.call('getDevice', { params: { id } })))
  if (names.length > 1) printJson(found)
  else for (const device of found) printJson(device)
}
