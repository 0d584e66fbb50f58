import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { print, printJson } from '../../output/print.ts'
import { collect, parseTags } from '../../parse/values.ts'

interface Options extends HostOption {
  readonly name?: string
  readonly tag?: string[]
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<address>', 'such as 0000:65:00.0; `dormouse device available` lists them')
    .option('-n, --name <name>', 'of its own; made of the address when left out')
    .option('-t, --tag <key=value>', 'a tag of your own; may be repeated', collect)
    .option('--json', 'for programs: the device')
    .addHelpText('after', '\nNothing of the host changes by it: its driver lets go of it when an instance that has it starts.')
    .action((address: string) => create(address, command.optsWithGlobals()))
}

async function create(address: string, options: Options): Promise<void> {
  const tags = parseTags(options.tag ?? [])
  const body = {
    pci_address: address,
    ...(options.name !== undefined && { name: options.name }),
    ...(tags !== undefined && { tags }),
  }
  const device = await connect(options).call('createDevice', { body })
  if (options.json) printJson(device)
  else print(device.name ?? device.id)
}
