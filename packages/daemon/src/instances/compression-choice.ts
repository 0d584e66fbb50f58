/** Whether a memory is compressed, how, and when. The request decides, else the instance's policy, else the daemon's setting. Pure. */
import { type Compression, compressionOf } from '@dormouse/api/compression.ts'
import type { SnapshotPolicy } from '@dormouse/api/instances.ts'
import { parseDuration } from '@dormouse/api/units.ts'
import type { Instance } from './instance.ts'

type Asking = Pick<Instance, 'snapshotPolicy'>

export function chooseCompression(
  asked: Compression | 'off' | undefined,
  instance: Asking,
  byDefault: Compression | undefined,
): Compression | undefined {
  const { compression } = policyOf(instance)
  const chosen = asked ?? (compression && compressionOf(compression)) ?? byDefault
  return chosen === 'off' ? undefined : chosen
}

/** How long a sleeping state is left as it is, so that a short nap costs no more than it must. */
export function compressionDelayMs(asked: number | undefined, instance: Asking): number {
  const { standby_compression_delay: delay = '0s' } = policyOf(instance)
  return asked ?? Math.ceil(parseDuration(delay) ?? 0)
}

// As it was checked when it was taken.
const policyOf = ({ snapshotPolicy = {} }: Asking): SnapshotPolicy => snapshotPolicy as SnapshotPolicy
