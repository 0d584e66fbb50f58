import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { print, printJson } from '../../output/print.ts'

export function define(command: Command): void {
  command
    .argument('<image>', 'name, tag or digest')
    .argument('<target>', 'the second name')
    .option('--json', 'for programs')
    .action((name: string, target: string) => tag(name, target, command.optsWithGlobals()))
}

async function tag(name: string, target: string, options: HostOption & { json?: true }): Promise<void> {
  const image = await connect(options).call('tagImage', { params: { name }, body: { target } })
  if (options.json) printJson(image)
  else print(image.name)
}
