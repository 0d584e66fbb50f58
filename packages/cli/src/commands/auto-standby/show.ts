import type { AutoStandbyStatus } from '@dormouse/api/instances.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { ago, humanDuration } from '../../output/format.ts'
import { print, printJson } from '../../output/print.ts'
import { styleOf } from '../../output/style.ts'
import { renderFacts } from '../../output/table.ts'

export function define(command: Command): void {
  command
    .argument('<instance>', 'name, id or the beginning of an id')
    .option('--json', 'for programs')
    .action((instance: string) => show(instance, command.optsWithGlobals()))
}

async function show(name: string, options: HostOption & { json?: true }): Promise<void> {
  const status = await connect(options).call('getAutoStandbyStatus', { params: { id: name } })
  if (options.json) printJson(status)
  else print(renderFacts(facts(name, status, Date.now()), styleOf(process.stdout)))
}

function facts(name: string, status: AutoStandbyStatus, now: number): [string, string | undefined][] {
  const past = (at: string | null | undefined): string | undefined => (at ? `${at} (${ago(at, now)})` : undefined)
  const future = (at: string | null | undefined): string | undefined =>
    at ? `${at} (in ${humanDuration(Date.parse(at) - now)})` : undefined
  return [
    ['Instance', name],
    ['Status', `${status.status} (${status.reason})`],
    ['Sleeps after', status.idle_timeout ?? undefined],
    ['Connections', String(status.active_inbound_connections)],
    ['Idle since', past(status.idle_since)],
    ['Last activity', past(status.last_inbound_activity_at)],
    ['Sleeps at', future(status.next_standby_at)],
    ['Held until', future(status.hold_until)],
    ['Last error', status.last_error ?? undefined],
  ]
}
