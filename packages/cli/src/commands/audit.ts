import { AUDIT_RESULTS, type AuditEntry } from '@dormouse/api/audit.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { print, printJson, printTable, remark } from '../output/print.ts'
import type { Column } from '../output/table.ts'
import { parseChoice, parseCount, parseDurationOption } from '../parse/values.ts'

interface Options extends HostOption {
  readonly caller?: string
  readonly operation?: string
  readonly target?: string
  readonly result?: string
  readonly since?: string
  readonly lines: string
  readonly json?: true
}

export function define(command: Command): void {
  command
    .option('--caller <subject>', 'only what this subject of a token did; host: over the unix socket; system: the daemon itself')
    .option('--operation <name>', 'only this, such as stopInstance')
    .option('--target <name>', 'only what was done to this instance, image, volume or snapshot, by the name or id that was given')
    .option('--result <result>', 'done, failed, refused, under_way or interrupted')
    .option('--since <duration>', 'only of the last 2h, 7d')
    .option('-n, --lines <count>', 'at most so many', '50')
    .option('--json', 'for programs')
    .action(() => audit(command.optsWithGlobals()))
}

const PAGE = 1000

async function audit(options: Options): Promise<void> {
  const wanted = parseCount(options.lines)
  const filter = {
    ...(options.caller !== undefined && { caller: options.caller }),
    ...(options.operation !== undefined && { operation: options.operation }),
    ...(options.target !== undefined && { target: options.target }),
    ...(options.result !== undefined && { result: parseChoice(options.result, AUDIT_RESULTS, 'result') }),
    ...(options.since !== undefined && { since: new Date(Date.now() - parseDurationOption(options.since)).toISOString() }),
  }
  const daemon = connect(options)
  const entries: AuditEntry[] = []
  let cursor: string | undefined
  do {
    const limit = Math.min(PAGE, wanted - entries.length)
    const page = await daemon.page('listAudit', { query: { ...filter, limit, ...(cursor !== undefined && { cursor }) } })
    entries.push(...page.items)
    cursor = page.nextCursor
  } while (cursor !== undefined && entries.length < wanted)
  if (options.json) return printJson(entries)
  if (entries.length === 0) return print('Nothing that fits is in the audit log')
  printTable(COLUMNS, entries)
  if (cursor !== undefined) remark('There is more: -n')
}

const COLUMNS: Column<AuditEntry>[] = [
  { title: 'TIME', value: ({ at }) => at },
  { title: 'CALLER', value: ({ caller }) => caller ?? '-', shrinksTo: 8 },
  { title: 'FROM', value: ({ address }) => address ?? '-' },
  { title: 'OPERATION', value: ({ operation }) => operation },
  { title: 'TARGET', value: targetOf, shrinksTo: 12 },
  { title: 'RESULT', value: resultOf },
]

function targetOf({ target, resource_id }: AuditEntry): string {
  const parts = Object.values(target)
  return parts.length > 0 ? parts.join(' ') : (resource_id ?? '')
}

function resultOf({ result, status, code, skipped }: AuditEntry): string {
  const why = code === null ? '' : ` ${code}`
  return `${result}${status === null || result === 'done' ? '' : ` ${status}`}${why}${skipped === 0 ? '' : ` (${skipped} more before)`}`
}
