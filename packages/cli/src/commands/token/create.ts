import { formatDuration } from '@dormouse/api/units.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { print, printJson, remark } from '../../output/print.ts'
import { collect, parseDurationOption } from '../../parse/values.ts'

interface Options extends HostOption {
  readonly subject?: string
  readonly scope?: string[]
  readonly ttl?: string
  readonly json?: true
}

export function define(command: Command): void {
  command
    .option('--subject <name>', 'who it is for; shown in the audit log (operator when left out)')
    .option('--scope <scope>', 'what it allows, such as instance:read; may be repeated; everything when left out', collect)
    .option('--ttl <duration>', 'how long it holds (24h when left out)')
    .option('--json', 'for programs')
    .addHelpText(
      'after',
      '\nWorks on the daemon’s own host, over its unix socket. Scopes: {instance,image,volume,snapshot,build,device,ingress}:{read,write,delete}, resource:{read,write}, audit:read, registry:{pull,push}, registry:{pull,push}:REPOSITORY, *.\nOne that may do nothing but push images to one repository:\n  dormouse token create --scope registry:push:team/app --ttl 8h | docker login -u token --password-stdin 127.0.0.1:4973',
    )
    .action(() => create(command.optsWithGlobals()))
}

async function create(options: Options): Promise<void> {
  const scopes = options.scope?.flatMap((list) => list.split(','))
  const made = await connect(options).call('createToken', {
    body: {
      ...(options.subject !== undefined && { subject: options.subject }),
      // The daemon knows the scopes and names a wrong one.
      ...(scopes !== undefined && { scopes: scopes as never }),
      ...(options.ttl !== undefined && { ttl: formatDuration(parseDurationOption(options.ttl)) }),
    },
  })
  if (options.json) return printJson(made)
  print(made.token)
  const isForRegistry = scopes?.every((scope) => scope.startsWith('registry:'))
  const use = isForRegistry
    ? 'docker login -u token --password-stdin HOST:4973'
    : 'DORMOUSE_TOKEN=… DORMOUSE_HOST=http://host:4973 dormouse ps'
  remark(`It holds until ${made.expires_at}; its id is ${made.id}. Use it as: ${use}`)
}
