import type { Volume } from '@dormouse/api/volumes.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { forEachName } from '../../each.ts'
import { printJson } from '../../output/print.ts'

export function define(command: Command): void {
  command
    .argument('<volume...>', 'name or id')
    .option('--json', 'for programs; this is what it prints anyway')
    .addHelpText('after', '\nPrints one object for one volume, an array for several.')
    .action((names: string[]) => inspect(names, command.optsWithGlobals()))
}

async function inspect(names: readonly string[], options: HostOption & { json?: true }): Promise<void> {
  const daemon = connect(options)
  const found: Volume[] = []
  await forEachName(names, options, async (id) => void found.push(await daemon.call('getVolume', { params: { id } })))
  if (names.length > 1) printJson(found)
  else for (const volume of found) printJson(volume)
}
