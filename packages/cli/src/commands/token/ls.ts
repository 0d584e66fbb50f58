import type { TokenRecord } from '@dormouse/api/tokens.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { ago } from '../../output/format.ts'
import { print, printJson, printTable } from '../../output/print.ts'
import type { Column } from '../../output/table.ts'

interface Options extends HostOption {
  readonly quiet?: true
  readonly json?: true
}

export function define(command: Command): void {
  command
    .option('-q, --quiet', 'ids alone')
    .option('--json', 'for programs')
    .action(() => list(command.optsWithGlobals()))
}

async function list(options: Options): Promise<void> {
  const tokens = await connect(options).call('listTokens')
  if (options.json) return printJson(tokens)
  if (options.quiet) for (const { id } of tokens) print(id)
  else printTable(columns(Date.now()), tokens)
}

const columns = (now: number): Column<TokenRecord>[] => [
  { title: 'ID', value: ({ id }) => id },
  { title: 'SUBJECT', value: ({ subject }) => subject, shrinksTo: 12 },
  { title: 'SCOPES', value: ({ scopes }) => (scopes === null ? '*' : scopes.join(',')), shrinksTo: 16 },
  { title: 'CREATED', value: ({ created_at }) => ago(created_at, now) },
  { title: 'HOLDS UNTIL', value: ({ expires_at, revoked_at }) => (revoked_at === null ? expires_at : 'revoked') },
]
