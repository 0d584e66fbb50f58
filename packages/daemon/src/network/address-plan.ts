import type { Subnet4 } from '../lib/subnet.ts'
import { sizeOf } from '../lib/subnet.ts'

/** Of the gateway. Guests have those that follow. */
export const GATEWAY = 1

/**
 * The host number for the next guest: the first free one above `after`, and from the beginning once the end is reached, so that an
 * address that was given back is not another's as long as there are others: peers may remember whose it was. Undefined when none is free.
 */
export function nextHost(subnet: Subnet4, taken: ReadonlySet<number>, after: number): number | undefined {
  const first = GATEWAY + 1
  // The last address is everyone's.
  const count = sizeOf(subnet) - 1 - first
  for (let tried = 0; tried < count; tried++) {
    const host = first + ((Math.max(after, GATEWAY) + 1 - first + tried) % count)
    if (!taken.has(host)) return host
  }
  return undefined
}
