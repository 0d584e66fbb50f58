import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { forEachName } from '../../each.ts'
import { print } from '../../output/print.ts'

export function define(command: Command): void {
  command.argument('<id...>', 'ids of snapshots').action((ids: string[]) => remove(ids, command.optsWithGlobals()))
}

async function remove(ids: readonly string[], options: HostOption): Promise<void> {
  const daemon = connect(options)
  await forEachName(ids, {}, async (snapshotId) => {
    await daemon.call('deleteSnapshot', { params: { snapshotId } })
    print(snapshotId)
  })
}
