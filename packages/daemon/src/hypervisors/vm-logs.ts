/** What a shim drains of a VM, whichever VMM runs it. */
import type { ShimPlan } from './shim.ts'
import type { LogFiles } from './vm-spec.ts'

/** A journal has a handful of lines; a guest that writes more is not believed anyway. */
const JOURNAL_BYTES = 256 * 1024

export const shimLogsOf = ({ app, vmm, journal, maxBytes }: LogFiles): ShimPlan['logs'] => [
  { name: 'app', file: app, maxBytes },
  { name: 'vmm', file: vmm, maxBytes },
  { name: 'journal', file: journal, maxBytes: Math.min(maxBytes, JOURNAL_BYTES), isCapped: true },
]
