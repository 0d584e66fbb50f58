/** An instance as the options of `run` describe it. */
import type { CreateInstanceRequest, HypervisorKind, Instance } from '@dormouse/api/instances.ts'
import { formatDuration } from '@dormouse/api/units.ts'
import type { Daemon } from '../daemon.ts'
import { environment } from '../environment.ts'
import { bandwidthOf } from '../parse/bandwidth.ts'
import { type EgressOptions, egressOf } from '../parse/egress.ts'
import { readVariables } from '../parse/environment-variables.ts'
import { type HealthOptions, healthCheckOf } from '../parse/health.ts'
import { parseMount } from '../parse/mounts.ts'
import { parsePorts } from '../parse/ports.ts'
import { type RestartOptions, restartPolicyOf } from '../parse/restart.ts'
import { parseCount, parseDurationOption, parseSizeOption, parseTags } from '../parse/values.ts'
import { randomName } from '../random-name.ts'

export interface CreateOptions extends EgressOptions, HealthOptions, RestartOptions {
  readonly name?: string
  readonly env?: string[]
  readonly envFile?: string[]
  readonly publish?: string[]
  readonly volume?: string[]
  readonly device?: string[]
  readonly gpuProfile?: string
  readonly bandwidthDown?: string
  readonly bandwidthUp?: string
  readonly memory?: string
  readonly cpus?: string
  readonly overlaySize?: string
  readonly diskIo?: string
  readonly hotplugMemory?: string
  readonly entrypoint?: string
  readonly hypervisor?: string
  readonly tag?: string[]
  readonly ttl?: string
  readonly autoStandby?: string
  readonly network: boolean
  readonly skipGuestAgent?: true
  readonly freshBoot?: true
  readonly platform?: string
}

/** Sleeps for as long as a 32-bit sleep can. Ends on the image's stop signal like any program. */
const IDLE = ['/bin/sh', '-c', 'exec sleep 2147483647'] as const

const NAME_ATTEMPTS = 6

export type InstanceRequest = Omit<CreateInstanceRequest, 'name'>

/** Makes the instance. A made-up name that is taken is made up again. */
export async function createInstance(daemon: Daemon, name: string | undefined, request: InstanceRequest): Promise<Instance> {
  if (name !== undefined) return daemon.call('createInstance', { body: { name, ...request } })
  for (let attempt = 0; ; attempt++) {
    try {
      return await daemon.call('createInstance', { body: { name: randomName(attempt), ...request } })
    } catch (error) {
      if (attempt + 1 >= NAME_ATTEMPTS || !isNameConflict(error)) throw error
    }
  }
}

/** What is asked of the daemon. Throws what is wrong with the options; nothing has been pulled or made by then. */
export async function requestOf(
  image: string,
  argv: readonly string[],
  options: CreateOptions,
  { idle }: { idle: boolean },
): Promise<InstanceRequest> {
  const env = await readVariables(options.envFile ?? [], options.env ?? [], environment.variable)
  const tags = parseTags(options.tag ?? [])
  const ports = (options.publish ?? []).flatMap(parsePorts)
  const { credentials, ...way } = egressOf(options, env)
  const network = { ...(ports.length > 0 && { ports }), ...(!options.network && { enabled: false }), ...bandwidthOf(options), ...way }
  const healthCheck = healthCheckOf(options)
  const restartPolicy = restartPolicyOf(options)
  return {
    image,
    ...(idle ? { entrypoint: [...IDLE] } : commandOf(argv, options)),
    ...(env !== undefined && { env }),
    ...(tags !== undefined && { tags }),
    ...(Object.keys(network).length > 0 && { network }),
    ...(credentials !== undefined && { credentials }),
    ...(options.volume?.length && { volumes: options.volume.map(parseMount) }),
    ...(options.device?.length && { devices: options.device }),
    ...(options.gpuProfile !== undefined && { gpu: { profile: options.gpuProfile } }),
    ...(options.memory !== undefined && { size: parseSizeOption(options.memory) }),
    ...(options.cpus !== undefined && { vcpus: parseCount(options.cpus) }),
    ...(options.overlaySize !== undefined && { overlay_size: parseSizeOption(options.overlaySize) }),
    ...(options.hotplugMemory !== undefined && { hotplug_size: parseSizeOption(options.hotplugMemory) }),
    ...(options.diskIo !== undefined && { disk_io_bps: options.diskIo }),
    // The daemon knows which there are, and names them when this is none of them.
    ...(options.hypervisor !== undefined && { hypervisor: options.hypervisor as HypervisorKind }),
    ...(options.platform !== undefined && { platform: options.platform }),
    ...(options.skipGuestAgent && { skip_guest_agent: true }),
    ...(options.freshBoot && { fresh_boot: true }),
    ...(options.ttl !== undefined && { ttl: options.ttl }),
    ...(options.autoStandby !== undefined && {
      auto_standby: { enabled: true, idle_timeout: formatDuration(parseDurationOption(options.autoStandby)) },
    }),
    ...(healthCheck !== undefined && { health_check: healthCheck }),
    ...(restartPolicy !== undefined && { restart_policy: restartPolicy }),
  }
}

/** As Docker: arguments stand in for the image's command, `--entrypoint` for both. */
const commandOf = (argv: readonly string[], options: CreateOptions): Pick<CreateInstanceRequest, 'entrypoint' | 'cmd'> => ({
  ...(options.entrypoint !== undefined && { entrypoint: [options.entrypoint] }),
  ...(argv.length > 0 && { cmd: [...argv] }),
})

const isNameConflict = (error: unknown): boolean => error instanceof Error && 'code' in error && error.code === 'name_conflict'
