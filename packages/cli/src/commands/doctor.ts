import type { Command } from 'commander'
import { handOver } from '../hand-over.ts'

/** All arguments are the daemon's, `--help` too. */
export function define(command: Command): void {
  command
    .helpOption(false)
    .allowUnknownOption()
    .allowExcessArguments()
    .passThroughOptions()
    .argument('[args...]')
    .action((args: string[]) => handOver(['doctor', ...args]))
}
