import type { SnapshotSchedule } from '@dormouse/api/schedules.ts'
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
  const schedule = await connect(options).call('getSnapshotSchedule', { params: { id: name } })
  if (options.json) printJson(schedule)
  else print(renderFacts(facts(name, schedule, Date.now()), styleOf(process.stdout)))
}

function facts(name: string, schedule: SnapshotSchedule, now: number): [string, string | undefined][] {
  const { max_count, max_age } = schedule.retention
  const tags = Object.entries(schedule.metadata ?? {}).map(([key, value]) => `${key}=${value}`)
  return [
    ['Instance', name],
    ['Every', schedule.interval],
    ['Keeps', [max_count ? `the newest ${max_count}` : [], max_age ? `none older than ${max_age}` : []].flat().join(', ')],
    ['Prefix', schedule.name_prefix ?? undefined],
    ['Tags', tags.length > 0 ? tags.join(', ') : undefined],
    ['Next run', `${schedule.next_run_at} (in ${humanDuration(Date.parse(schedule.next_run_at) - now)})`],
    ['Last run', schedule.last_run_at ? `${schedule.last_run_at} (${ago(schedule.last_run_at, now)})` : undefined],
    ['Last snapshot', schedule.last_snapshot_id ?? undefined],
    ['Last error', schedule.last_error ?? undefined],
  ]
}
