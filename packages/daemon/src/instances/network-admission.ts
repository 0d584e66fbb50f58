import { AppError } from '@dormouse/api/errors.ts'
import { formatRate } from '@dormouse/api/units.ts'
import type { Instance } from './instance.ts'

/** The greater of what it may receive and send, in bytes per second; 0 for one that nothing was asked for. Pure. */
export const networkDemandOf = ({
  bandwidthDownload = 0,
  bandwidthUpload = 0,
}: Pick<Instance['network'], 'bandwidthDownload' | 'bandwidthUpload'>): number => Math.max(bandwidthDownload, bandwidthUpload)

/**
 * Throws `insufficient_resources` when the link has not so much left; `capacityBps` is what it has to give, oversubscription included,
 * undefined where that is not known. Pure.
 */
export function admitNetwork(what: string, demandBps: number, takenBps: number, capacityBps: number | undefined): void {
  if (capacityBps === undefined || demandBps === 0) return
  const left = Math.max(0, Math.floor(capacityBps - takenBps))
  if (demandBps <= left) return
  throw new AppError(
    'insufficient_resources',
    `There is not enough network for ${what}: it needs ${formatRate(demandBps)}, ${formatRate(left)} of ${formatRate(Math.floor(capacityBps))} is left`,
    { hint: 'Stop other instances, ask for less bandwidth, or raise DORMOUSE_NETWORK_RATIO or DORMOUSE_NETWORK_BANDWIDTH' },
  )
}
