import { formatDuration } from '@dormouse/api/units.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { print, printJson } from '../../output/print.ts'
import { collect, parseCount, parseDurationOption } from '../../parse/values.ts'

interface Options extends HostOption {
  readonly after: string
  readonly ignoreSource?: string[]
  readonly ignorePort?: string[]
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<instance>', 'name, id or the beginning of an id')
    .requiredOption('--after <duration>', 'once no one has been connected to it for so long, such as 10m')
    .option('--ignore-source <network>', 'clients that do not keep it awake, such as 10.0.0.0/8; may be repeated', collect)
    .option('--ignore-port <port>', 'a port of the guest whose connections do not keep it awake; may be repeated', collect)
    .option('--json', 'for programs: the instance')
    .addHelpText('after', '\nTakes the place of what was set before; something else begins to count anew.')
    .action((instance: string) => set(instance, command.optsWithGlobals()))
}

async function set(name: string, { after, ignoreSource = [], ignorePort = [], ...options }: Options): Promise<void> {
  const instance = await connect(options).call('updateInstance', {
    params: { id: name },
    body: {
      auto_standby: {
        enabled: true,
        idle_timeout: formatDuration(parseDurationOption(after)),
        ...(ignoreSource.length > 0 && { ignore_source_cidrs: ignoreSource }),
        ...(ignorePort.length > 0 && { ignore_destination_ports: ignorePort.map(parseCount) }),
      },
    },
  })
  if (options.json) printJson(instance)
  else print(instance.name)
}
