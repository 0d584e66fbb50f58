import type { HypervisorKind } from '@dormouse/api/instances.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { print, printJson } from '../../output/print.ts'
import { targetStates } from '../../parse/states.ts'
import { parseChoice } from '../../parse/values.ts'

export function define(command: Command): void {
  command
    .argument('<id>', 'of the snapshot')
    .argument('<name>', 'of the new instance')
    .option('--to <state>', 'running, standby or stopped; running where it holds memory, when left out')
    .option('--hypervisor <name>', 'go on with another; for snapshots of the kind Stopped, which hold the disk alone')
    .option('--json', 'for programs: the instance')
    .action((id: string, name: string) => fork(id, name, command.optsWithGlobals()))
}

async function fork(
  snapshotId: string,
  name: string,
  options: HostOption & { to?: string; hypervisor?: string; json?: true },
): Promise<void> {
  const target = options.to === undefined ? undefined : parseChoice(options.to, targetStates, 'state')
  const body = {
    name,
    ...(target !== undefined && { target_state: target }),
    ...(options.hypervisor !== undefined && { target_hypervisor: options.hypervisor as HypervisorKind }),
  }
  const made = await connect(options).call('forkSnapshot', { params: { snapshotId }, query: {}, body })
  if (options.json) printJson(made)
  else print(made.name)
}
