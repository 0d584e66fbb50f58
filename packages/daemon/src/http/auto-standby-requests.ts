import type { AutoStandbyPolicy as Asked } from '@dormouse/api/instances.ts'
import { parseDuration } from '@dormouse/api/units.ts'
import type { AutoStandbyPolicy } from '../instances/instance.ts'

/** The texts in it have been checked. */
export function toAutoStandbyPolicy({
  enabled = false,
  idle_timeout,
  ignore_source_cidrs = [],
  ignore_destination_ports = [],
}: Asked): AutoStandbyPolicy {
  const idleTimeoutMs = idle_timeout === undefined ? undefined : Math.ceil(parseDuration(idle_timeout) ?? 0)
  return {
    enabled,
    ...(idleTimeoutMs === undefined ? {} : { idleTimeoutMs }),
    ignoreSources: ignore_source_cidrs,
    ignorePorts: ignore_destination_ports,
  }
}
