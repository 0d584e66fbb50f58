import { type ProcessIdentity, usageOf } from '../host/process-identity.ts'
import type { VmUsage } from './hypervisor.ts'

/** What the VMM's process has used; undefined when it is gone. Of traffic only who carries it knows. */
export function vmmUsage(
  vmm: ProcessIdentity,
  traffic: { received: number; sent: number } = { received: 0, sent: 0 },
): VmUsage | undefined {
  const used = usageOf(vmm)
  if (used === undefined) return undefined
  return {
    cpuSeconds: used.cpuSeconds,
    memoryRssBytes: used.rssBytes,
    memoryVmsBytes: used.vmsBytes,
    memoryPrivateBytes: used.privateBytes,
    networkRxBytes: traffic.received,
    networkTxBytes: traffic.sent,
  }
}
