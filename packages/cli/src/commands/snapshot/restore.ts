import type { HypervisorKind } from '@dormouse/api/instances.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { print, printJson } from '../../output/print.ts'
import { targetStates } from '../../parse/states.ts'
import { parseChoice } from '../../parse/values.ts'

export function define(command: Command): void {
  command
    .argument('<id>', 'of the snapshot')
    .option('--to <state>', 'running, standby or stopped; running where it holds memory, when left out')
    .option('--hypervisor <name>', 'go on with another; for snapshots of the kind Stopped, which hold the disk alone')
    .option('--json', 'for programs: the instance')
    .addHelpText('after', '\nThe instance must be stopped or in standby. What it has written since then is given up.')
    .action((id: string) => restore(id, command.optsWithGlobals()))
}

async function restore(snapshotId: string, options: HostOption & { to?: string; hypervisor?: string; json?: true }): Promise<void> {
  const target = options.to === undefined ? undefined : parseChoice(options.to, targetStates, 'state')
  const daemon = connect(options)
  const { source_instance_id: id } = await daemon.call('getSnapshot', { params: { snapshotId } })
  const body = {
    ...(target !== undefined && { target_state: target }),
    ...(options.hypervisor !== undefined && { target_hypervisor: options.hypervisor as HypervisorKind }),
  }
  const instance = await daemon.call('restoreSnapshot', { params: { id, snapshotId }, body })
  if (options.json) printJson(instance)
  else print(instance.name)
}
