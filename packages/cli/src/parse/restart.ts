/** `--restart` and what goes with it, for whoever makes an instance or changes one. */
import type { RestartPolicy } from '@dormouse/api/instances.ts'
import { formatDuration } from '@dormouse/api/units.ts'
import type { Command } from 'commander'
import { usageFailure } from '../failure.ts'
import { parseCount, parseDurationOption } from './values.ts'

export interface RestartOptions {
  readonly restart?: string
  readonly restartBackoff?: string
  readonly restartStableAfter?: string
}

export const addRestartOptions = (command: Command): Command =>
  command
    .option('--restart <policy[:attempts]>', 'start it again when it ends: never, always, on-failure, on-failure:5 at most in a row')
    .option('--restart-backoff <duration>', 'after so long (5s when left out)')
    .option('--restart-stable-after <duration>', 'count attempts anew once it has run for so long (10m when left out)')

/** In our words, the API's, and docker's: what is stopped stays stopped here with `always` too. */
const POLICIES = {
  never: 'never',
  no: 'never',
  always: 'always',
  'unless-stopped': 'always',
  'on-failure': 'on_failure',
  on_failure: 'on_failure',
} as const
const isPolicy = (text: string): text is keyof typeof POLICIES => Object.hasOwn(POLICIES, text)

/** Undefined when none of it was given. A policy is given as a whole: what is left out is what it is by default. */
export function restartPolicyOf({ restart, restartBackoff, restartStableAfter }: RestartOptions): RestartPolicy | undefined {
  if (restart === undefined) {
    if (restartBackoff !== undefined || restartStableAfter !== undefined) {
      throw usageFailure('--restart-backoff and --restart-stable-after need a --restart', 'Such as: --restart on-failure')
    }
    return undefined
  }
  const [name = '', attempts, ...more] = restart.split(':')
  if (!isPolicy(name) || more.length > 0 || (POLICIES[name] === 'never' && attempts !== undefined)) {
    throw usageFailure(`${JSON.stringify(restart)} is not a restart policy`, 'Give never, always, on-failure, or on-failure:5')
  }
  return {
    policy: POLICIES[name],
    ...(attempts !== undefined && { max_attempts: parseCount(attempts) }),
    ...(restartBackoff !== undefined && { backoff: formatDuration(parseDurationOption(restartBackoff)) }),
    ...(restartStableAfter !== undefined && { stable_after: formatDuration(parseDurationOption(restartStableAfter)) }),
  }
}
