import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { print, printJson } from '../../output/print.ts'
import { parseGigabytes } from '../../parse/values.ts'

export function define(command: Command): void {
  command
    .argument('<volume>', 'name or id')
    .argument('<size>', 'its new size, such as 20g')
    .option('--json', 'for programs: the volume')
    .addHelpText('after', '\nAn instance that runs and writes to it has the room at once. A volume cannot be made smaller.')
    .action((volume: string, size: string) => grow(volume, size, command.optsWithGlobals()))
}

async function grow(id: string, size: string, options: HostOption & { json?: true }): Promise<void> {
  const volume = await connect(options).call('updateVolume', { params: { id }, body: { size_gb: parseGigabytes(size) } })
  if (options.json) printJson(volume)
  else print(volume.id)
}
