import type { LogSource } from '@dormouse/api/instances.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { writeOut } from '../output/write-out.ts'
import { parseChoice, parseTail } from '../parse/values.ts'

interface Options extends HostOption {
  readonly follow?: true
  readonly tail: string
  readonly source: string
  readonly json?: true
}

const SOURCES = ['app', 'vmm', 'daemon', 'hypeman'] as const satisfies readonly LogSource[]

export function define(command: Command): void {
  command
    .argument('<name>', 'name, id or the beginning of an id')
    .option('-f, --follow', 'stay, and show what comes')
    .option('-n, --tail <lines>', 'begin so many lines before the end; or: all', 'all')
    .option(
      '-s, --source <source>',
      'app: what the workload writes; vmm: the VMM and the guest kernel; daemon: our own lines about it',
      'app',
    )
    .option('--json', 'for programs: one JSON string a line')
    .action((name: string) => logs(name, command.optsWithGlobals()))
}

async function logs(name: string, options: Options): Promise<void> {
  const source = parseChoice(options.source, SOURCES, 'log')
  const tail = parseTail(options.tail)
  const daemon = connect(options)
  const lines = daemon.stream('getInstanceLogs', { params: { id: name }, query: { source, tail, ...(options.follow && { follow: true }) } })
  for await (const line of daemon.follow(lines)) await writeOut(process.stdout, `${options.json ? JSON.stringify(line) : line}\n`)
}
