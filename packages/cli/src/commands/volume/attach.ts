import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { print, printJson } from '../../output/print.ts'
import { parseMount } from '../../parse/mounts.ts'

export function define(command: Command): void {
  command
    .argument('<instance>', 'name, id or the beginning of an id')
    .argument('<volume:path[:ro][:overlay=size]>', 'as `run -v` takes it')
    .option('--json', 'for programs: the instance')
    .addHelpText('after', '\nAt once while the instance runs, else from its next start on.')
    .action((instance: string, spec: string) => attach(instance, spec, command.optsWithGlobals()))
}

async function attach(name: string, spec: string, options: HostOption & { json?: true }): Promise<void> {
  const { volume_id: volumeId, ...body } = parseMount(spec)
  const instance = await connect(options).call('attachVolume', { params: { id: name, volumeId }, body })
  if (options.json) printJson(instance)
  else print(instance.name)
}
