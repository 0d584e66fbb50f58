/** `--health-…`, for whoever makes an instance or changes one. */
import type { HealthCheck } from '@dormouse/api/instances.ts'
import { formatDuration } from '@dormouse/api/units.ts'
import type { Command } from 'commander'
import { usageFailure } from '../failure.ts'
import { parseCount, parseDurationOption } from './values.ts'

export interface HealthOptions {
  readonly healthHttp?: string
  readonly healthHttps?: string
  readonly healthStatus?: string
  readonly healthTcp?: string
  readonly healthCmd?: string
  readonly healthInterval?: string
  readonly healthTimeout?: string
  readonly healthStartPeriod?: string
  readonly healthFailures?: string
  readonly healthSuccesses?: string
}

export const addHealthOptions = (command: Command): Command =>
  command
    .option('--health-http <port[/path]>', 'it is healthy while this port of the guest answers a GET with 200, such as 8080/ready')
    .option('--health-https <port[/path]>', 'the same over TLS; no certificate is asked for')
    .option('--health-status <code>', 'with another status than 200')
    .option('--health-tcp <port>', 'it is healthy while this port of the guest takes connections')
    .option('--health-cmd <command>', 'it is healthy while this ends with 0, run by /bin/sh in the guest')
    .option('--health-interval <duration>', 'from one check to the next (10s when left out)')
    .option('--health-timeout <duration>', 'how long one may take (2s when left out)')
    .option('--health-start-period <duration>', 'while it comes up, failures do not count (30s when left out)')
    .option('--health-failures <count>', 'so many in a row make it unhealthy (3 when left out)')
    .option('--health-successes <count>', 'so many in a row make it healthy (1 when left out)')

/** Undefined when none of it was given. A check is given as a whole: what is left out is what it is by default. */
export function healthCheckOf(options: HealthOptions): HealthCheck | undefined {
  const { healthHttp, healthHttps, healthTcp, healthCmd, healthStatus } = options
  const kinds = [healthHttp, healthHttps, healthTcp, healthCmd].filter((kind) => kind !== undefined)
  if (kinds.length > 1)
    throw usageFailure('There is one health check: give one of --health-http, --health-https, --health-tcp, --health-cmd')
  const times = timesOf(options)
  if (kinds.length === 0) {
    if (Object.keys(times).length > 0 || healthStatus !== undefined)
      throw usageFailure('There is nothing to check: give one of --health-http, --health-https, --health-tcp, --health-cmd')
    return undefined
  }
  const web = healthHttp ?? healthHttps
  if (healthStatus !== undefined && web === undefined) throw usageFailure('--health-status is for --health-http and --health-https')
  if (healthTcp !== undefined) return { type: 'tcp', tcp: { port: parsePort(healthTcp) }, ...times }
  if (healthCmd !== undefined) return { type: 'exec', exec: { command: ['/bin/sh', '-c', healthCmd] }, ...times }
  return {
    type: 'http',
    http: {
      ...portAndPath(web ?? ''),
      ...(healthHttps !== undefined && { scheme: 'https' }),
      ...(healthStatus !== undefined && { expected_status: parseCount(healthStatus) }),
    },
    ...times,
  }
}

/** For `update`, which can take a check away. */
export const healthChangeOf = ({ healthNone, ...options }: HealthOptions & { readonly healthNone?: true }): HealthCheck | undefined => {
  const check = healthCheckOf(options)
  if (healthNone && check !== undefined) throw usageFailure('--health-none goes with no other health option')
  return healthNone ? { type: 'none' } : check
}

const timesOf = (options: HealthOptions): Omit<HealthCheck, 'type' | 'http' | 'tcp' | 'exec'> => ({
  ...(options.healthInterval !== undefined && { interval: duration(options.healthInterval) }),
  ...(options.healthTimeout !== undefined && { timeout: duration(options.healthTimeout) }),
  ...(options.healthStartPeriod !== undefined && { start_period: duration(options.healthStartPeriod) }),
  ...(options.healthFailures !== undefined && { failure_threshold: parseCount(options.healthFailures) }),
  ...(options.healthSuccesses !== undefined && { success_threshold: parseCount(options.healthSuccesses) }),
})

const duration = (text: string): string => formatDuration(parseDurationOption(text))

function portAndPath(text: string): { port: number; path?: string } {
  const slash = text.indexOf('/')
  return slash < 0 ? { port: parsePort(text) } : { port: parsePort(text.slice(0, slash)), path: text.slice(slash) }
}

function parsePort(text: string): number {
  const port = Number(text)
  if (!/^\d+$/.test(text) || port < 1 || port > 65_535)
    throw usageFailure(`${JSON.stringify(text)} is not a port`, 'Give one from 1 to 65535, and a path behind it: 8080/ready')
  return port
}
