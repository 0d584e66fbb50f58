import { AppError } from '@dormouse/api/errors.ts'
import type { InstanceState } from '@dormouse/api/instance-states.ts'
import { macOf } from '../network/network.ts'
import type { Instance, InstanceId } from './instance.ts'
import type { TargetState } from './operations/fork.ts'

/** What of a fork's network was asked for, or is its source's. */
type OwnNetwork = Pick<Instance['network'], 'ports' | 'bandwidthDownload' | 'bandwidthUpload'>

/** What a fork's row begins as: what was asked for is the source's, what was given and what has been is its own. Pure. */
export function forkOf(
  source: Instance,
  { id, name, network, nowMs }: { id: InstanceId; name: string; network: OwnNetwork; nowMs: number },
): Instance {
  const { uid: _uid, vm: _vm, sleep: _sleep, ...kept } = source
  const { startedAtMs: _started, stoppedAtMs: _stopped, exitCode: _code, exitMessage: _message, ...asked } = kept
  const { stateError: _error, expiresAtMs: _expires, operation: _operation, restarts: _restarts, devices: _devices, gpu, ...rest } = asked
  const { enabled } = source.network
  return {
    ...rest,
    id,
    name,
    createdAtMs: nowMs,
    state: 'Created',
    operation: 'create',
    disk: [],
    volumes: [],
    // A device is one instance's alone; of a profile there may be more.
    ...(gpu === undefined ? {} : { gpu: { profile: gpu.profile } }),
    network: { enabled, ...network, ...(enabled ? { mac: macOf(id) } : {}) },
    phases: { current: 'Created', sinceMs: nowMs, durations: {} },
  }
}

/** Where a fork goes when no one says: where its source is. */
export function defaultTargetOf(state: InstanceState): TargetState {
  if (state === 'Running' || state === 'Standby' || state === 'Stopped') return state
  throw new AppError('invalid_state', `An instance that is ${state} cannot be forked: wait until it has settled`)
}
