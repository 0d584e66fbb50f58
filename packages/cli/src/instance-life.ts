/** Waiting for an instance, as several verbs do it. */
import type { InstanceState } from '@dormouse/api/instance-states.ts'
import type { Instance } from '@dormouse/api/instances.ts'
import { formatDuration } from '@dormouse/api/units.ts'
import type { Answer, Daemon } from './daemon.ts'
import { EXIT, Failure } from './failure.ts'

// The API waits no longer than this at a time.
const ONE_WAIT_MS = 300_000

/** Waits for `state` until `deadlineMs` (forever without one), asking again as often as the API's own limit makes it. */
export async function waitForState(
  daemon: Daemon,
  id: string,
  state: InstanceState,
  options: { timeoutMs?: number; signal?: AbortSignal } = {},
): Promise<Answer<'waitForInstance'>> {
  const deadline = options.timeoutMs === undefined ? Number.POSITIVE_INFINITY : performance.now() + options.timeoutMs
  for (;;) {
    const leftMs = Math.max(1, Math.ceil(Math.min(ONE_WAIT_MS, deadline - performance.now())))
    const answer = await daemon.call('waitForInstance', {
      params: { id },
      query: { state, timeout: formatDuration(leftMs) },
      signal: options.signal,
    })
    if (!answer.timed_out || performance.now() >= deadline) return answer
  }
}

// A boot without KVM on a busy host takes tens of seconds; more than this is not coming.
const BOOT_LIMIT_MS = 300_000

/** Resolves when the instance runs, or has run and is over; throws when it will not come to run. */
export async function becomeRunning(daemon: Daemon, instance: Instance, signal?: AbortSignal): Promise<Instance> {
  if (instance.state === 'Running') return instance
  const answer = await waitForState(daemon, instance.id, 'Running', { timeoutMs: BOOT_LIMIT_MS, ...(signal && { signal }) })
  const now = await daemon.call('getInstance', { params: { id: instance.id }, signal })
  if (answer.state === 'Running' || hasRun(now)) return now
  throw neverRan(now, answer)
}

/** A short workload may be over before anyone saw it run. */
const hasRun = (instance: Instance): boolean => instance.state === 'Stopped' && typeof instance.exit_code === 'number'

function neverRan(instance: Instance, answer: Answer<'waitForInstance'>): Failure {
  const why = instance.exit_message ?? answer.reason ?? answer.state_error ?? instance.state_error
  return new Failure(`${instance.name} did not come to run: it is ${instance.state}${why ? ` (${why})` : ''}`, {
    exitCode: answer.timed_out ? EXIT.timedOut : EXIT.failed,
    code: answer.timed_out ? 'timed_out' : 'failed',
    hint: `Look at its logs: dormouse logs ${instance.name}; dormouse logs --source vmm ${instance.name}`,
  })
}
