import type { Image } from '@dormouse/api/images.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { forEachName } from '../../each.ts'
import { printJson } from '../../output/print.ts'

export function define(command: Command): void {
  command
    .argument('<image...>', 'name, tag or digest')
    .option('--json', 'for programs; this is what it prints anyway')
    .addHelpText('after', '\nPrints one object for one image, an array for several.')
    .action((names: string[]) => inspect(names, command.optsWithGlobals()))
}

async function inspect(names: readonly string[], options: HostOption & { json?: true }): Promise<void> {
  const daemon = connect(options)
  const found: Image[] = []
  await forEachName(names, options, async (name) => void found.push(await daemon.call('getImage', { params: { name } })))
  if (names.length > 1) printJson(found)
  else for (const image of found) printJson(image)
}
