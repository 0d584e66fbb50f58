import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { usageFailure } from '../../failure.ts'
import { humanBytes } from '../../output/format.ts'
import { print, printJson } from '../../output/print.ts'
import { confirm } from '../../terminal.ts'

export function define(command: Command): void {
  command
    .option('-f, --force', 'do not ask')
    .option('--json', 'for programs; does not ask')
    .action(() => prune(command.optsWithGlobals()))
}

async function prune(options: HostOption & { force?: true; json?: true }): Promise<void> {
  if (!options.force && !options.json) {
    if (!process.stdin.isTTY) throw usageFailure('There is no one to ask', 'Say so with: dormouse image prune --force')
    if (!(await confirm('Delete every image that no instance stands on?'))) return
  }
  const pruned = await connect(options).call('pruneImages', { body: {} })
  if (options.json) return printJson(pruned)
  for (const name of pruned.deleted) print(name)
  print(`${humanBytes(pruned.freed_bytes)} freed`)
}
