import type { UpdateInstanceRequest } from '@dormouse/api/instances.ts'
import type { Command } from 'commander'
import { connect, type Daemon, type HostOption } from '../daemon.ts'
import { environment } from '../environment.ts'
import { usageFailure } from '../failure.ts'
import { print, printJson, remark } from '../output/print.ts'
import { bandwidthOf } from '../parse/bandwidth.ts'
import { readVariables } from '../parse/environment-variables.ts'
import { addHealthOptions, type HealthOptions, healthChangeOf } from '../parse/health.ts'
import { parsePorts } from '../parse/ports.ts'
import { addRestartOptions, type RestartOptions, restartPolicyOf } from '../parse/restart.ts'
import { collect, parseCount, parseSizeOption, parseTags } from '../parse/values.ts'

interface Options extends HostOption, HealthOptions, RestartOptions {
  readonly healthNone?: true
  readonly name?: string
  readonly env?: string[]
  readonly envFile?: string[]
  readonly tag?: string[]
  readonly tagRm?: string[]
  readonly publish?: string[]
  readonly publishNone?: true
  readonly bandwidthDown?: string
  readonly bandwidthUp?: string
  readonly memory?: string
  readonly cpus?: string
  readonly overlaySize?: string
  readonly diskIo?: string
  readonly hotplugMemory?: string
  readonly ttl?: string
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<name>', 'name, id or the beginning of an id')
    .option('--name <name>', 'a new name')
    .option('-e, --env <NAME=value>', 'set a variable, from the next start on; may be repeated', collect)
    .option('--env-file <file>', 'set the variables of a file', collect)
    .option('--tag <key=value>', 'set a tag; may be repeated', collect)
    .option('--tag-rm <key>', 'take a tag away; may be repeated', collect)
    .option('-p, --publish <host:guest>', 'publish these ports in place of the present ones; may be repeated', collect)
    .option('--publish-none', 'publish no ports')
    .option('--bandwidth-down <rate>', 'how fast its network may be towards it, such as 10Mbps; 0 for no limit')
    .option('--bandwidth-up <rate>', 'and away from it')
    .option('-m, --memory <size>', 'memory, while Stopped')
    .option('--cpus <count>', 'processors, while Stopped')
    .option('--overlay-size <size>', 'writable disk, can only grow, while Stopped')
    .option('--hotplug-memory <size>', 'memory beyond its size, while Stopped, or at once if it was started with some; 0 for none')
    .option('--disk-io <rate>', 'what its disks may move together, at once; 0 for its processors’ share')
    .option('--ttl <duration>', 'delete it this long from now; 0s for never')
    .option('--json', 'for programs')
    .action((name: string) => update(name, command.optsWithGlobals()))
  addRestartOptions(command)
  addHealthOptions(command).option('--health-none', 'check nothing any more')
}

async function update(name: string, options: Options): Promise<void> {
  const daemon = connect(options)
  const request = await requestOf(daemon, name, options)
  if (Object.keys(request).length === 0) throw usageFailure('Nothing to change was given', 'See: dormouse update --help')
  const before = await daemon.call('getInstance', { params: { id: name } })
  const instance = await daemon.call('updateInstance', { params: { id: before.id }, body: request })
  if (options.json) return printJson(instance)
  print(instance.name)
  if (request.env !== undefined && before.state !== 'Stopped') remark('The environment counts from the next start on')
}

async function requestOf(daemon: Daemon, name: string, options: Options): Promise<UpdateInstanceRequest> {
  const ports = (options.publish ?? []).flatMap(parsePorts)
  const network = { ...((ports.length > 0 || options.publishNone) && { ports }), ...bandwidthOf(options) }
  const set = await readVariables(options.envFile ?? [], options.env ?? [], environment.variable)
  const tags = parseTags(options.tag ?? [])
  // The API replaces tags as a whole, and merges variables; people change one at a time.
  const changesTags = tags !== undefined || options.tagRm !== undefined
  const healthCheck = healthChangeOf(options)
  const restartPolicy = restartPolicyOf(options)
  const before = changesTags ? await daemon.call('getInstance', { params: { id: name } }) : undefined
  return {
    ...(options.name !== undefined && { name: options.name }),
    ...(set !== undefined && { env: set }),
    ...(changesTags && { tags: without({ ...before?.tags, ...tags }, options.tagRm) }),
    ...(Object.keys(network).length > 0 && { network }),
    ...(options.memory !== undefined && { size: parseSizeOption(options.memory) }),
    ...(options.cpus !== undefined && { vcpus: parseCount(options.cpus) }),
    ...(options.overlaySize !== undefined && { overlay_size: parseSizeOption(options.overlaySize) }),
    ...(options.hotplugMemory !== undefined && { hotplug_size: options.hotplugMemory }),
    ...(options.diskIo !== undefined && { disk_io_bps: options.diskIo }),
    ...(options.ttl !== undefined && { ttl: options.ttl }),
    ...(healthCheck !== undefined && { health_check: healthCheck }),
    ...(restartPolicy !== undefined && { restart_policy: restartPolicy }),
  }
}

const without = (pairs: Record<string, string>, names: readonly string[] = []): Record<string, string> =>
  Object.fromEntries(Object.entries(pairs).filter(([name]) => !names.includes(name)))
