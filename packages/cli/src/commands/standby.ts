import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { forEachName } from '../each.ts'
import { print, printJsonLine } from '../output/print.ts'
import { parseCompression } from '../parse/compression.ts'

export function define(command: Command): void {
  command
    .argument('<name...>', 'name, id or the beginning of an id')
    .option('--compress <algorithm[:level]>', 'compress the memory once it is on disk: zstd, zstd:3, lz4; off: do not')
    .option('--compress-after <duration>', 'not before so long, such as 5m')
    .option('--json', 'for programs: one object a line')
    .addHelpText('after', HELP)
    .action((names: string[]) => standby(names, command.optsWithGlobals()))
}

const HELP = `
What its memory holds goes to disk and its VM goes; the host has its memory and its processors back. It goes on from there with:
dormouse restore.`

async function standby(
  names: readonly string[],
  options: HostOption & { compress?: string; compressAfter?: string; json?: true },
): Promise<void> {
  const body = {
    ...(options.compress !== undefined && { compression: parseCompression(options.compress) }),
    ...(options.compressAfter !== undefined && { compression_delay: options.compressAfter }),
  }
  const daemon = connect(options)
  await forEachName(names, options, async (id) => {
    const instance = await daemon.call('standbyInstance', { params: { id }, body })
    if (options.json) printJsonLine(instance)
    else print(id)
  })
}
