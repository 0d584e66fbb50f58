import { formatDuration } from '@dormouse/api/units.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { usageFailure } from '../../failure.ts'
import { print, printJson, remark } from '../../output/print.ts'
import { collect, parseCount, parseDurationOption, parseTags } from '../../parse/values.ts'

interface Options extends HostOption {
  readonly every: string
  readonly keep?: string
  readonly maxAge?: string
  readonly prefix?: string
  readonly tag?: string[]
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<instance>', 'name, id or the beginning of an id')
    .requiredOption('--every <duration>', 'how often, such as 1h or 1d; at least 1m')
    .option('--keep <count>', 'keep so many, the newest')
    .option('--max-age <duration>', 'delete what is older, such as 7d')
    .option('--prefix <text>', 'what the names of its snapshots begin with (scheduled when left out)')
    .option('-t, --tag <key=value>', 'a tag that its snapshots are given; may be repeated', collect)
    .option('--json', 'for programs: the schedule')
    .addHelpText(
      'after',
      '\nTakes the place of the whole schedule, if there is one; its next run stays where it is unless --every is another.' +
        '\nGive --keep, --max-age or both. Only what the schedule has made is ever deleted by it.',
    )
    .action((instance: string) => set(instance, command.optsWithGlobals()))
}

async function set(name: string, options: Options): Promise<void> {
  const { every, keep, maxAge, prefix } = options
  const tags = parseTags(options.tag ?? [])
  if (keep === undefined && maxAge === undefined)
    throw usageFailure('What is to be kept was not given', 'Give --keep 24, --max-age 7d or both')
  const schedule = await connect(options).call('setSnapshotSchedule', {
    params: { id: name },
    body: {
      interval: formatDuration(parseDurationOption(every)),
      retention: {
        ...(keep !== undefined && { max_count: parseCount(keep) }),
        ...(maxAge !== undefined && { max_age: formatDuration(parseDurationOption(maxAge)) }),
      },
      ...(prefix !== undefined && { name_prefix: prefix }),
      ...(tags !== undefined && { metadata: tags }),
    },
  })
  if (options.json) return printJson(schedule)
  print(name)
  remark(`The next snapshot is taken at ${schedule.next_run_at}`)
}
