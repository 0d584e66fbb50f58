import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { print, printJson } from '../../output/print.ts'

export function define(command: Command): void {
  command
    .argument('<instance>', 'name, id or the beginning of an id')
    .argument('<volume>', 'name or id')
    .option('--json', 'for programs: the instance')
    .addHelpText('after', '\nRefused while something in the instance uses it.')
    .action((instance: string, volume: string) => detach(instance, volume, command.optsWithGlobals()))
}

async function detach(name: string, volumeId: string, options: HostOption & { json?: true }): Promise<void> {
  const instance = await connect(options).call('detachVolume', { params: { id: name, volumeId } })
  if (options.json) printJson(instance)
  else print(instance.name)
}
