import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { print, printJson } from '../output/print.ts'
import { bandwidthOf } from '../parse/bandwidth.ts'
import { parsePorts } from '../parse/ports.ts'
import { targetStates } from '../parse/states.ts'
import { collect, parseChoice } from '../parse/values.ts'

interface Options extends HostOption {
  readonly to?: string
  readonly publish?: string[]
  readonly bandwidthDown?: string
  readonly bandwidthUp?: string
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<source>', 'name, id or the beginning of an id')
    .argument('<name>', 'of the fork')
    .option('--to <state>', 'running, standby or stopped; as the source is when left out')
    .option('-p, --publish <[[ip:]host:]guest[/udp]>', 'publish a port of the fork on the host; may be repeated', collect)
    .option('--bandwidth-down <rate>', 'how fast its network may be towards it; as the source’s when left out')
    .option('--bandwidth-up <rate>', 'and away from it')
    .option('--json', 'for programs: the fork')
    .addHelpText('after', HELP)
    .action((source: string, name: string) => fork(source, name, command.optsWithGlobals()))
}

const HELP = `
A second instance that goes on from where the source is: the same memory, the same disk, another name and other addresses. A source
that runs stands still for some milliseconds and goes on. Its published ports stay its own.`

async function fork(source: string, name: string, options: Options): Promise<void> {
  const target = options.to === undefined ? undefined : parseChoice(options.to, targetStates, 'state')
  const ports = options.publish?.flatMap(parsePorts)
  const network = { ...(ports !== undefined && { ports }), ...bandwidthOf(options) }
  const made = await connect(options).call('forkInstance', {
    params: { id: source },
    query: {},
    body: {
      name,
      // Whoever types it sees the source in `ps`, and means it.
      from_running: true,
      ...(target !== undefined && { target_state: target }),
      ...(Object.keys(network).length > 0 && { network }),
    },
  })
  if (options.json) printJson(made)
  else print(made.name)
}
